"""What is put off while a graph is made is as it was afterwards."""

import gc

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fastmeta
from fastmeta.functional.network import Network
from fastmeta.meta.engines.building import building
from tests.support import cases
from tests.support.meta import make_labels


@pytest.fixture(autouse=True)
def _thresholds():
    usual = gc.get_threshold()
    yield
    gc.set_threshold(*usual)


def test_no_full_collection_runs_meanwhile():
    usual, seen = gc.get_threshold(), []
    watch = lambda phase, info: seen.append(info["generation"])  # noqa: E731
    with building():
        gc.callbacks.append(watch)
        try:
            kept = [[] for _ in range(30 * usual[0] * usual[1])]
        finally:
            gc.callbacks.remove(watch)
        inner = gc.get_threshold()
        with building():
            assert gc.get_threshold() == inner
    assert kept
    assert set(seen) == {0, 1}
    assert gc.get_threshold() == usual


def test_after_an_error_too():
    usual = gc.get_threshold()
    with pytest.raises(RuntimeError), building():
        raise RuntimeError
    assert gc.get_threshold() == usual
    graph = make_fx(lambda x: x + 1)(torch.ones(2))
    assert "Lazy" not in str(type(graph).__mro__)


def test_graphs_of_inside_write_their_code_when_asked():
    with building():
        graph = make_fx(lambda x: x + 1)(torch.ones(2))
    assert "Lazy" in str(type(graph).__mro__)
    assert "add" in graph.code
    assert torch.equal(graph(torch.ones(2)), torch.full((2,), 2.0))


def test_what_others_set_meanwhile_stays():
    with building():
        gc.set_threshold(500, 5, 5)
    assert gc.get_threshold() == (500, 5, 5)


def test_collection_that_is_off_stays_off():
    gc.disable()
    try:
        with building():
            assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("compile", ["off", "trace"])
def test_all_of_the_first_step_with_a_graph_puts_full_collections_off(compile, monkeypatch):
    seen, call = [], Network.__call__
    monkeypatch.setattr(Network, "__call__", lambda *args: seen.append(gc.get_threshold()) or call(*args))
    case, usual = cases.make("mlp"), gc.get_threshold()
    labels = make_labels(fastmeta.InstanceLabels, case)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.3)
    step = fastmeta.MetaStep(case.model, labels, optimizer, label_lr=5.0, compile=compile)
    step(case.train, case.meta)
    rare = (*usual[:2], 1_000_000)
    assert set(seen) == {usual if compile == "off" else rare}
    assert bool(step.graphs) == (compile == "trace")
    assert gc.get_threshold() == usual
