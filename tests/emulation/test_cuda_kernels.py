"""The CUDA kernels without a GPU: every launcher on emulated thread blocks, alone and under two sanitizers."""

from __future__ import annotations

import subprocess

import pytest
import torch

from tests.support.emulation import cases, cluster_cases, lookahead_cases
from tests.support.emulation.emulator import Call, build, compiler, run
from tests.support.emulation.groups import CUDA, cases_of

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler ($CXX or g++) to build the emulation with")


def dtype_of(call: Call) -> torch.dtype:
    first = {"row_dot": "a", "load_images": "out", "lookahead_update": "param0"}.get(call.launcher, "logits")
    return call.tensors[first].dtype


@pytest.mark.parametrize("group", CUDA, ids=lambda group: group.__name__)
@pytest.mark.parametrize("variant", [pytest.param("plain", marks=pytest.mark.slow), "address", "thread"])
def test_kernels(variant: str, group) -> None:
    todo = cases_of(group)
    if variant == "thread":  # where threads meet depends on no dtype but on the geometry, float64's own or the other
        todo = [case for case in todo if dtype_of(case.call) in (torch.float32, torch.float64)]
    done = run(variant, [case.call for case in todo])
    assert done.returncode == 0, done.stderr[:6000]
    for case in todo:
        try:
            case.check(case.call.out)
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error


def test_same_bits_twice() -> None:
    todo = [case.call for case in [*cases_of(cases.instance_label_step), *cases_of(cases.class_label_step)]]
    todo = [call for call in todo if dtype_of(call) == torch.float32 and call.args.C <= 1000]
    seen = []
    for _ in range(2):
        assert run("address", todo).returncode == 0
        seen.append([{k: t.clone() for k, t in call.out.items()} for call in todo])
    for first, second in zip(*seen, strict=True):
        for name, t in first.items():
            assert torch.equal(t.nan_to_num(9), second[name].nan_to_num(9)), name


@pytest.mark.parametrize(
    "group", [cluster_cases.instance_loss_in_clusters, cluster_cases.instance_label_step_in_clusters]
)
def test_without_clusters_rows_are_streamed(group) -> None:
    todo = cases_of(group)
    assert run("address", [case.call for case in todo], capability=8).returncode == 0
    for case in todo:
        case.check(case.call.out)


def test_a_missing_barrier_of_a_cluster_is_noticed() -> None:
    """Each block still waits for its own threads."""
    todo = [case.call for case in cases_of(cluster_cases.instance_loss_in_clusters)]
    done = run("planted_race", todo[:1])
    assert done.returncode != 0
    assert "data race" in done.stderr
    assert "take<" in done.stderr  # of what another block holds


def test_a_missing_barrier_is_noticed() -> None:
    block = [case.call for case in cases_of(cases.row_dot) if case.call.args.C == 5000]
    assert block
    done = run("planted_race", block)
    assert done.returncode != 0
    assert "data race" in done.stderr
    assert "reduce" in done.stderr  # and it is the one that was planted


def test_an_access_outside_is_noticed() -> None:
    good = next(case.call for case in cases_of(cases.row_dot) if case.call.args.C == 33)
    wrong = Call("row_dot", **{**good.fields, "n": good.args.n + 200})
    done = run("address", [wrong])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "report"),
    [("misaligned", "misaligned address"), ("shared", "heap-buffer-overflow"), ("neither", "")],
)
def test_a_misaligned_word_and_a_place_behind_shared_memory_are_noticed(wrong: str, report: str) -> None:
    done = subprocess.run([build("planted"), wrong], capture_output=True, text=True)
    assert (done.returncode == 0) == (report == "")
    assert report in done.stderr


def test_a_failed_launch_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv("EMULATED_FAILURE", "1")
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # the driver ends at once
    for group, name in ((cases.row_dot, "row_dot"), (lookahead_cases.lookahead_update, "lookahead_update")):
        done = run("address", [cases_of(group)[0].call])
        assert done.returncode == 1
        assert done.stderr.endswith(f"fastmeta: CUDA error in {name}: bad launch\n")


def test_build_is_kept() -> None:
    assert build("address") == build.__wrapped__("address")
