"""Labels that move once an epoch: first the path and its changes, held against plain torch, then the moves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from fastmeta.functional.evaluation import recurrent_backward
from tests.support.cases import make
from tests.support.label_tables import Sparse
from tests.support.losses import LOSSES, loss_of

F64 = torch.float64


def batches(case, size=3):
    """The training set of a case: its train batch, cut."""
    return [(case.x[rows], case.index[rows]) for rows in torch.arange(len(case.index)).split(size)]


def whole(changes):
    parts = list(changes)
    return tuple(torch.cat([getattr(part, name) for part in parts]) for name in ("index", "logits", "change"))


def naive_change(model, x, clean, lr, momentum):
    """A copy in evaluation mode, and torch's own SGD."""
    ahead = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD([p for p in ahead.parameters() if p.requires_grad], lr=lr, momentum=momentum)
    losses = []
    for x_meta, y_meta in clean:
        loss = F.cross_entropy(ahead(x_meta), y_meta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return ahead(x) - copy.deepcopy(model).eval()(x), losses


def centred(t):
    return t - t.mean(1, keepdim=True)


@pytest.mark.parametrize("name", ["mlp", "resnet", "attention", "lstm", "embedding"])
def test_changes_are_those_of_a_copy_that_takes_the_clean_steps(name):
    case = make(name, 5)
    clean = [(case.x_meta[rows], case.y_meta[rows]) for rows in torch.arange(12).split(4)]
    want, losses = naive_change(case.model, case.x, [*clean, clean[0]], 0.1, 0.9)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
    lookahead = fastmeta.EpochLookahead(case.model, labels, steps=4, lr=0.1)
    index, _, change = whole(lookahead.changes(batches(case), clean))
    assert torch.equal(index, case.index)
    torch.testing.assert_close(change, want, rtol=1e-10, atol=1e-12)
    result = lookahead.update(batches(case), clean)
    assert result.meta_loss == pytest.approx(losses, rel=1e-12)
    assert (result.rows, result.clean_rows, result.skipped, result.finite) == (8, 16, 0, True)
    assert result.row_forwards == 2 * 8 + 3 * 16
    assert result.change == pytest.approx(float(centred(want).abs().amax(1).mean()), rel=1e-9)


def richardson(f, h):
    """The limit of f(h) for h -> 0, up to h^3."""
    one, two, four = f(h), f(h / 2), f(h / 4)
    return (8 * four - 6 * two + one) / 3


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_one_small_step_is_the_tangent_of_an_exact_step(name):
    case = make(name, 5)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)

    def tangent(lr):
        lookahead = fastmeta.EpochLookahead(case.model, labels, steps=1, lr=lr)
        return whole(lookahead.changes([case.train], case.meta))[2] / -lr

    case.model.eval()
    exact = fastmeta.meta_gradient(case.model, labels, case.train, case.meta, lr=0.0)
    assert float((richardson(tangent, 1e-5) - exact.tangent).norm() / exact.tangent.norm()) < 1e-7


@pytest.mark.parametrize("name", LOSSES)
def test_one_small_step_is_the_meta_gradient_of_any_loss(name):
    """An SGD of rate 1 moves the loss by the gradient, which an exact step has with lambda / n."""
    case = make("mlp", 5)

    def moved(lr):
        loss = loss_of(name, case)
        optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
        start = {k: p.detach().clone() for k, p in loss.named_parameters()}
        lookahead = fastmeta.EpochLookahead(case.model, loss, steps=1, lr=lr, loss_optimizer=optimizer)
        assert lookahead.update([case.train], case.meta).finite
        return {k: (start[k] - p.detach()) / lr for k, p in loss.named_parameters()}

    for key, want in gradient_at_theta(case, loss_of(name, case)).items():
        limit = richardson(lambda lr, key=key: moved(lr)[key], 1e-4)
        assert float((limit - want / 8).norm() / (want / 8).norm()) < 1e-6, key


def gradient_at_theta(case, loss):
    """-d/dphi sum <v_i(phi), u_i>, u = J g with g at theta."""
    u = fastmeta.meta_gradient(case.model, loss, case.train, case.meta, lr=0.0).tangent
    logits = case.model(case.x).detach().requires_grad_()
    (v,) = torch.autograd.grad(loss(logits, case.index, case.x).sum(), logits, create_graph=True)
    phi = dict(loss.named_parameters())
    grads = torch.autograd.grad(-(v * u).sum(), list(phi.values()))
    return dict(zip(phi, grads, strict=True))


def test_class_labels_move_by_the_mean_over_each_class():
    case = make("mlp", 5)
    labels = fastmeta.ClassLabels(case.targets, 5, 0.7, dtype=F64)
    lookahead = fastmeta.EpochLookahead(case.model, labels, steps=3, eta=0.1)
    _, _, change = whole(lookahead.changes([case.train], case.meta))
    result = lookahead.update(batches(case), case.meta)
    assert result.finite
    given = case.targets[case.index]
    for c in range(5):
        dz = change[given == c]
        want = 0.3
        if len(dz):
            own = dz[:, c]
            want += 0.1 * float(((dz.sum(1) - own) / 4 - own).mean())
        assert float(labels.alpha[c]) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_class_labels_stay_in_their_range(start):
    case = make("mlp", 5)
    labels = fastmeta.ClassLabels(case.targets, 5, start, dtype=F64)
    fastmeta.EpochLookahead(case.model, labels, steps=5, lr=0.5, eta=100.0).update([case.train], case.meta)
    assert float(labels.alpha.min()) >= 0
    assert float(labels.alpha.max()) <= 1


def test_rows_of_a_table_move_by_eta_times_their_change():
    case = make("mlp", 5)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
    start = labels.label_logits.clone()
    lookahead = fastmeta.EpochLookahead(case.model, labels, steps=3, eta=0.25)
    _, logits, change = whole(lookahead.changes([case.train], case.meta))
    v = logits.softmax(1) - labels.probs(case.index)
    result = lookahead.update(batches(case), case.meta)
    want = start.clone()
    want[case.index] += 0.25 * centred(change)
    torch.testing.assert_close(labels.label_logits, want, rtol=1e-12, atol=1e-14)
    assert result.alignment == pytest.approx(float(-(v * change).sum(1).mean()), rel=1e-9)
    # rows that were not looked at stay, and sums of rows too
    torch.testing.assert_close(labels.label_logits.sum(1), start.sum(1))


def test_a_row_that_comes_twice_moves_twice():
    case = make("mlp", 5)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
    start = labels.label_logits.clone()
    lookahead = fastmeta.EpochLookahead(case.model, labels, steps=2)
    _, _, change = whole(lookahead.changes([case.train], case.meta))
    lookahead.update([case.train, case.train], case.meta)
    torch.testing.assert_close((labels.label_logits - start)[case.index], 0.6 * centred(change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_of_ones_own_has_the_bits_of_the_dense_one(dtype):
    case = make("mlp", 5, dtype=torch.float32)
    tables = [fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=dtype, table=t) for t in (None, Sparse)]
    for labels in tables:
        lookahead = fastmeta.EpochLookahead(case.model, labels, steps=3, lr=0.2)
        for _ in range(3):
            assert lookahead.update(batches(case), case.meta).finite
    every = torch.arange(len(case.targets))
    assert torch.equal(*(labels.rows(every) for labels in tables))
    assert set(tables[1].table.moved) == set(case.index.tolist())


def test_a_table_of_bfloat16_is_rounded_stochastically_and_draws_anew():
    torch.manual_seed(0)
    targets, x = torch.randint(4, (512,)), torch.randn(512, 6)
    model = nn.Linear(6, 4)
    wide = fastmeta.InstanceLabels(targets, 4, 0.7)
    labels = fastmeta.InstanceLabels(targets, 4, 0.7, dtype=torch.bfloat16)
    clean = x[:16] * 2, targets[:16]
    for table in (wide, labels):
        lookahead = fastmeta.EpochLookahead(model, table, steps=1, lr=1e-3, eta=0.05)
        for _ in range(40):  # each move is far below the distance of two numbers of bfloat16
            lookahead.update((x, torch.arange(512)), clean)
    assert int(labels.label_step) == 40
    start = fastmeta.InstanceLabels(targets, 4, 0.7).label_logits
    moved, want = labels.label_logits.float() - start.bfloat16().float(), wide.label_logits - start
    assert float((moved * want).sum() / want.square().sum()) == pytest.approx(1, abs=0.15)


class Busy(nn.Module):
    """Everything that a forward may move: statistics, dropout, counters."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 5))
        self.body[1].momentum = 0.3
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.seen = 0

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        return self.body(x) + 0 * torch.rand(())


def busy_case():
    case = make("mlp", 5)
    case.model = Busy().double()
    case.model(case.x)  # statistics of something
    case.model.body[2].eval()
    return case


def everything(model, *optimizers):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    return state, modes, model.seen, [p.grad for p in model.parameters()], torch.get_rng_state()


def same(a, b):
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    assert a[1:4] == b[1:4]
    assert torch.equal(a[4], b[4])


def test_nothing_but_the_loss_moves():
    case = busy_case()
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
    before, start = everything(case.model), labels.label_logits.clone()
    result = fastmeta.EpochLookahead(case.model, labels, steps=4).update(batches(case), case.meta)
    same(everything(case.model), before)
    assert result.finite
    assert not torch.equal(labels.label_logits, start)


def test_statistics_are_used_as_they_are_and_dropout_is_off():
    case = busy_case()
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
    clean = [case.meta] * 3
    want, _ = naive_change(case.model, case.x, clean, 0.1, 0.9)
    lookahead = fastmeta.EpochLookahead(case.model, labels, steps=3, lr=0.1)
    torch.testing.assert_close(whole(lookahead.changes([case.train], clean))[2], want, rtol=1e-10, atol=1e-12)


def broken_loader(case):
    yield case.x[:4], case.index[:4]
    raise OSError("the disk is gone")


def test_an_error_in_the_middle_leaves_all_as_it_was():
    for family in (fastmeta.InstanceLabels, fastmeta.ClassLabels):
        case = busy_case()
        labels = family(case.targets, 5, 0.7, dtype=F64)
        before, start = everything(case.model), copy.deepcopy(labels.state_dict())
        lookahead = fastmeta.EpochLookahead(case.model, labels, steps=2)
        with pytest.raises(OSError, match="the disk"):
            lookahead.update(broken_loader(case), case.meta)
        with pytest.raises(ValueError, match="index must lie in"):
            lookahead.update([case.train, (case.x, case.index + 100)], case.meta)
        same(everything(case.model), before)
        assert all(torch.equal(labels.state_dict()[k], v) for k, v in start.items())


@pytest.mark.parametrize("name", ["instance", "class", "weighting net"])
def test_a_path_that_is_not_finite_moves_nothing(name):
    case = make("mlp", 5)
    optimizer = None
    if name == "weighting net":
        loss = loss_of(name, case)
        optimizer = torch.optim.Adam(loss.parameters())
    else:
        family = {"instance": fastmeta.InstanceLabels, "class": fastmeta.ClassLabels}[name]
        loss = family(case.targets, 5, 0.7, dtype=F64)
    start = copy.deepcopy(loss.state_dict())
    x_meta = case.x_meta.clone()
    x_meta[0, 0] = torch.nan
    lookahead = fastmeta.EpochLookahead(case.model, loss, steps=2, loss_optimizer=optimizer)
    assert not lookahead.update([case.train], (x_meta, case.y_meta)).finite
    assert all(torch.equal(loss.state_dict()[k], v) for k, v in start.items())
    assert lookahead.update([case.train], case.meta).finite


@pytest.mark.parametrize("family", [fastmeta.InstanceLabels, fastmeta.ClassLabels])
def test_a_row_that_is_not_finite_is_skipped_and_counted(family):
    case = make("mlp", 5)
    x = case.x.clone()
    x[2, 0] = torch.inf
    results = []
    for train in ((x, case.index), (torch.cat([x[:2], x[3:]]), torch.cat([case.index[:2], case.index[3:]]))):
        labels = family(case.targets, 5, 0.7, dtype=F64)
        result = fastmeta.EpochLookahead(case.model, labels, steps=2).update(train, case.meta)
        results.append((labels.probs(), result.change, result.alignment, result.skipped))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-14)
    assert results[0][1:3] == pytest.approx(results[1][1:3], rel=1e-12)
    assert [r[3] for r in results] == [1, 0]


def test_frozen_parameters_stay_and_params_may_be_chosen():
    case = make("mlp", 5)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
    head = case.model[-1]
    chosen = fastmeta.EpochLookahead(case.model, labels, steps=3, params=head.parameters())
    (first,) = chosen.changes([case.train], case.meta)
    for p in case.model[:-1].parameters():
        p.requires_grad_(False)
    (second,) = fastmeta.EpochLookahead(case.model, labels, steps=3).changes([case.train], case.meta)
    torch.testing.assert_close(first.change, second.change, rtol=1e-12, atol=1e-14)


def test_two_forwards_of_each_train_row_without_a_graph():
    case = make("mlp", 5)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
    seen = []
    case.model.register_forward_hook(lambda module, args, out: seen.append((len(args[0]), torch.is_grad_enabled())))
    result = fastmeta.EpochLookahead(case.model, labels, steps=2).update(batches(case), case.meta)
    assert seen == [(12, True)] * 2 + [(3, False)] * 4 + [(2, False)] * 2
    assert sum(n * (3 if graph else 1) for n, graph in seen) == result.row_forwards


class Keywords(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, left, right):
        return {"logits": self.inner(left + right)}


@pytest.mark.parametrize("form", [lambda x: {"left": x, "right": x * 0}, lambda x: (x, x * 0)])
def test_inputs_of_every_form(form):
    case = make("mlp", 5)
    tables = []
    for model, of in ((case.model, lambda x: x), (Keywords(case.model), form)):
        labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
        train = [(of(x), index) for x, index in batches(case)]
        fastmeta.EpochLookahead(model, labels, steps=2).update(train, [(of(case.x_meta), case.y_meta)])
        tables.append(labels.label_logits)
    assert torch.equal(*tables)


def test_recurrent_layers_train_where_cudnn_has_no_other_backward():
    """cuDNN raises in evaluation mode; without a GPU, that they would train there and draw nothing."""
    model = nn.LSTM(4, 7, num_layers=2, dropout=0.5).eval()
    for kind, training in (("cpu", False), ("cuda", True)):
        with recurrent_backward(model, torch.device(kind)):
            assert (model.training, model.dropout) == (training, 0.0 if training else 0.5)
        assert (model.training, model.dropout) == (False, 0.5)


def test_loaders_and_single_batches():
    case = make("mlp", 5)
    rows = torch.utils.data.TensorDataset(case.x, case.index)
    clean = torch.utils.data.TensorDataset(case.x_meta, case.y_meta)
    tables = []
    for train, meta in (
        (case.train, case.meta),
        (torch.utils.data.DataLoader(rows, batch_size=3), torch.utils.data.DataLoader(clean, batch_size=12)),
        (iter(batches(case)), [case.meta]),
    ):
        labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
        fastmeta.EpochLookahead(case.model, labels, steps=3).update(train, meta)
        tables.append(labels.label_logits)
    for table in tables[1:]:
        torch.testing.assert_close(table, tables[0], rtol=1e-12, atol=1e-14)


def test_clean_batches_in_pieces_are_the_same():
    case = make("mlp", 5)
    tables = []
    for most in (None, 5):
        labels = fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64)
        fastmeta.EpochLookahead(case.model, labels, steps=3, micro_batch=most).update([case.train], case.meta)
        tables.append(labels.label_logits)
    torch.testing.assert_close(*tables, rtol=1e-12, atol=1e-14)


def test_under_autocast_and_no_grad():
    case = make("mlp", 5, dtype=torch.float32)
    labels = fastmeta.InstanceLabels(case.targets, 5, 0.7)
    start = labels.label_logits.clone()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert fastmeta.EpochLookahead(case.model, labels, steps=3, lr=0.2).update([case.train], case.meta).finite
    assert labels.label_logits.dtype == torch.float32
    assert not torch.equal(labels.label_logits, start)


def make_lookahead(**changes):
    case = make("mlp", 5)
    loss = changes.pop("loss", fastmeta.InstanceLabels(case.targets, 5, 0.7, dtype=F64))
    return case, fastmeta.EpochLookahead(changes.pop("model", case.model), loss, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 on, got 0"),
        ({"steps": 2.5}, "steps must be a whole number from 1 on, got 2.5"),
        ({"lr": -1}, "lr must be finite and >= 0, got -1"),
        ({"lr": float("nan")}, "lr must be finite and >= 0, got nan"),
        ({"eta": "big"}, "eta must be finite and >= 0, got 'big'"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"micro_batch": 0}, "micro_batch must be a whole number"),
        ({"model": "mlp"}, "model must be a torch.nn.Module, got str"),
        ({"loss": "labels"}, "loss must be InstanceLabels"),
        ({"model": nn.LazyLinear(5)}, "weight has no shape yet"),
        ({"model": nn.EmbeddingBag(11, 5, sparse=True)}, "sparse=True"),
        ({"loss_optimizer": 3}, "leave it out"),
    ],
)
def test_arguments_are_refused_by_name(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_lookahead(**changes)


def test_a_loss_that_an_optimizer_moves_needs_one_and_takes_no_eta():
    case = make("mlp", 5)
    loss = loss_of("sample weights", case)
    with pytest.raises(TypeError, match="needs loss_optimizer"):
        fastmeta.EpochLookahead(case.model, loss)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    with pytest.raises(TypeError, match="eta is the rate of label families; SampleWeights moves by loss_optimizer"):
        fastmeta.EpochLookahead(case.model, loss, loss_optimizer=optimizer, eta=0.3)


@pytest.mark.parametrize(
    ("train", "meta", "message"),
    [
        (lambda c: [(c.x, c.index, c.index)], lambda c: c.meta, r"the train batch must be a pair \(x, index\), got 3"),
        (lambda c: c.x, lambda c: c.meta, "train must be an iterable of batches, such as a DataLoader, got Tensor"),
        (lambda c: [(c.x, c.index.float())], lambda c: c.meta, "index must be an int64 vector"),
        (lambda c: [(c.x[:3], c.index)], lambda c: c.meta, r"logits must have shape \(8, 5\)"),
        (lambda c: c.train, lambda c: [], "meta gave no batch"),
        (lambda c: c.train, lambda c: iter([c.meta]), "meta gave 1 batch and no more, fewer than there are clean"),
        (lambda c: c.train, lambda c: (c.x_meta, c.y_meta + 9), r"y_meta must lie in \[0, 4\]"),
        (lambda c: c.train, lambda c: 5, "meta must be an iterable of batches, such as a DataLoader, got int"),
    ],
)
def test_batches_are_refused_by_name(train, meta, message):
    case, lookahead = make_lookahead(steps=3)
    before = lookahead.loss.label_logits.clone()
    with pytest.raises((TypeError, ValueError), match=message):
        lookahead.update(train(case), meta(case))
    assert torch.equal(lookahead.loss.label_logits, before)


def test_it_says_what_it_does():
    _, lookahead = make_lookahead(steps=7)
    assert "7 clean steps of SGD at rate 0.02, momentum 0.9" in repr(lookahead)
    assert "instance (N=24, num_classes=5), once an epoch, eta 0.3" in repr(lookahead)
