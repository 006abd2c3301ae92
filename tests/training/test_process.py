"""A training has torch's switches for itself, and gives them back; what its steps warn of is the run's."""

import threading
import warnings

import pytest
import torch
from torch import nn

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import LabelConfig
from fastmeta.training.estimate import dry_run
from fastmeta.training.listener import Listener
from tests.support.runs import Warnings, config, two_classes


class Bagged(nn.Module):
    """Pixels as words of a bag, which has no exact tangent."""

    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.bag((x.flatten(1) * 2 + 4).round().long().clamp(0, 8)))


def test_an_inexact_tangent_is_a_warning_of_the_run(tmp_path):
    listener = Warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the user hears it once, from the run
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        exact = config(tmp_path / "run", model=None, labels=LabelConfig(update="exact"))
        run = train(exact, model=Bagged(), data=two_classes(), listener=listener)
    own = [t for t in listener.texts if "the label gradient is inexact" in t]
    assert len(own) == 1
    assert "no exact way leads through bag (EmbeddingBag)" in own[0]
    assert own[0] in run.summary["warnings"]


def test_one_training_at_a_time(tmp_path):
    """A second one, in another thread or from a listener, is told so and has changed nothing; the first is as alone."""
    alone = train(config(tmp_path / "alone", epochs=1), data=two_classes(), listener=Warnings())
    refused = []

    class Another(Listener):
        def warning(self, text):
            pass

        def step(self, stage):
            if not refused:
                for k, begin in enumerate((train, dry_run)):
                    with pytest.raises(InputError, match="another training runs in this process") as error:
                        begin(config(tmp_path / f"second{k}", epochs=1))
                    refused.append(str(error.value))

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    ends = []
    thread = threading.Thread(
        target=lambda: ends.append(
            train(config(tmp_path / "run", epochs=1), data=two_classes(), listener=Another()).path
        )
    )
    thread.start()
    thread.join()
    assert len(refused) == 2
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["alone", "run"]
    for file in ("model.safetensors", "labels.safetensors"):
        assert (ends[0] / file).read_bytes() == (alone.path / file).read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
