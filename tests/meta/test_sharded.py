"""A model under fully_shard on two processes equals the same model in whole, and autograd in one process."""

import json
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastmeta
from fastmeta.functional.fsdp_units import local
from tests.support.losses import Corrector, SampleWeights
from tests.support.meta import ETA, FAMILIES, draw, optimizers, relative, run_reference
from tests.support.ranks import run_ranks
from tests.support.sharded import built, labelled, part, shard, trained, whole

STEPS = 3
INSTANCE, CLASS = FAMILIES

#: against autograd: model, family, optimizer, look-ahead, how it is sharded
REFERENCE = {
    "mlp, fixed rate": ("mlp", INSTANCE, "plain", 0.3, "nested"),
    "mlp, class labels": ("mlp", CLASS, "nesterov", "optimizer", "root"),
    "groupnorm, Eq. (3)": ("groupnorm", INSTANCE, "momentum", "sgd", "gathered"),
    "attention, nesterov": ("attention", INSTANCE, "nesterov", "optimizer", "nested"),
    "attention, dampened": ("attention", CLASS, "dampened", "optimizer", "gathered"),
    "embedding": ("embedding", INSTANCE, "momentum", "optimizer", "root"),
}

#: against the same model in whole on the same ranks: model, family, how it is sharded, and how the step is made
WHOLE = {
    "BatchNorm": ("resnet", INSTANCE, "nested", {}),
    "dropout, frozen, others": ("dropped", INSTANCE, "nested", {}),
    "dropout, gathered": ("dropped", CLASS, "gathered", {}),
    "tied, checkpointed": ("tied", INSTANCE, "root", {}),
    "weights": ("mlp", INSTANCE, "nested", {"weighted": True}),
    "normalised": ("groupnorm", INSTANCE, "nested", {"label_lr": None}),
    "normalised classes": ("mlp", CLASS, "nested", {"label_lr": None, "label_step": 0.2}),
    "delayed": ("mlp", INSTANCE, "nested", {"approx": "delayed"}),
    "every": ("mlp", INSTANCE, "nested", {"approx": "every:2"}),
    "last": ("mlp", INSTANCE, "nested", {"approx": "last:2"}),
    "sample weights": ("mlp", SampleWeights, "nested", {}),
    "corrector": ("mlp", Corrector, "gathered", {}),
    "adam": ("mlp", INSTANCE, "nested", {"optimizer": "adam", "lookahead": 0.2}),
    "clipped": ("mlp", INSTANCE, "nested", {"clip": 0.05}),
    "autocast": ("groupnorm", INSTANCE, "nested", {"autocast": True, "dtype": torch.float32}),
    "float32": ("attention", INSTANCE, "nested", {"dtype": torch.float32}),
    "poisoned": ("mlp", INSTANCE, "nested", {"poison": True}),
    "own rows": ("mlp", INSTANCE, "nested", {"own_rows": True, "label_lr": None}),
    "replicas": ("mlp", INSTANCE, "replicas", {}),
}


#: not in the default run
SLOW = [
    *("mlp, fixed rate", "attention, dampened", "dropout, gathered", "normalised", "normalised classes", "delayed"),
    *("every", "last", "sample weights", "adam", "autocast", "float32", "weights"),
]


def sharded_model(case, size, how):
    if how == "replicas":
        mesh = dist.device_mesh.init_device_mesh("cpu", (size, 1), mesh_dim_names=("replicas", "shards"))
        return shard(case.model, mesh)
    return shard(case.model, dist.device_mesh.init_device_mesh("cpu", (size,)), how)


def against_reference(rank, size, name, family, optimizer, lookahead, how):
    case, labels = labelled(name, family)
    sharded_model(case, size, how)
    kw = {"lookahead": lookahead, "label_lr": ETA[family.family], "unique_index": True}
    step = built(case, labels, optimizer, process_group=dist.group.WORLD, **kw)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        index, x, x_meta, y_meta = (part(t, rank, size) for t in draw(case, generator))
        assert bool(step((x, index), (x_meta, y_meta)).finite)
    return labels.state_dict(), whole(case.model.state_dict())


def clip(largest):
    def on_grad(grads):
        norm = torch.nn.utils.get_total_norm(grads.values())
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        for g in grads.values():
            g.mul_((largest / norm).clamp(max=1))

    return on_grad


def run(rank, size, name, family, how, setting):
    """Labels, model, optimizer and results of three steps; `how` is None for a model in whole."""
    setting = dict(setting)
    dtype, weighted, autocast, poison = (setting.pop(k, None) for k in ("dtype", "weighted", "autocast", "poison"))
    case, labels = (
        labelled(name, family, dtype=dtype or torch.float64)
        if family in FAMILIES
        else (labelled(name, INSTANCE)[0], None)
    )
    if labels is None:
        torch.manual_seed(5)
        labels = family(case.targets, case.num_classes)
        setting["loss_optimizer"] = torch.optim.Adam(labels.parameters(), lr=0.01)
    else:
        setting.setdefault("label_lr", ETA[family.family])
    if how is not None:
        sharded_model(case, size, how)
    setting.setdefault("lookahead", "optimizer")
    if setting.pop("optimizer", "") == "adam":
        optimizer = torch.optim.AdamW(trained(case.model), lr=0.01)
    else:
        optimizer = optimizers(trained(case.model))["nesterov"]
    if largest := setting.pop("clip", None):
        setting["on_grad"] = clip(largest)
    step = fastmeta.MetaStep(case.model, labels, optimizer, process_group=dist.group.WORLD, **setting)
    torch.manual_seed(10 + rank)
    results = []
    for i in range(STEPS):
        x, index, x_meta, y_meta = (part(t, rank, size) for t in (case.x, case.index, case.x_meta, case.y_meta))
        x = x * (1 + 0.1 * i) if x.is_floating_point() else x
        if poison and i == 1 and rank == 1:
            x = x * float("nan")
        weight = torch.linspace(0.5, 1.5, len(index), dtype=x.dtype) if weighted else None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(autocast)):
            results.append(step((x, index), (x_meta, y_meta), weight=weight))
        case.model(x)  # leaves the root's parameters gathered
    state = {f"{i}.{k}": t for i, s in enumerate(optimizer.state.values()) for k, t in s.items()}
    return labels.state_dict(), whole(case.model.state_dict()), whole(state), results


def differences(ours, theirs):
    """The largest of all, relative."""
    return max(relative(a.double(), theirs[k].double()) for k, a in ours.items() if a.is_floating_point())


def compared(rank, size, key):
    name, family, how, setting = WHOLE[key]
    theirs, ours = run(rank, size, name, family, None, setting), run(rank, size, name, family, how, setting)
    found = {kind: differences(a, b) for kind, a, b in zip(("labels", "model", "state"), ours, theirs, strict=False)}
    for field in ("train_loss", "meta_loss", "logits", "alignment", "label_grad_norm"):
        a, b = (torch.stack([getattr(r, field).double() for r in of[3]]).nan_to_num() for of in (ours, theirs))
        found[field] = relative(a, b)
    return found | {"finite": [bool(r.finite) for r in ours[3]], "same": [bool(r.finite) for r in theirs[3]]}


class Faulty(torch.autograd.Function):
    """tanh that raises in the call `forward`, with a rule for tangents that is `wrong`."""

    forward_calls, raises_in, wrong = 0, 0, False

    @classmethod
    def told(cls, raises_in=0, wrong=False):
        cls.forward_calls, cls.raises_in, cls.wrong = 0, raises_in, wrong
        return Layer(cls.apply)

    @staticmethod
    def forward(x):
        Faulty.forward_calls += 1
        if Faulty.forward_calls == Faulty.raises_in:
            raise ValueError("the model fails")
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0] ** 2)

    @staticmethod
    def jvp(ctx, tangent):
        return 0 * tangent if Faulty.wrong else tangent * (1 - ctx.saved_tensors[0] ** 2)


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def reentrant(x):
    return torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=True)


def raising(grads):
    raise KeyError("on_grad fails")


def parallel(model, mesh):
    """FSDP beside tensor parallelism."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    both = dist.device_mesh.init_device_mesh("cpu", (1, mesh.size()), mesh_dim_names=("data", "parts"))
    parallelize_module(model, both["parts"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=both["data"])


def hooked(model, mesh):
    shard(model, mesh)[2].register_forward_hook(print)


def optimizer_in_backward(model, mesh):
    next(shard(model, mesh).parameters()).register_post_accumulate_grad_hook(print)


def ignored(model, mesh):
    shard(model, mesh, "root", ignored_params={model[0].weight})


def in_part(model, mesh):
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[0], mesh=mesh)


def without_sync(model, mesh):
    shard(model, mesh).set_requires_gradient_sync(False)


def divided(model, mesh):
    for unit in list(shard(model, mesh).modules()):
        if hasattr(unit, "set_gradient_divide_factor"):
            unit.set_gradient_divide_factor(1.0)


#: before or in the first step: layer in the middle, how it is sharded, arguments; the error's kind and part of it
REFUSED = {
    "compile": (nn.Tanh, shard, {"compile": "trace"}, "ValueError", "compile='trace' is not for a model under"),
    "micro_batch": (nn.Tanh, shard, {"micro_batch": 3}, "ValueError", "micro_batch is not for a model under"),
    "reverse": (nn.Tanh, shard, {"tangent": "reverse"}, "ValueError", "tangent='reverse' is not for a model under"),
    "difference": (nn.Tanh, shard, {"approx": "difference"}, "ValueError", "approx='difference' is not for a"),
    "no group": (nn.Tanh, shard, {"process_group": None}, "ValueError", "pass process_group=mesh.get_group()"),
    "in part": (nn.Tanh, in_part, {}, "ValueError", "call fully_shard on it too, last"),
    "hooks": (nn.Tanh, hooked, {}, "ValueError", "has a forward hook of somebody else, print"),
    "optimizer in backward": (nn.Tanh, optimizer_in_backward, {}, "ValueError", "has a post-accumulate-grad hook"),
    "ignored": (nn.Tanh, ignored, {}, "ValueError", "0.weight is trained and no shard"),
    "tensor parallelism": (nn.Tanh, parallel, {}, "ValueError", "tensor parallelism and other layouts are refused"),
    "no sync": (nn.Tanh, without_sync, {}, "RuntimeError", "set_requires_gradient_sync(False) is in force"),
    "sums": (nn.Tanh, divided, {}, "Unfit", "FSDP does not average (set_gradient_divide_factor"),
    "reentrant": (lambda: Layer(reentrant), shard, {}, "RuntimeError", "use_reentrant=False"),
    "wrong rule": (lambda: Faulty.told(wrong=True), shard, {}, "Unfit", "run fastmeta.check on the model before"),
    "on_grad": (nn.Tanh, shard, {"on_grad": raising}, "KeyError", "on_grad fails"),
    **{
        f"forward {k}": (lambda k=k: Faulty.told(raises_in=k), shard, {}, "ValueError", "the model fails")
        for k in range(1, 5)
    },
}


def refused(rank, size, key):
    """What a step raises, and whether all stands as before."""
    layer, how, kw, *_ = REFUSED[key]
    case, labels = labelled("mlp", INSTANCE)
    case.model = nn.Sequential(nn.Linear(6, 16), layer(), nn.Linear(16, 10)).double()
    how(case.model, dist.device_mesh.init_device_mesh("cpu", (size,)))
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    before = {k: local(p).clone() for k, p in case.model.named_parameters()}, labels.label_logits.clone()
    batch = [part(t, rank, size) for t in (case.x, case.index, case.x_meta, case.y_meta)]
    found = {"kind": "", "text": ""}
    try:
        step = fastmeta.MetaStep(
            case.model, labels, optimizer, **{"label_lr": 20.0, "process_group": dist.group.WORLD, **kw}
        )
        step(batch[:2], batch[2:])
    except (ValueError, RuntimeError, KeyError) as error:
        found = {"kind": type(error).__name__, "text": str(error)}
    stands = all(torch.equal(local(p), before[0][k]) for k, p in case.model.named_parameters())
    found["stands"] = stands and torch.equal(labels.label_logits, before[1]) and not optimizer.state
    found["free of gradients"] = all(p.grad is None for p in case.model.parameters())
    if key.startswith("forward"):  # such a step can be taken again
        for _ in range(2):
            step(batch[:2], batch[2:])
        found["labels"] = labels.label_logits.tolist()
    return found


def functions(rank, size):
    """What the functions of a model say of one that is sharded."""
    case, labels = labelled("mlp", INSTANCE)
    shard(case.model, dist.device_mesh.init_device_mesh("cpu", (size,)))
    found = {}
    for function in (fastmeta.label_gradient, fastmeta.meta_gradient, fastmeta.check):
        try:
            function(case.model, labels, case.train, case.meta, lr=0.1)
        except TypeError as error:
            found[function.__name__] = str(error)
    try:
        fastmeta.EpochLookahead(case.model, labels)
    except TypeError as error:
        found["EpochLookahead"] = str(error)
    return found


def narrow(rank, size):
    """Relative errors of u, and of what labels move by, where FSDP computes in bfloat16, beside float32 in whole."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    moved, logits = [], []
    for sharded in (False, True):
        case, labels = labelled("groupnorm", INSTANCE, dtype=torch.float32)
        if sharded:
            shard(case.model, dist.device_mesh.init_device_mesh("cpu", (size,)), mp_policy=policy)
        step = built(case, labels, label_lr=40.0, process_group=dist.group.WORLD)
        x, index, x_meta, y_meta = (part(t, rank, size) for t in (case.x, case.index, case.x_meta, case.y_meta))
        start = labels.label_logits.clone()
        result = step((x, index), (x_meta, y_meta))
        assert bool(result.finite)
        moved.append(labels.label_logits - start)
        logits.append(result.logits)
    return {"logits": relative(logits[1], logits[0]), "labels": relative(moved[1], moved[0])}


def worker(rank, size, folder, slow):
    for key, job in REFERENCE.items():
        if (key in SLOW) == slow:
            torch.save(against_reference(rank, size, *job), f"{folder}/{key} {rank}.pt")
    found = {"whole": {key: compared(rank, size, key) for key in WHOLE if (key in SLOW) == slow}}
    if not slow:
        found["refused"] = {key: refused(rank, size, key) for key in REFUSED}
        found["functions"], found["narrow"] = functions(rank, size), narrow(rank, size)
    with open(f"{folder}/found {rank}.json", "w") as file:
        json.dump(found, file)


def keys(jobs):
    return [pytest.param(key, marks=[pytest.mark.slow] * (key in SLOW)) for key in jobs]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of the jobs that are slow, or of the others; all of them have one run of two ranks."""

    @cache
    def folder(slow):
        path = tmp_path_factory.mktemp("sharded")
        run_ranks(worker, 2, path, str(path), slow)
        return path

    return folder


def found(folder):
    """By both ranks."""
    return [json.loads((folder / f"found {rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("key", keys(REFERENCE))
def test_equals_autograd_in_one_process(ran, key):
    name, family, optimizer, lookahead, _ = REFERENCE[key]
    case, labels = labelled(name, family)
    group = optimizers(list(case.model.parameters()))[optimizer].param_groups[0]
    start = labels.state_dict()
    parameter = "label_logits" if family is INSTANCE else "alpha"
    before = start[parameter].clone()
    table = run_reference(case, labels, lookahead, group, STEPS)
    assert relative(table, before) > 1e-4
    for rank in range(2):
        learned, model = torch.load(ran(key in SLOW) / f"{key} {rank}.pt")
        assert relative(learned[parameter], table) < 1e-12
        for k, p in case.model.state_dict().items():
            assert relative(model[k], p) < 1e-12, k


@pytest.mark.parametrize("key", keys(WHOLE))
def test_equals_the_model_in_whole(ran, key):
    bound = {"float32": 2e-5, "autocast": 0.05}.get(key, 1e-12)
    for rank in range(2):
        said = found(ran(key in SLOW))[rank]["whole"][key]
        finite = said.pop("finite")
        assert finite == said.pop("same") == [True, key != "poisoned", True]
        assert {kind: d for kind, d in said.items() if not d < bound} == {}


@pytest.mark.parametrize("key", REFUSED)
def test_what_it_cannot_is_refused_and_nothing_has_moved(ran, key):
    *_, kind, text = REFUSED[key]
    for rank in range(2):
        said = found(ran(False))[rank]["refused"][key]
        assert said["kind"] == kind
        assert text in said["text"]
        assert "\n" not in said["text"]
        assert said["stands"]
        assert said["free of gradients"]


def test_after_an_error_in_a_forward_steps_go_on(ran):
    for rank in range(2):
        after = [
            torch.tensor(said["labels"]) for said in found(ran(False))[rank]["refused"].values() if "labels" in said
        ]
        assert len(after) == 4
        assert max(relative(t, after[0]) for t in after[1:]) < 1e-14


def test_functions_of_a_model_name_the_step(ran):
    for rank in range(2):
        said = found(ran(False))[rank]["functions"]
        assert len(said) == 4
        assert all("fastmeta.MetaStep takes it as it is" in text for text in said.values())


def test_bfloat16_of_fsdp_is_as_near_as_bfloat16_is(ran):
    for rank in range(2):
        assert 1e-4 < found(ran(False))[rank]["narrow"]["logits"] < 2e-2
        assert 1e-3 < found(ran(False))[rank]["narrow"]["labels"] < 0.1
