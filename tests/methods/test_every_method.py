"""What holds for every method of the package beside those that the trainer's own tests are run on."""

import copy
import signal

import pytest
import torch

from fastmeta.methods import METHODS
from fastmeta.training import DataConfig, Interrupted, OptimConfig, load_run, train
from fastmeta.training.prepare import prepare
from tests.support.methods import CORE
from tests.support.plugs import files
from tests.support.runs import Faulty, two_classes
from tests.support.stopped import Kill, config

OTHERS = [name for name in METHODS if name not in CORE]
#: what a method must be told
NEEDED = {"coteaching": {"forget_rate": 0.1}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "teacher"
    made = config(path, method="class_labels", model="mlp", baselines="none", trajectory_every=1)
    train(made, data=two_classes())
    return str(path)


@pytest.fixture
def made(teacher):
    def made(path, name, **changes):
        needed = {**NEEDED, "distill": {"teacher": teacher}, "replay": {"trajectory": teacher}}
        options = needed.get(name)
        return config(path, **{"method": name, "options": options, "model": "mlp", "baselines": "none", **changes})

    return made


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_learns_resumes_bitwise_and_is_loaded(name, made, tmp_path):
    unbroken = train(made(tmp_path / "unbroken", name), data=two_classes())
    assert unbroken.summary["test_accuracy_last"] > 0.8
    assert load_run(unbroken.path).summary == unbroken.summary
    with pytest.raises(Interrupted):
        train(made(tmp_path / "run", name), data=two_classes(), listener=Kill(signal.SIGTERM, name, 7))
    train(resume=tmp_path / "run", data=two_classes())
    assert files(tmp_path / "run") == files(unbroken.path)


@pytest.mark.parametrize("how", ["loss", "gradient", "buffer"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_bad_step_changes_nothing_and_is_counted(name, how, made, tmp_path):
    torch.manual_seed(0)
    plan = made(
        tmp_path / "run", name, model=None, data=DataConfig(batch_size=16), optim=OptimConfig(lr=0.05), epochs=4
    )
    stage = prepare(plan, model=Faulty(how), data=two_classes()).stage(name)
    for _ in range(2):
        stage.take_step()

    def state():
        return {
            k: copy.deepcopy(v)
            for k, v in stage.save()[0].items()
            if not k.startswith(("rng", "totals", "parts/tally"))
        }

    before = state()
    stage.model.bad = True
    for k in (1, 2):
        stage.take_step()
        after = state()
        assert int(stage.totals.read()["nonfinite"]) == k
        assert {key for key in before if not torch.equal(before[key], after[key])} == set()
    stage.model.bad = False
    stage.take_step()
    assert int(stage.totals.read()["nonfinite"]) == 2
    assert {key for key in before if not torch.equal(before[key], state()[key])}
