"""What is told while a step is compiled: nothing by the library itself, lines by its commands."""

import logging
import re
import sys
import time

import pytest
import torch

import fastmeta
from fastmeta import cli
from fastmeta.cli.log_lines import on_stderr
from fastmeta.meta.engines import compile_notes
from fastmeta.meta.engines.compile_notes import noted, phase
from fastmeta.meta.engines.graph import trace
from fastmeta.meta.engines.inductor import through_inductor


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(compile_notes, "AFTER", 0.05)
    monkeypatch.setattr(compile_notes, "EVERY", 0.05)


def wait_for(caplog, part):
    end = time.monotonic() + 20
    while not any(part in text for text in caplog.messages):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_quick_is_not_told(caplog):
    caplog.set_level(logging.INFO)
    with noted():
        pass
    assert caplog.messages == []


def test_a_beginning_what_goes_on_and_an_end(soon, caplog):
    caplog.set_level(logging.INFO)
    with noted(), noted():  # of which the inner one is a part
        wait_for(caplog, "compiling the step, ")
    first, *between, last = caplog.messages
    assert first == "compiling the step; the next process finds it on disk"
    assert all(re.fullmatch(r"compiling the step, \d+ s: compiling", text) for text in between)
    assert re.fullmatch(r"compiled the step in \d+ s", last)
    kinds = [record.name for record in caplog.records]
    assert kinds == ["fastmeta.compile", *["fastmeta.compile.progress"] * len(between), "fastmeta.compile"]


def test_an_error_ends_it_too(soon, caplog):
    caplog.set_level(logging.INFO)

    @noted()
    def fail():
        wait_for(caplog, "compiling")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert caplog.messages[-1].startswith("stopped compiling the step after ")
    with noted():  # and another one begins
        wait_for(caplog, "compiling the step, ")


def test_the_phases_of_inductor(soon, monkeypatch, caplog):
    """By names of torch's modules and, of its loop over kernels, of two variables: see `phase`."""
    monkeypatch.setattr(compile_notes, "EVERY", 0.01)
    caplog.set_level(logging.INFO)
    x, new = torch.ones(4, 4), time.time()

    def chain(t):
        for _ in range(6):
            t = (t @ t + new).relu()
        return [t]

    through_inductor(trace(chain, [x]), [x])
    phases = {text.split(": ", 1)[1] for text in caplog.messages if ": " in text}
    assert {"C++ compiler", "turning operations into loops", "preparing operations"} <= phases
    assert any(re.fullmatch(r"writing code, \d+ of \d+ kernels and calls", text) for text in phases)


def test_a_thread_that_has_ended_is_at_nothing():
    assert phase(None) == "compiling"


def compiled_slowly(graph, inputs, **options):
    time.sleep(0.3)
    return graph


def learn(mode):
    model = torch.nn.Linear(3, 2)
    labels = fastmeta.InstanceLabels(torch.tensor([0, 1]), 2)
    step = fastmeta.MetaStep(model, labels, torch.optim.SGD(model.parameters(), lr=0.1), compile=mode)
    step((torch.randn(2, 3), torch.arange(2)), (torch.randn(2, 3), torch.arange(2)))
    return step


def test_a_library_does_not_print(soon, monkeypatch, capfd):
    monkeypatch.setattr(torch._inductor, "standalone_compile", compiled_slowly)
    assert learn("full").eager_because == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_commands_print_it_on_stderr(soon, monkeypatch, capsys, terminal):
    """In between only to a terminal."""
    monkeypatch.setattr(torch._inductor, "standalone_compile", compiled_slowly)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(cli, "_main", lambda args: learn("full") and 0)
    assert cli.main(["train"]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "fastmeta: compiling the step; the next process finds it on disk"
    assert lines[-1].startswith("fastmeta: compiled the step in ")
    assert (len(lines) > 2) == terminal


def test_of_ranks_the_first_alone_tells_what_all_do(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with on_stderr():
            compile_notes.LOG.info("of rank %s\x1b[2J", rank)
            compile_notes.LOG.warning("on rank %s", rank)
    assert capsys.readouterr().err.splitlines() == [
        r"fastmeta: of rank 0\x1b[2J",
        "fastmeta: on rank 0",
        "fastmeta: on rank 1",
    ]


def test_what_has_no_form_in_cpp_is_compiled_in_the_usual_way(monkeypatch, caplog):
    def refuse(graph, inputs, **options):
        if torch._inductor.config.cpp_wrapper:
            raise NotImplementedError("complex")
        return graph

    caplog.set_level(logging.INFO, "fastmeta")
    monkeypatch.setattr(torch._inductor, "standalone_compile", refuse)
    assert learn("full").eager_because == ""
    assert caplog.messages == ["compiling the step as Python that calls C++: NotImplementedError: complex"]


def test_the_logger_is_as_before_behind_a_command():
    logger = logging.getLogger("fastmeta")
    before = logger.level, list(logger.handlers)
    with on_stderr():
        assert logger.isEnabledFor(logging.INFO)
    assert (logger.level, list(logger.handlers)) == before
