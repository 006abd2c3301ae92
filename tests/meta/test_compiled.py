"""The step as one graph: the same numbers, fewer operations, nothing of the caller's touched by the graph itself."""

import copy
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmeta
from fastmeta import models, reference
from fastmeta.meta.engines.graph import Untraceable, random_nodes, trace
from tests.support import cases
from tests.support.flops import graph_flops
from tests.support.meta import F64, FAMILIES, bad_batches, make_labels, optimizers, relative, run_fast, run_reference
from tests.support.pairs import parametrize_some

LOOKAHEADS = [("sgd", "plain"), ("optimizer", "nesterov"), (0.05, "momentum")]


@parametrize_some(1, name=cases.NAMES, family=FAMILIES, rule=LOOKAHEADS)
def test_equals_the_reference(name, family, rule):
    """Parameters, labels and BatchNorm's buffers after three steps with differently distributed batches."""
    lookahead, kind = rule
    case = cases.make(name)
    labels = make_labels(family, case)
    truth = copy.deepcopy(case)
    optimizer = optimizers(list(case.model.parameters()))[kind]
    table = run_reference(truth, labels, lookahead, optimizer.param_groups[0], 3)
    step = run_fast(case, labels, optimizer, 3, lookahead=lookahead, compile="trace")
    assert step._graphs is not None
    assert step._graphs.compilations == 1
    learned = labels.label_logits if labels.family == "instance" else labels.alpha
    assert relative(learned, table) < 1e-10
    for (key, new), old in zip(case.model.state_dict().items(), truth.model.state_dict().values(), strict=True):
        assert torch.allclose(new, old, rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("tangent", ["forward", "reverse"])
def test_the_graph_leaves_every_input_as_it_was(tangent):
    case = cases.make("resnet")
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    step = fastmeta.MetaStep(
        case.model, labels, optimizer, label_lr=3.0, tangent=tangent, compile="trace", unique_index=True
    )
    step(case.train, case.meta)
    (graph,) = step._graphs.graphs
    generator = torch.Generator().manual_seed(0)

    def filled(t):
        if t.is_floating_point():
            return torch.rand(t.shape, dtype=t.dtype, generator=generator)
        return torch.zeros(t.shape, dtype=t.dtype)

    inputs = [filled(n.meta["val"]) for n in graph.graph.nodes if n.op == "placeholder"]
    before = [t.clone() for t in inputs]
    with torch.no_grad():
        graph(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_flops_are_at_the_floor(way):
    assert 12.5 < graph_flops(cases.convolutions(10), 10, 8, 16, (3, 16, 16), way) <= 13.1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "wrn28_10"])
def test_flops_of_large_networks_are_at_the_floor(name, way):
    model = models.build(name, num_classes=10)
    assert 12.5 < graph_flops(model, 10, 128, 256, (3, 32, 32), way) <= 13.1


def test_schedules_do_not_recompile_and_shapes_do():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.3, momentum=0.9)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, compile="trace")
    truth = copy.deepcopy((case, labels))
    plain = fastmeta.MetaStep(
        truth[0].model,
        truth[1],
        torch.optim.SGD(truth[0].model.parameters(), lr=0.3, momentum=0.9),
        label_lr=3.0,
    )
    for lr, label_lr in ((0.3, 3.0), (0.1, 5.0), (0.03, 7.0)):
        for s, c in ((step, case), (plain, truth[0])):
            s.optimizer.param_groups[0]["lr"], s.label_lr = lr, label_lr
            s(c.train, c.meta)
    assert step._graphs.compilations == 1
    assert relative(labels.label_logits, truth[1].label_logits) < 1e-10
    step((case.x[:5], case.index[:5]), case.meta)
    assert step._graphs.compilations == 2
    case.model.eval()
    step(case.train, case.meta)
    assert step._graphs.compilations == 3


def test_weight_decay_may_change_between_steps():
    learned = []
    for compile in ("off", "trace"):
        case = cases.make("mlp")
        labels = make_labels(fastmeta.InstanceLabels, case)
        optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
        step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, compile=compile)
        step(case.train, case.meta)
        optimizer.param_groups[0]["weight_decay"] = 0.1
        step(case.train, case.meta)
        learned.append(list(case.model.parameters()))
    for a, b in zip(*learned, strict=True):
        assert relative(a, b) < 1e-12


def test_one_shape_too_many_runs_eagerly_and_the_others_do_not():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, compile="trace")
    step(case.train, case.meta)
    step._graphs.cap = 1
    with pytest.warns(UserWarning, match="this batch runs eagerly: 1 graphs are kept already"):
        assert bool(step((case.x[:5], case.index[:5]), case.meta).finite)
    step(case.train, case.meta)
    assert step._graphs.compilations == 1
    assert "runs eagerly" not in step.explain()


def test_repeated_rows_and_weights():
    case = cases.make("mlp")
    case.index = torch.tensor([3, 1, 3, 3, 0, 1, 2, 5])
    weight = torch.rand(8, dtype=F64)
    results = []
    for compile in ("off", "trace"):
        c, labels = copy.deepcopy((case, make_labels(fastmeta.InstanceLabels, case)))
        optimizer = torch.optim.SGD(c.model.parameters(), lr=0.1)
        out = fastmeta.MetaStep(c.model, labels, optimizer, label_lr=7.0, compile=compile)(
            c.train, c.meta, weight=weight
        )
        results.append((labels.label_logits, *vars(out).values(), *c.model.parameters()))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_dropout_sees_one_mask(name):
    """Random layers are traced from double-vjp, and draw what the eager step draws."""
    case = cases.make(name)
    case.model.insert(2, nn.Dropout(0.5))
    learned = []
    for compile in ("off", "trace"):
        c, labels = copy.deepcopy((case, make_labels(fastmeta.InstanceLabels, case)))
        optimizer = torch.optim.SGD(c.model.parameters(), lr=0.1)
        step = fastmeta.MetaStep(c.model, labels, optimizer, label_lr=7.0, compile=compile)
        torch.manual_seed(11)
        step(c.train, c.meta)
        step(c.train, c.meta)
        learned.append((labels.label_logits, *c.model.parameters()))
    for a, b in zip(*learned, strict=True):
        assert relative(a, b) < 1e-10
    (graph,) = step._graphs.graphs
    assert len(random_nodes(graph.graph)) == 2  # one draw for the train forward, one for the meta forward
    assert step._graphs.plan.kind == "reverse"


@pytest.mark.parametrize("where", ["train", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_that_is_not_finite_changes_nothing(family, where):
    case = cases.make("resnet")
    labels = make_labels(family, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, compile="trace")
    step(case.train, case.meta)
    before = copy.deepcopy((case.model.state_dict(), labels.state_dict(), optimizer.state_dict()["state"]))
    result = step(*bad_batches(case)[where])
    assert not bool(result.finite)
    assert int(step.nonfinite_steps) == 1
    model, table, state = before
    assert all(torch.equal(model[k], v) for k, v in case.model.state_dict().items())
    assert all(torch.equal(table[k], v) for k, v in labels.state_dict().items())
    for key, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(state[key]["momentum_buffer"], entry["momentum_buffer"])
    assert bool(step(case.train, case.meta).finite)


@pytest.mark.parametrize("compile", ["trace", "full"])
def test_identical_loss_curve(compile):
    """200 steps in float32 with a smooth activation: a pure performance change moves no curve."""
    torch.manual_seed(0)
    n, m, classes = 16, 16, 5
    x, y, clean = torch.randn(64, 6), torch.randint(classes, (64,)), torch.randn(m, 6)
    y_meta = torch.randint(classes, (m,))
    start = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, classes))

    def curve(kind):
        model = copy.deepcopy(start)
        labels = fastmeta.InstanceLabels(y, classes, 0.8)
        generator = torch.Generator().manual_seed(2)
        if kind != "reference":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            step = fastmeta.MetaStep(model, labels, optimizer, label_lr=200.0, compile=kind, unique_index=True)
        losses = []
        for _ in range(200):
            index = torch.randperm(64, generator=generator)[:n]
            if kind == "reference":
                rows = labels.label_logits[index]
                args = (reference.instance_probs, x[index], clean, y_meta)
                look = reference.SGDState(0.1)
                losses.append(reference.label_gradient(model, rows, *args, lookahead=look).meta_loss)
                labels.label_logits[index], _ = reference.meta_step(model, rows, *args, label_lr=200.0, optimizer=look)
            else:
                losses.append(step((x[index], index), (clean, y_meta)).meta_loss)
        return torch.stack(losses)

    truth = curve("reference")
    assert float(truth[0] - truth[-1]) > 0.1  # something was learned
    for kind in ("off", compile):
        assert float(((curve(kind) - truth) / truth).abs().max()) < 1e-4, kind


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimizer": "adam", "lookahead": 0.1}, r"torch\.optim\.SGD, not Adam"),
        ({"on_grad": lambda grads: None}, "on_grad is Python"),
        ({"tangent": "difference"}, "tangent by differences"),
    ],
)
def test_what_has_no_graph_runs_eagerly_and_says_so(change, reason):
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    make = torch.optim.Adam if change.pop("optimizer", "") == "adam" else torch.optim.SGD
    optimizer = make(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, compile="trace", **change)
    with pytest.warns(UserWarning, match=reason):
        assert bool(step(case.train, case.meta).finite)
    assert "runs eagerly" in step.explain()


class Peeking(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 10)

    def forward(self, x):
        z = self.inner(x)
        return z * 2 if float(z.detach().sum()) > 0 else z


class ByNumpy(Peeking):
    def forward(self, x):
        return self.inner(torch.from_numpy(x.numpy() * 2))


VALUE = "the model asks for the value of a tensor, which a graph does not know, in "


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Peeking, rf"{VALUE}test_compiled\.py:\d+, `return z \* 2 if float\(.*\) > 0 else z`; of a branch make"),
        (ByNumpy, r"numpy.* in test_compiled\.py:\d+, `return self\.inner\(torch\.from_numpy\(x\.numpy\(\) \* 2\)\)`"),
        (
            lambda: nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10, momentum=None)),
            rf"{VALUE}batchnorm\.py:\d+, `.*1\.0 / float\(self\.num_batches_tracked\)`",
        ),
    ],
)
def test_a_model_that_reads_values_runs_eagerly_and_its_line_is_named(model, reason):
    case = cases.make("mlp")
    case.model = model().to(F64)
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=1.0, compile="trace")
    with pytest.warns(UserWarning, match=f"runs eagerly: .*{reason}"):
        step(case.train, case.meta)


def test_batch_norm_on_cuda_is_traced_in_its_functional_form():
    """torch picks cuDNN's batch norm on CUDA, which has none. No GPU is needed to see what it picks."""
    with FakeTensorMode():
        x, mean, var = (torch.empty(shape, device="cuda") for shape in ((4, 3, 8, 8), (3,), (3,)))
        weight, bias = torch.empty(3, device="cuda"), torch.empty(3, device="cuda")

        def forward(x, weight, bias, mean, var):
            mean, var = mean.clone(), var.clone()
            return [nn.functional.batch_norm(x, mean, var, weight, bias, True), mean, var]

        graph = trace(forward, [x, weight, bias, mean, var])
    names = [str(n.target) for n in graph.graph.nodes if "batch_norm" in str(n.target)]
    assert names == ["aten._native_batch_norm_legit_functional.default"]


def test_a_trace_sees_the_layout_of_cudnns_convolutions():
    """A channels_last image stays one, so that no view of the graph is made for another layout."""
    with FakeTensorMode():
        x = torch.empty(5, 4, 6, 6, device="cuda").contiguous(memory_format=torch.channels_last)
        graph = trace(lambda x, w: [nn.functional.conv2d(x, w)], [x, torch.empty(7, 4, 3, 3, device="cuda")])
    (conv,) = [n for n in graph.graph.nodes if "convolution" in str(n.target)]
    assert conv.meta["val"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("lookahead", ["sgd", "optimizer", 0.05])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_host_is_in_a_graph(family, lookahead):
    """A tensor made from a Python number is copied from the host at every run, which no CUDA graph can hold."""
    case = cases.make("mlp")
    labels = make_labels(family, case)
    params = list(case.model.parameters())
    optimizer = torch.optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.03}], lr=0.1, momentum=0.9)
    step = fastmeta.MetaStep(
        case.model, labels, optimizer, label_lr=1.0, lookahead=lookahead, compile="trace", approx="every:2"
    )
    for _ in range(2):
        step(case.train, case.meta)
    assert [[n.target for n in g.graph.nodes if n.op == "get_attr"] for g in step._graphs.graphs] == [[], []]


def test_hidden_writes_are_refused():
    x = torch.randn(4, 3)

    def write(t):
        t = t.clone()
        torch.ops.aten.batch_norm(t, None, None, None, None, True, 0.1, 1e-5, False)
        return [t]

    assert trace(write, [x])  # decomposes into what has a functional form

    @torch.library.custom_op("fastmeta_test::bump", mutates_args=("x",))
    def bump(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x.clone()

    bump.register_fake(lambda x: torch.empty_like(x))
    with pytest.raises((Untraceable, RuntimeError)):
        trace(lambda t: [bump(t.clone())], [x])


def test_what_inductor_made_is_found_again_by_another_process():
    """The function is a new one, the cache that of this machine: an empty one would first be filled for a minute."""
    new = time.time()
    script = f"""
import torch
from torch._dynamo.utils import counters
from fastmeta.meta.engines import through_inductor, trace
counters.clear()
x = torch.ones(3, 2)
run = through_inductor(trace(lambda t: [t * 2 + {new}], [x]), [x])
assert torch.allclose(run(x)[0], x * 2 + {new})
told = [counters["inductor"]["fxgraph_cache_" + end] for end in ("miss", "hit")]
"""
    here: dict = {}
    exec(script, here)
    assert here["told"] == [1, 0]
    done = subprocess.run([sys.executable, "-c", script + "print(told)"], capture_output=True, text=True, check=True)
    assert done.stdout == "[0, 1]\n"


def test_wrong_mode_is_named():
    case = cases.make("mlp")
    labels = make_labels(fastmeta.InstanceLabels, case)
    with pytest.raises(ValueError, match="compile must be one of off, trace, full, got 'on'"):
        fastmeta.MetaStep(case.model, labels, torch.optim.SGD(case.model.parameters(), lr=0.1), compile="on")


@pytest.mark.slow
def test_a_sooner_look_for_vector_units_finds_the_same(tmp_path):
    """In a process without, with it in an empty cache, and with it where the answers lie on disk."""
    look = "from torch._inductor.cpu_vec_isa import valid_vec_isa_list as units; print(*map(str, units()), sep=';')"
    ours = "from fastmeta.meta.engines.inductor import _find_vector_units as find; find(); "

    def told(script, cache):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / cache)}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    truth = told(look, "usual")
    assert [told(ours + look, "ours") for _ in range(2)] == [truth] * 2
    assert not truth.strip() or list((tmp_path / "ours").rglob("*.load_ok"))
