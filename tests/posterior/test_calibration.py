"""Shares, temperature, folds."""

import pytest
import torch

from fastmeta.posterior.calibration import inverse_temperature, row_weights, share_shift, shares
from fastmeta.posterior.folds import batches, stratified


@pytest.mark.parametrize("b", [0.25, 1.0, 2.0])
def test_the_temperature_is_found(b):
    g = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(20000, 5, generator=g, dtype=torch.float64)
    y = torch.multinomial((b * z).softmax(1), 1, generator=g).squeeze(1)
    assert inverse_temperature(z, y, torch.ones(len(y))) == pytest.approx(b, rel=0.05)


def test_the_temperature_minimises_the_weighted_loss():
    g = torch.Generator().manual_seed(1)
    z, y, w = torch.randn(50, 3, generator=g), torch.randint(3, (50,), generator=g), torch.rand(50, generator=g)
    best = inverse_temperature(z, y, w)

    def loss(b):
        return float((torch.nn.functional.cross_entropy(b * z.double(), y, reduction="none") * w).sum())

    assert loss(best) <= min(loss(0.97 * best), loss(1.03 * best))


def test_separable_rows_end_at_the_bound():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert inverse_temperature(z, torch.tensor([0, 1]), torch.ones(2)) == pytest.approx(3.0)


def test_shares_shift_a_prediction_to_another_set():
    """Bayes: P'(c | x) ~ P(c | x) pi'_c / pi_c."""
    few, many = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.9, 0.1]).double()
    z = torch.tensor([[0.0, 1.0]]).double()
    shifted = (z + share_shift(few, many)).softmax(1)
    by_hand = z.softmax(1) * many / few
    assert torch.allclose(shifted, by_hand / by_hand.sum(1, keepdim=True))
    y = torch.tensor([0, 1, 0, 1])
    weighted = torch.zeros(2).double().index_add_(0, y, row_weights(y, share_shift(few, many)).double()) / 4
    assert torch.allclose(weighted, many)


def test_a_class_without_clean_rows_stays():
    shift = share_shift(shares(torch.tensor([0, 0, 1]), 3), shares(torch.tensor([0, 1, 2]), 3))
    assert shift[2] == 0
    assert shift.isfinite().all()


def test_folds_have_each_class():
    y = torch.tensor([0] * 6 + [1] * 5 + [2])
    fold = stratified(y, 3)
    assert [int(((fold == k) & (y == 0)).sum()) for k in range(3)] == [2, 2, 2]
    assert max(int(((fold == k) & (y == 1)).sum()) for k in range(3)) == 2


def test_batches_are_passes_in_shuffled_orders():
    rows = torch.arange(10, 17)
    assert all(torch.equal(b, rows) for b in batches(rows, 8, 3, seed=0))
    made = list(batches(rows, 3, 7, seed=0))
    assert [len(b) for b in made] == [3] * 7
    seen = torch.cat(made).bincount(minlength=17)[10:]
    assert seen.tolist() == [3] * 7
    again = list(batches(rows, 3, 7, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
