"""Methods that are plugged in from outside of the package: their options, models, optimizers, state and figures."""

import signal
import sys

import pytest
import torch

import fastmeta
from fastmeta.data import InputError
from fastmeta.training import Interrupted, TrainConfig
from tests.support.plugs import files
from tests.support.runs import two_classes
from tests.support.stopped import Kill, config

# Two networks that pick samples for each other; the second has an Adam of its own, with a schedule of its own.
PAIR = """
from dataclasses import dataclass
import torch
from torch.nn.functional import cross_entropy
from fastmeta.methods import Method, Outcome


class Mean:
    def __init__(self, size):
        self.loss, self.visits, self.names = torch.zeros(size), 0, ["a"]
        self.draws = torch.Generator().manual_seed(3)

    def state_dict(self):
        return {"loss": self.loss, "visits": self.visits, "names": self.names, "draws": self.draws.get_state()}

    def load_state_dict(self, state):
        self.loss, self.visits, self.names = state["loss"], state["visits"], state["names"]
        self.draws.set_state(state["draws"])


class Pair(Method):
    @dataclass(frozen=True)
    class Config:
        keep: float = 0.9
        \"\"\"Share of each batch that is kept.\"\"\"
        rounds: int = 1
        \"\"\"Not used.\"\"\"

    def setup(self, context):
        self.context = context
        self.a, self.b = context.model(), context.model("second")
        self.sgd = context.optimizer(self.a.parameters())
        self.adam = torch.optim.AdamW(self.b.parameters(), lr=1e-3, amsgrad=True)
        self.decay = torch.optim.lr_scheduler.StepLR(self.adam, 4, gamma=0.5)
        self.mean = Mean(len(context.targets))

    def stateful(self):
        return {"adam": self.adam, "mean": self.mean, "decay": self.decay}

    def predictor(self):
        return self.a

    def figures(self):
        return {"mean_loss": self.mean.loss.mean(), "visits": self.mean.visits, "unknown": None}

    def step(self, batch):
        x, y = self.context.network_input(batch.x), self.context.targets[batch.index]
        first, second = self.a(x), self.b(x)
        losses = [cross_entropy(z, y, reduction="none") for z in (first, second)]
        kept = [loss.detach().argsort()[: int(self.config.keep * len(y))] for loss in losses]
        (losses[0][kept[1]].mean() + losses[1][kept[0]].mean()).backward()
        for optimizer in (self.sgd, self.adam):
            optimizer.step()
            optimizer.zero_grad()
        self.decay.step()
        noise = torch.rand(len(y), generator=self.mean.draws)
        self.mean.loss[batch.index] += losses[0].detach() * noise
        self.mean.visits += 1
        return Outcome(first.detach(), losses[0].detach().mean())
"""

# Weights of the samples by the meta gradient, as L2RW: it wants a meta batch, and labels stay as they are.
WEIGHTS = """
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from fastmeta.methods import Method, Outcome


class Weights(Method):
    uses_meta_batch = True

    def setup(self, context):
        self.context, self.model = context, context.model()
        self.optimizer = context.optimizer(self.model.parameters())

    def predictor(self):
        return self.model

    def step(self, batch):
        x, (x_meta, y_meta) = self.context.network_input(batch.x), batch.meta
        x_meta, y = self.context.network_input(x_meta), self.context.targets[batch.index]
        params = dict(self.model.named_parameters())
        eps = torch.zeros(len(y), requires_grad=True)
        logits = self.model(x)
        inner = (eps * cross_entropy(logits, y, reduction="none")).sum()
        grads = torch.autograd.grad(inner, params.values(), create_graph=True)
        moved = {k: p - 0.1 * g for (k, p), g in zip(params.items(), grads)}
        meta_loss = cross_entropy(functional_call(self.model, moved, (x_meta,)), y_meta)
        (pull,) = torch.autograd.grad(meta_loss, eps)
        weights = (-pull).clamp(min=0)
        weights = weights / weights.sum().clamp(min=1e-12)
        loss = (weights * cross_entropy(self.model(x), y, reduction="none")).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Outcome(logits.detach(), loss.detach(), meta_loss=meta_loss.detach())
"""

# The same by a learnable loss with an Adam of its own, moved by the engine.
LEARNABLE = """
import torch
from fastmeta import LearnableLoss, MetaStep
from fastmeta.methods import Method, Outcome
from torch.nn.functional import cross_entropy, softplus


class SampleWeights(LearnableLoss):
    def __init__(self, targets, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("targets", targets)
        self.raw = torch.nn.Parameter(torch.full((len(targets),), 0.5413))

    def forward(self, logits, index, x=None):
        return softplus(self.raw[index]) * cross_entropy(logits, self.targets[index], reduction="none")


class Learnable(Method):
    uses_meta_batch = True

    def setup(self, context):
        self.model, self.loss = context.model(), SampleWeights(context.targets, context.num_classes)
        self.adam = torch.optim.Adam(self.loss.parameters(), lr=0.1)
        optimizer = context.optimizer(self.model.parameters())
        options = {"transform": context.transform, "totals": context.totals}
        self.meta_step = MetaStep(self.model, self.loss, optimizer, loss_optimizer=self.adam, **options)

    def step(self, batch):
        r = self.meta_step((batch.x, batch.index), batch.meta)
        return Outcome(r.logits, r.train_loss, r.finite, r.meta_loss, counted=True)

    def predictor(self):
        return self.model

    def stateful(self):
        return {"loss": self.loss, "adam": self.adam, "meta_step": self.meta_step}

    def figures(self):
        weight = softplus(self.loss.raw.detach())
        return {"wrong": weight[::10].mean(), "right": weight[1::10].mean()}
"""

# Learned labels in a table of the method's own: it learns labels and wants no meta batch.
OWN_TABLE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from fastmeta.methods import Method, Outcome


class Table(nn.Module):
    def __init__(self, targets, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("targets", targets)
        self.register_buffer("p", nn.functional.one_hot(targets, num_classes).float())

    def __len__(self):
        return len(self.targets)

    def probs(self, index):
        return self.p[index]


class Bootstrap(Method):
    learns_labels = True

    def setup(self, context):
        self.context, self.model = context, context.model()
        self.optimizer = context.optimizer(self.model.parameters())
        self.labels = Table(context.targets, context.num_classes)

    def predictor(self):
        return self.model

    def step(self, batch):
        logits = self.model(self.context.network_input(batch.x))
        loss = cross_entropy(logits, self.labels.probs(batch.index))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        p = self.labels.p
        p[batch.index] = 0.8 * p[batch.index] + 0.2 * logits.detach().softmax(1)
        return Outcome(logits.detach(), loss.detach())
"""


@pytest.mark.parametrize(
    ("text", "spec", "options"),
    [
        (PAIR, "Pair", {"keep": 0.75}),
        (WEIGHTS, "Weights", None),
        (LEARNABLE, "Learnable", None),
        (OWN_TABLE, "Bootstrap", None),
    ],
)
def test_a_method_from_outside_trains_resumes_bitwise_and_is_loaded(plug, text, spec, options, tmp_path):
    name = f"{plug('method_from_outside', text)}:{spec}"
    made = lambda path: config(path, method=name, options=options, baselines="clean")  # noqa: E731
    unbroken = fastmeta.train(made(tmp_path / "unbroken"), data=two_classes())
    for at in ((name, 7), ("clean", 3)):
        path = tmp_path / f"stopped-{at[1]}"
        with pytest.raises(Interrupted) as stopped:
            fastmeta.train(made(path), data=two_classes(), listener=Kill(signal.SIGTERM, *at))
        assert "--trust-code" in stopped.value.way
        fastmeta.train(resume=path, data=two_classes(), trust_code=True)
        assert files(path) == files(unbroken.path)
    assert unbroken.summary["uses_meta_batch"] == (spec in ("Weights", "Learnable"))
    assert unbroken.summary["learns_labels"] == (spec == "Bootstrap")
    loaded = fastmeta.load_run(unbroken.path)  # whoever reads a finished run needs none of the method's code
    assert loaded.summary == unbroken.summary
    assert loaded.labels is None
    (last,) = [r for r in files(unbroken.path)[1] if r["run"] == name and r["epoch"] == 3]
    assert ("meta_loss" in last) == (spec in ("Weights", "Learnable"))
    assert ("labels_changed" in last) == (spec == "Bootstrap")
    if spec == "Learnable":  # every tenth given label of these data is wrong
        assert last["method_figures"]["wrong"] < last["method_figures"]["right"]
    if spec == "Pair":
        assert last["method_figures"]["visits"] == 15
        assert last["method_figures"]["mean_loss"] > 0
        assert unbroken.summary["method_figures"] == last["method_figures"]


def test_a_second_model_has_weights_of_its_own_and_the_same_in_each_run(plug, tmp_path):
    name = f"{plug('method_from_outside', PAIR)}:Pair"
    seen = []

    class Look(fastmeta.training.listener.Listener):
        def step(self, stage):
            if stage.step == 1:
                seen.append([p.detach().clone() for p in stage.context.models["second"].parameters()])
                seen.append([p.detach().clone() for p in stage.context.models["model"].parameters()])

    for k in range(2):
        fastmeta.train(
            config(tmp_path / str(k), method=name, baselines="none", epochs=1), data=two_classes(), listener=Look()
        )
    (second, first, again, _) = seen
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_options_are_values_flags_and_a_table(plug, tmp_path):
    from fastmeta.cli.train import parse

    name = f"{plug('method_from_outside', PAIR)}:Pair"
    written = TrainConfig(method=name, options={"keep": 0.5})
    assert (written.options.keep, written.options.rounds) == (0.5, 1)
    (tmp_path / "run.toml").write_text(written.to_toml())
    assert f'[method]\nname = "{name}"\nkeep = 0.5' in written.to_toml()
    read = TrainConfig.read(tmp_path / "run.toml")
    assert "method_from_outside" not in sys.modules or read.options == {"keep": 0.5, "rounds": 1}
    assert read.trusted() == written
    assert parse(["--method", name, "--method.keep", "0.25"]).run.options.keep == 0.25
    flags = ["--config", str(tmp_path / "run.toml"), "--trust-code", "--method.rounds", "4"]
    assert parse(flags).run.options == type(written.options)(keep=0.5, rounds=4)
    with pytest.raises(InputError, match=r"--method.keeep"):
        parse(["--method", name, "--method.keeep", "1"])
    with pytest.raises(InputError, match=r"unknown key 'method.keeps'; did you mean method.keep"):
        TrainConfig(method=name, options={"keeps": 1})
    with pytest.raises(InputError, match=r"method.keep must be a number, got 'much'"):
        TrainConfig(method=name, options={"keep": "much"})
    with pytest.raises(InputError, match=r"unknown key 'method.keep'; there are none"):
        TrainConfig(method="onehot", options={"keep": 0.5})


def test_code_that_a_file_names_is_not_imported(plug, tmp_path):
    name = plug("method_unseen", "raise SystemExit('imported')")
    (tmp_path / "run.toml").write_text(f'[method]\nname = "{name}:Any"\nkeep = 1\n')
    read = TrainConfig.read(tmp_path / "run.toml")
    with pytest.raises(InputError, match="names code and comes from a file"):
        fastmeta.train(read, data=two_classes())
    with pytest.raises(InputError, match=r"cannot import 'method_unseen'.*SystemExit"):
        read.trusted()


BROKEN = """
import torch
from torch import nn
from fastmeta.methods import Method, Outcome

class NoStep(Method):
    def setup(self, context): ...

class Fails(Method):
    def setup(self, context): raise KeyError("what")
    def step(self, batch): ...
    def predictor(self): ...

class Odd(Fails):
    def setup(self, context): self.model = context.model()
    def predictor(self): return self.model

class NoModel(Odd):
    def predictor(self): return 3

class Unsaved(Odd):
    def stateful(self): return {"it": self}
    def state_dict(self): return {"f": print}
    def load_state_dict(self, state): ...

class NoState(Odd):
    def stateful(self): return {"it": 3}

class Twice(Odd):
    def setup(self, context): context.model(), context.model()

class Plain: ...
"""


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        ("NoStep", "lacks predictor, step"),
        ("Plain", "must be a subclass of fastmeta.methods.Method"),
        ("Gone", "has no 'Gone'"),
        ("Fails", "fails in its setup: KeyError: 'what'"),
        ("NoModel", r"predictor\(\) must return a torch.nn.Module, got 3"),
        ("Unsaved", "it cannot be saved: its state_dict holds something of type builtins.builtin"),
        ("NoState", r"it cannot be saved: it has no state_dict\(\), got 3"),
        ("Twice", "asks for 'model' twice"),
    ],
)
def test_a_method_that_cannot_be_used_is_refused_and_nothing_is_left(plug, cls, message, tmp_path):
    name = f"{plug('methods_broken', BROKEN)}:{cls}"
    with pytest.raises(InputError, match=message):
        fastmeta.train(config(tmp_path / "run", method=name, baselines="none"), data=two_classes())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [{"compile": "trace"}, {"approx": "delayed"}, {"micro_batch": 4}])
def test_options_that_a_method_does_not_follow_are_refused_by_name(plug, option):
    name = f"{plug('method_from_outside', PAIR)}:Pair"
    ((key, value),) = option.items()
    with pytest.raises(InputError, match=f"{key}={value} is about steps .*, and method=.* takes none"):
        TrainConfig(method=name, **option)


TEACHER = """
import torch
from dataclasses import dataclass
from torch.nn.functional import cross_entropy
from fastmeta.methods import Method, Outcome

class Distill(Method):
    @dataclass(frozen=True)
    class Config:
        teacher: str = ""

    def setup(self, context):
        self.context, self.model = context, context.model()
        self.optimizer = context.optimizer(self.model.parameters())
        self.teacher = context.teacher(self.config.teacher)

    def predictor(self):
        return self.model

    def step(self, batch):
        x = self.context.network_input(batch.x)
        logits = self.model(x)
        loss = cross_entropy(logits, self.teacher(x).softmax(1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Outcome(logits.detach(), loss.detach())
"""


def test_a_teacher_is_a_finished_run_and_a_resumed_run_has_the_same(plug, tmp_path):
    name = f"{plug('method_from_outside', TEACHER)}:Distill"
    options = {"teacher": str(tmp_path / "teacher")}
    made = lambda path, **more: config(path, method=name, options=options, baselines="none", **more)  # noqa: E731
    with pytest.raises(InputError, match="teacher is no run directory"):
        fastmeta.train(made(tmp_path / "run"), data=two_classes())
    teach = lambda seed: fastmeta.train(  # noqa: E731
        config(tmp_path / "teacher", method="onehot", baselines="none", seed=seed), data=two_classes()
    )
    teach(0)
    whole = fastmeta.train(made(tmp_path / "whole"), data=two_classes())
    with pytest.raises(Interrupted):
        fastmeta.train(made(tmp_path / "run"), data=two_classes(), listener=Kill(signal.SIGTERM, name, 7))
    (tmp_path / "teacher").rename(tmp_path / "kept")
    teach(1)
    with pytest.raises(InputError, match="teacher is not the one that the run began with"):
        fastmeta.train(resume=tmp_path / "run", data=two_classes(), trust_code=True)
    (tmp_path / "teacher").rename(tmp_path / "other")
    (tmp_path / "kept").rename(tmp_path / "teacher")
    fastmeta.train(resume=tmp_path / "run", data=two_classes(), trust_code=True)
    assert files(tmp_path / "run") == files(whole.path)


LOOKING = """
import torch
from fastmeta.methods.fixed_labels import OneHot


class Looking(OneHot):
    seen = []

    def end_epoch(self, samples):
        train, clean = list(samples.train()), list(samples.clean(3))
        rows = torch.cat([rows for _, rows in train])
        self.seen.append((samples.epoch, rows, torch.cat([x for x, _ in train]), [y for _, y in clean]))
"""


def test_an_epochs_end_shows_all_samples_as_they_are(plug, tmp_path):
    name = f"{plug('looking', LOOKING)}:Looking"
    fastmeta.train(config(tmp_path / "run", method=name, baselines="none"), data=two_classes())
    seen = sys.modules["looking"].Looking.seen
    assert [epoch for epoch, *_ in seen] == [1, 2, 3]
    for _, rows, x, clean in seen:
        assert torch.equal(rows, torch.arange(80))
        assert torch.equal(x, seen[0][2])  # crops and flips are for training
        assert [len(y) for y in clean] == [8, 8, 8]
