"""Numbers of the command line and of calls that no machine can serve: one line, exit code 2, no memory taken."""

import numpy as np
import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import _memory, models
from fastmeta.cli import main

HUGE = str(10**12)
BEYOND = "9" * 5000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"check --model mlp --classes {99999999999}", "--classes: must be at most 2,147,483,647, got 99999999999"),
        ("check --model mlp --classes 2000000000", "would take"),
        ("check --model torchvision:resnet18 --classes 2000000000", "would take"),
        (f"check --model mlp --classes {BEYOND}", "--classes: must be a whole number, got '999"),
        ("check --model mlp --classes -5", "--classes: must be at least 2, got -5"),
        ("check --model mlp --device meta", "device must be auto, cpu, cuda or cuda:N, got 'meta'"),
        ("check --model mlp --device mps", "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
        ("check --model mlp --device cpu:x", "device must be auto, cpu, cuda or cuda:N, got 'cpu:x'"),
        ("check --model mlp --device cuda:99999999999999999999", "device must be auto, cpu, cuda or cuda:N"),
        ("check --model mlp --device cuda:200", "device cuda:200 is not there"),
        ("check --model mlp --device cuda:256", "device cuda:256 is not there"),
        (f"check --model mlp --batch {HUGE}", "batches of 1,000,000,000,000 and 1,000,000,000,000 would take"),
        (f"check --model mlp --meta-batch {HUGE}", "batches of 8 and 1,000,000,000,000 would take"),
        (f"check --model mlp --batch {2**63}", "--batch: must be below 2^63, got 9223372036854775808"),
        ("check --model mlp --input-shape 0", "input_shape must be positive sizes without the batch"),
        ("check --model mlp --input-shape=-3,8,8", "input_shape must be positive sizes without the batch"),
        (f"check --model mlp --input-shape 1,{HUGE},8", "would take"),
        ("check --model mlp --input-shape 2000000000", "would take"),
        (f"check --model mlp --input-shape 1,{BEYOND}", "--input-shape: must look like N,N,N, got '1,999"),
        (f"check --model mlp --seed {2**63}", "--seed: must be below 2^63"),
        ("check --model mlp --seed -1", "--seed: must be at least 0, got -1"),
        ("check --model mlp --seed 1.5", "--seed: must be a whole number, got '1.5'"),
        ("check --model mlp --lr inf", "--lr: must be above 0 and finite, got inf"),
        (f"check --model mlp --lr {BEYOND}", "--lr: must be above 0 and finite, got 999"),
        (f"bench step --model mlp --classes {HUGE}", "num_classes must be below 2^31|would take"),
        ("bench step --model mlp --classes 2000000000", "would take"),
        (f"bench step --model mlp --batch {HUGE} --samples {HUGE}", "batches and label table would take"),
        (f"bench step --model mlp --samples {HUGE}", "batches and label table would take"),
        (f"bench step --model mlp --samples {2**63}", "--samples: must be below 2^63"),
        ("bench step --model mlp --input-shape 0", "input_shape must be positive|would take"),
        ("bench step --model mlp --threads 1000000", "--threads: must be at most 1,024, got 1000000"),
        (f"bench step --model mlp --seed {2**64}", "--seed: must be below 2^63"),
        (f"bench step --model mlp --rounds {BEYOND}", "--rounds: must be a whole number"),
        ("bench step --model mlp --seconds inf", "--seconds: must be above 0 and finite"),
        ("bench step --model mlp --device meta", "--device"),
        ("bench step --model mlp --inputs math:sqrt", "fails on a batch of|inputs must return"),
        (f"bench ops --sizes {10**7}x{10**7}", "operands of 10000000x10000000 would take"),
        (f"bench ops --sizes {BEYOND}x3", "--sizes: must look like NxN"),
        (f"bench approx --models mlp --samples {HUGE}", "batches and label table would take"),
        (f"bench approx --models mlp --batch {HUGE} --samples {10**15}", "batches and label table would take"),
        (f"bench approx --models mlp --moments {BEYOND}", "--moments: must be a whole number"),
        (f"train --threads {2**70}", "threads must be a whole number below 2^63"),
        (f"train --seed {2**63}", "seed must be a whole number below 2^63"),
        (f"train --epochs {BEYOND}", "expected a whole number or auto, got '999"),
        ("train --data.batch-size 0", "data.batch_size must be at least 1"),
        ("train --device meta", "device must be auto, cpu, cuda or cuda:N"),
    ],
    ids=lambda x: x[:40],
)
def test_what_no_machine_can_serve(line, message, capsys, monkeypatch):
    monkeypatch.setattr(_memory, "free_memory", lambda: 8 * 2**30)
    words = line.split()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert len(err) < 400
    assert any(part in err for part in message.split("|")), err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": True}, "num_classes must be a whole number, got True"),
        ({"num_classes": 3.0}, "num_classes must be a whole number, got 3.0"),
        ({"num_classes": "3"}, "num_classes must be a whole number, got '3'"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"num_classes": 10**5000}, "num_classes must be below 2.31, got an int"),
        ({"input_shape": 3}, "input_shape must be positive sizes"),
        ({"input_shape": None}, "input_shape must be positive sizes"),
        ({"input_shape": (3.0, 8, 8)}, "input_shape must be positive sizes"),
        ({"input_shape": (True, 8, 8)}, "input_shape must be positive sizes"),
        ({"input_shape": ()}, "input_shape must be positive sizes"),
        ({"input_shape": "388"}, "input_shape must be positive sizes"),
        ({"name": None}, "name must be a text, got None"),
        ({"name": b"mlp"}, "name must be a text, got b'mlp'"),
        ({"name": "x" * 10**5}, "unknown model 'xxx"),
    ],
)
def test_arguments_of_build_are_named(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(**{"name": "mlp", "num_classes": 3, **changes})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("count", [np.int8(3), np.uint64(3), torch.tensor(3), np.array(3)], ids=repr)
def test_build_takes_the_integers_of_numpy_and_torch(count):
    shapes = [[1, 4, 4], np.array([1, 4, 4]), torch.tensor([1, 4, 4]), torch.Size((1, 4, 4)), (np.int16(1), 4, 4)]
    for shape in shapes:
        model = models.build(np.str_("mlp"), num_classes=count, input_shape=shape)
        assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def quits(num_classes):
    raise SystemExit("\x1b[31mbye")


def test_weights_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(_memory, "free_memory", lambda: 8 * 2**30)
    for name in ("mlp", "torchvision:resnet18", "resnet20"):
        with pytest.raises(ValueError, match=f"the weights of '{name}' for 2,000,000,000 classes .* would take"):
            models.build(name, num_classes=2 * 10**9)


def test_a_script_in_place_of_a_factory():
    with pytest.raises(ValueError, match=r"failed: SystemExit: \\x1b\[31mbye"):
        models.build(f"{__name__}:quits", num_classes=2)


def check(lr=0.1, **changes):
    model = nn.Linear(4, 3)
    batch = (torch.randn(5, 4), torch.arange(5)), (torch.randn(5, 4), torch.arange(5) % 3)
    labels = fastmeta.InstanceLabels(torch.arange(5) % 3, 3)
    return fastmeta.check(model, labels, *batch, lr, timing=False, **changes)


@pytest.mark.parametrize(
    "lr", [np.float32(0.1), torch.tensor(0.1), np.array(0.1), torch.nn.Parameter(torch.tensor(0.1)), 1]
)
def test_check_takes_rates_of_numpy_and_torch(lr):
    assert check(lr, tangents=["reverse"]).ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": True}, "lr must be a number, got True"),
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"lr": 10**400}, "lr must be finite"),
        ({"tangents": "reverse"}, "tangents must be a tuple of some of"),
        ({"tangents": [["reverse"]]}, "tangents must be a tuple of some of"),
        ({"tangents": []}, "tangents must be a tuple of some of"),
    ],
)
def test_arguments_of_check_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check(**changes)
