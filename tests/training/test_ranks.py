"""``torchrun -m fastmeta train``: signals, failures and resumption of two ranks."""

import json

import numpy as np
import pytest

from tests.support.torchrun import assert_same, labels, run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "run"
    code, said = run(path)
    assert code == 0, said
    return path, said


def test_rank_0_alone_speaks_and_writes(unbroken):
    path, said = unbroken
    assert said.count("everything in") == 1
    assert "ranks: 2" in said
    summary = json.loads((path / "summary.json").read_text())
    assert summary["ranks"] == 2
    assert len(labels(path)["given"]) == summary["train_size"] == 1370
    assert len(np.unique(labels(path)["index"])) == 1370
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_at_one_boundary_and_the_run_goes_on_bitwise(tmp_path, unbroken):
    path = tmp_path / "run"
    code, said = run(path, does="SIGTERM")
    assert code
    assert said.count("stopped by SIGTERM") == 1
    assert "at step 6 of 10; saved in" in said
    way = f"torchrun --standalone --nproc-per-node 2 -m fastmeta train --resume {path} --trust-code"
    assert f"go on with: {way}" in said
    assert said.count("exitcode  : 143") == 2
    code, said = run(path, "--resume", str(path), "--trust-code")
    assert code == 0, said
    assert_same(path, unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "says"),
    [("raise", "rank 1: ValueError: this rank has had enough"), ("SIGKILL", "rank 1 is gone or does not answer")],
)
def test_one_failure_ends_all_and_the_same_line_goes_on(does, says, tmp_path, unbroken):
    path = tmp_path / "run"
    code, said = run(path, "--auto-resume", "--checkpoint-seconds", "0", does=does, seconds=60)
    assert code
    assert said.count(f"fastmeta train: {says}") == 1
    noted = "rank 1: " if does == "raise" else "another rank is gone"
    assert noted in (path / "failed.json").read_text()
    code, said = run(path, "--auto-resume", "--checkpoint-seconds", "0")
    assert code == 0, said
    assert_same(path, unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--data.batch_size", "65"), "data.batch_size=65 does not divide among 2 ranks; take 64 or 66"),
        (("--labels.canaries", "20"), "labels.canaries=20 are for one process"),
        (("--device", "cuda:1"), "device cuda:1 is one for all 2 ranks"),
        (("--seeds", "2"), "seeds=2 is for one process"),
    ],
)
def test_what_is_refused_is_said_once(flags, says, tmp_path):
    code, said = run(tmp_path / "run", *flags)
    assert code
    assert said.count(says) == 1, said
    assert "exitcode  : 2" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_failed_ranks_again_and_they_go_on(tmp_path, unbroken):
    path, again = tmp_path / "run", ("--max-restarts", "1")
    code, said = run(path, "--auto-resume", "--checkpoint-seconds", "0", does="raise", torchrun=again)
    assert code == 0, said
    assert said.count("fastmeta train: rank 1: ValueError: this rank has had enough") == 1
    assert_same(path, unbroken[0])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, None), (None, 2)])
def test_another_number_of_ranks_goes_on(before, after, tmp_path):
    path = tmp_path / "run"
    alone = {"RANK": "1"} if before is None else {}  # torchrun sets it
    code, said = run(path, "--labels.canaries", "off", does="SIGTERM", size=before, **alone)
    assert code == (1 if before else 143)
    way = "torchrun --standalone --nproc-per-node 2 -m fastmeta" if before else "fastmeta"
    assert f"go on with: {way} train --resume {path} --trust-code" in said
    alone = {"RANK": "0"} if after is None else {}
    code, said = run(path, "--resume", str(path), "--trust-code", size=after, **alone)
    assert code == 0, said
    assert "another order" in said
    assert len(labels(path)["given"]) == 1370


@pytest.mark.slow
def test_one_rank_is_a_process(tmp_path):
    paths = [tmp_path / "one", tmp_path / "plain"]
    for path, size in zip(paths, (1, None), strict=True):
        code, said = run(path, size=size, **({} if size else {"RANK": "0"}))
        assert code == 0, said
    assert_same(*paths)


@pytest.mark.slow
def test_a_rank_that_never_comes_ends_the_others_in_time(tmp_path):
    where = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    code, said = run(tmp_path / "run", "--rank-timeout", "2", size=None, seconds=60, **where)
    assert code == 2
    assert "within 2 s" in said
    assert "one has ended, or was never started" in said
    assert said.count("fastmeta train: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_commands_for_one_process_are_refused_once(tmp_path):
    code, said = run(tmp_path, str(tmp_path), command="show")
    assert code
    assert said.count("fastmeta show: show is for one process, and torchrun has started several") == 1
    assert "exitcode  : 2" in said
