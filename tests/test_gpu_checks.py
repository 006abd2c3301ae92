"""The logic of benchmarks/gpu_checks.sh and gpu.sh, with a compute-sanitizer and a Python that only say what they were
asked.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_checks.sh"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")

# writes the log that it is asked for, with $REPORT in the one of $BAD_TOOL, and runs the command behind its options
SANITIZER = """#!/bin/sh
echo "$*" >>"$CALLS"
while [ $# -gt 0 ]; do
    case $1 in
    --tool) tool=$2; shift 2 ;;
    --log-file) log=$2; shift 2 ;;
    --kernel-name | --target-processes) shift 2 ;;
    *) break ;;
    esac
done
[ "$tool" = "${DEAD_TOOL:-}" ] && exit 1
echo "========= COMPUTE-SANITIZER" >"$log"
[ "$tool" = "${BAD_TOOL:-}" ] && echo "$REPORT" >>"$log"
exec "$@"
"""
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit "${NO_GPU:-0}"
echo "pytest $*" >>"$CALLS"
[ -n "${FAIL_TESTS:-}" ] && exit 1
[ -n "${HANG:-}" ] && exec sleep 60
exit 0
"""


@pytest.fixture
def run(tmp_path):
    def program(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    program("compute-sanitizer", SANITIZER)
    python = program("fake-python", PYTHON)
    calls = tmp_path / "calls"

    def call(*checks: str, script: Path = SCRIPT, **env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        done = subprocess.run(
            [script, tmp_path / "logs", *checks],
            capture_output=True,
            text=True,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(python), "CALLS": str(calls), **env},
        )
        return done, calls.read_text().splitlines() if calls.exists() else []

    return call


def test_all_tools_run_and_pass(run):
    done, calls = run()
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "passed" in line] == [
        f"{name}: passed" for name in ("tests", *TOOLS)
    ]
    asked = [line for line in calls if line.startswith("--tool")]
    assert [line.split()[1] for line in asked] == list(TOOLS)
    assert all(("kns=fastmeta" in line) == ("initcheck" not in line) for line in asked)
    assert sum(line.startswith("pytest -m pytest -m cuda tests/ops") for line in calls) == len(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_report_in_our_kernels_fails(run, tool):
    done, _ = run(BAD_TOOL=tool, REPORT="=========     at fastmeta::cuda::row_dot_kernel+0x10")
    assert done.returncode == 1
    assert f"{tool}: FAILED" in done.stdout
    assert done.stdout.count("passed") == 4, "the other tools still run"


def test_a_report_in_others_kernels_does_not(run):
    done, _ = run(BAD_TOOL="initcheck", REPORT="=========     at cub::DeviceScanKernel+0x10")
    assert done.returncode == 0


def test_failing_tests_fail(run):
    done, _ = run(FAIL_TESTS="1")
    assert done.returncode == 1
    assert done.stdout.count("FAILED") == 5


def test_a_tool_that_does_not_run_fails(run):
    done, _ = run(DEAD_TOOL="racecheck")
    assert done.returncode == 1
    assert "racecheck: FAILED" in done.stdout
    assert "has not run" in done.stdout


def test_without_a_gpu_nothing_runs(run):
    done, calls = run(NO_GPU="1")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not calls


@pytest.mark.skipif(os.path.exists("/usr/local/cuda/bin/compute-sanitizer"), reason="one is installed")
def test_without_the_tool_only_the_tests_run(run, tmp_path):
    (tmp_path / "compute-sanitizer").unlink()
    done, calls = run()
    assert done.returncode == 2
    assert "no compute-sanitizer for memcheck" in done.stderr
    assert len(calls) == 1
    assert "tests: passed" in done.stdout


def test_checks_by_name(run):
    done, calls = run("synccheck", "memcheck")
    assert done.returncode == 0
    assert [line.split()[1] for line in calls if line.startswith("--tool")] == ["synccheck", "memcheck"]
    assert sum(line.startswith("pytest") for line in calls) == 2
    done, _ = run("memchek")
    assert done.returncode == 2
    assert "unknown check 'memchek'" in done.stderr


def test_a_check_that_hangs_is_stopped(run):
    done, _ = run("tests", HANG="1", LIMIT="1")
    assert done.returncode == 1
    assert "tests: stopped after 1 s (LIMIT)" in done.stdout
    assert "tests: FAILED" in done.stdout


def test_parts_of_the_whole(run, tmp_path):
    """Each with a log of its own; one that fails does not stop the next."""
    done, calls = run(
        "memcheck", "resnet18", script=SCRIPT.with_name("gpu.sh"), BAD_TOOL="memcheck", REPORT="fastmeta::"
    )
    assert done.returncode == 1
    assert "memcheck: FAILED with 1 after" in done.stdout
    assert "resnet18: done in" in done.stdout
    assert "memcheck: 1 lines of the log name a kernel of fastmeta" in (tmp_path / "logs/logs/memcheck.log").read_text()
    step = next(line for line in calls if "benchmarks/goals.py step --model resnet18" in line)
    assert "--limit 373 --device cuda --json" in step
    done, _ = run("nonsense", script=SCRIPT.with_name("gpu.sh"))
    assert done.returncode == 2
