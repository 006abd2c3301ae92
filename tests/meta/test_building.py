"""What is put off while a graph is made is as it was afterwards."""

import gc

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fastmeta.meta.engines import inductor
from fastmeta.meta.engines.building import building


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


def test_headers_are_looked_for_where_a_library_is_missing(tmp_path, monkeypatch):
    from torch._inductor import codecache

    monkeypatch.setattr(codecache, "_precompile_header", lambda header: f"compiled {header}")
    usual, asked = codecache._precompile_header, str(tmp_path / "cxyz.main.cpp")

    def load(main_path):  # as inductor's own, which has the path of the source in a local
        return codecache._precompile_header("cpu.h")

    with inductor._headers_for_compilers():
        assert load(asked) == "compiled cpu.h"
        (tmp_path / "cxyz.main.so").touch()
        assert load(asked) == ""
        assert codecache._precompile_header("cpu.h") == "compiled cpu.h"  # by others, too
    assert codecache._precompile_header is usual


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
