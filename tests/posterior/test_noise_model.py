"""The transition matrix and the posterior under it."""

import itertools

import pytest
import torch

from fastmeta.posterior import fit_transition, posterior


def noisy(rows=4000, classes=4, seed=0):
    """Calibrated predictions, true classes drawn from them, and given labels by a known matrix."""
    g = torch.Generator().manual_seed(seed)
    q = (3 * torch.randn(rows, classes, generator=g, dtype=torch.float64)).softmax(1)
    true = torch.multinomial(q, 1, generator=g).squeeze(1)
    transition = torch.tensor(
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.9, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0], [0.3, 0.0, 0.0, 0.7]], dtype=torch.float64
    )
    given = torch.multinomial(transition[true], 1, generator=g).squeeze(1)
    return q, true, given, transition


def log_likelihood(q, given, transition, trust):
    fit = (q * transition.T[given]).sum(1).log().sum()
    return fit + trust * len(given) / len(transition) * transition.diagonal().log().sum()


def test_the_matrix_is_found():
    q, _, given, transition = noisy()
    found = fit_transition(q, given, trust=0.0)
    assert torch.allclose(found.sum(1), torch.ones(4, dtype=torch.float64))
    assert (found - transition).abs().max() < 0.05


@pytest.mark.parametrize("trust", [0.0, 0.3])
def test_each_round_raises_the_likelihood(trust):
    q, _, given, _ = noisy(rows=500)
    values = [log_likelihood(q, given, fit_transition(q, given, trust, rounds=k), trust) for k in range(1, 8)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))
    assert values[-1] > values[0] + 1


def test_trust_keeps_labels():
    q, _, given, transition = noisy()
    right = [float(fit_transition(q, given, t).diagonal().mean()) for t in (0.0, 0.5, 100.0)]
    assert right == sorted(right)
    assert right[0] == pytest.approx(float(transition.diagonal().mean()), abs=0.03)
    assert right[2] > 0.98


def test_the_posterior_is_bayes_rule_and_calibrated():
    q, true, given, transition = noisy(rows=20000)
    p = posterior(q, given, transition)
    joint = q * transition[:, given].T
    assert torch.allclose(p, joint / joint.sum(1, keepdim=True))
    own = p.gather(1, given[:, None]).squeeze(1)
    for low in (0.2, 0.5, 0.8):
        some = (own > low) & (own < low + 0.15)
        assert float((given == true)[some].double().mean()) == pytest.approx(float(own[some].mean()), abs=0.04)


def test_what_the_model_holds_to_be_impossible_keeps_the_prediction():
    q = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    p = posterior(q, torch.tensor([2]), torch.eye(3, dtype=torch.float64))
    assert torch.equal(p, q)


def test_rows_are_taken_in_chunks(monkeypatch):
    q, _, given, _ = noisy(rows=1000)
    whole = fit_transition(q, given)
    monkeypatch.setattr("fastmeta.posterior.noise_model._CHUNK", 128)
    assert torch.allclose(fit_transition(q, given), whole, atol=1e-12)
