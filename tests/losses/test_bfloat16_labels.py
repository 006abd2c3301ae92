"""A bfloat16 label table in the meta step: the counter behind its rounding, resumed and traced steps, ranks."""

import copy

import pytest
import torch

import fastmeta
from fastmeta import rng
from tests.support import cases

SEED = 11


def build(*, labels=None, seed=SEED, **options):
    case = cases.make("mlp", dtype=torch.float32)
    if labels is None:
        labels = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.5, dtype=torch.bfloat16, seed=seed)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    return case, labels, fastmeta.MetaStep(case.model, labels, optimizer, label_lr=3.0, **options)


def test_state():
    _, labels, _ = build()
    assert labels.label_logits.dtype == torch.bfloat16
    assert set(labels.state_dict()) == {"targets", "label_logits", "label_step"}
    assert labels.label_step == 0
    assert labels.probs().dtype == torch.float32
    nearest = fastmeta.InstanceLabels(labels.targets, 10, dtype=torch.bfloat16, seed=None)
    assert "label_step" not in nearest.state_dict()
    # a table that needs no rounding has no counter, whatever the seed
    assert "label_step" not in fastmeta.InstanceLabels(labels.targets, 10, seed=3).state_dict()


def test_a_table_that_becomes_bfloat16_is_rounded_stochastically():
    """Converted, it steps as one that was made so: not to nearest in silence."""
    case, made, step = build()
    converted = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.5, seed=SEED).to(torch.bfloat16)
    other, _, converted_step = build(labels=converted)
    assert torch.equal(made.label_logits, converted.label_logits)
    for _ in range(2):
        step(case.train, case.meta)
        converted_step(other.train, other.meta)
    assert made.state_dict().keys() == converted.state_dict().keys()
    assert all(torch.equal(v, converted.state_dict()[k]) for k, v in made.state_dict().items())
    nearest = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.5, seed=None).to(torch.bfloat16)
    assert nearest.seed is None


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_every_step_draws_anew_and_a_repeated_one_the_same(mode):
    case, labels, step = build(compile=mode)
    model, table = copy.deepcopy(case.model.state_dict()), labels.label_logits.clone()
    after = []
    for counter in (5, 5, 6):
        case.model.load_state_dict(model)
        labels.label_logits.copy_(table)
        labels.label_step.fill_(counter)
        step(case.train, case.meta)
        assert labels.label_step == counter + 1
        after.append(labels.label_logits.clone())
    assert not torch.equal(after[0], table)
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[0], after[2])
    if mode == "trace":
        assert step._graphs.compilations == 1


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_the_step_is_float32s_rounded_by_its_bits(mode):
    """A float32 table of the same values, stepped alike and then rounded: each entry, but for a last bit at a draw."""
    case, labels, step = build(compile=mode)
    wide = fastmeta.InstanceLabels(case.targets, case.num_classes, 0.5)
    wide.label_logits.copy_(labels.label_logits)
    other, _, wide_step = build(labels=wide, compile=mode)
    step(case.train, case.meta)
    wide_step(other.train, other.meta)
    exact = wide.rows(case.index)
    assert torch.equal(labels.rows(case.index), rng.round_stochastically(exact, SEED, 0, case.index))


def test_a_resumed_run_goes_on_bitwise():
    case, labels, step = build()
    for _ in range(3):
        step(case.train, case.meta)
    saved = copy.deepcopy((case.model.state_dict(), labels.state_dict(), step.state_dict()))
    for _ in range(3):
        step(case.train, case.meta)

    other, other_labels, resumed = build()
    other.model.load_state_dict(saved[0])
    other_labels.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    for _ in range(3):
        resumed(other.train, other.meta)
    assert other_labels.label_step == 6
    assert torch.equal(labels.label_logits, other_labels.label_logits)


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_the_counter_counts_label_steps(mode):
    case, labels, step = build(compile=mode, approx="every:2")
    for _ in range(3):
        step(case.train, case.meta)
    assert labels.label_step == 2  # of the first and the third


@pytest.mark.parametrize("mode", ["off", "trace"])
def test_a_step_that_is_not_finite_leaves_the_table(mode):
    case, labels, step = build(compile=mode)
    before = labels.label_logits.clone()
    result = step((case.x * float("nan"), case.index), case.meta)
    assert not result.finite
    assert torch.equal(labels.label_logits, before)
    assert labels.label_step == 0


def test_moving_by_a_given_gradient():
    """What ranks do together: the sum over repeated rows, rounded once."""
    case, labels, _ = build()
    index = torch.tensor([4, 2, 4, 7])
    grad = torch.randn(4, case.num_classes)
    exact = labels.label_logits.float().index_add(0, index, grad, alpha=-0.125)
    labels.move_(index, grad, 0.125)
    everywhere = torch.arange(len(labels))
    assert torch.equal(labels.label_logits, rng.round_stochastically(exact, SEED, 0, everywhere))
    assert labels.label_step == 1
