"""A run's directory: one process at a time, and names that two runs do not share."""

import errno
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from fastmeta import train
from fastmeta.data import InputError
from fastmeta.training import TrainConfig, load_run
from fastmeta.training.estimate import dry_run
from fastmeta.training.listener import Listener
from fastmeta.training.rundir import files
from fastmeta.training.rundir.layout import make_directory, new_directory, resume_command
from fastmeta.training.rundir.lock import only_process
from tests.support.runs import two_classes
from tests.support.stopped import assert_same, config


class Beside(Listener):
    """Asks for the directory of a run that is under way, as another process would."""

    def __init__(self, path):
        self.path, self.said = path, []

    def step(self, stage):
        if stage.step == 2 and not self.said:
            for ask in (lambda: only_process(self.path).__enter__(), lambda: make_directory(config(self.path))):
                with pytest.raises(InputError) as said:
                    ask()
                self.said.append(str(said.value))


def test_one_process_at_a_time_has_a_directory(unbroken, tmp_path):
    path = tmp_path / "run"
    beside = Beside(path)
    train(config(path), data=two_classes(), listener=beside)
    assert "is in use by another process" in beside.said[0]
    assert (
        f"is not empty; choose another --out, or go on with that run: fastmeta train --resume {path}"
        in (beside.said[1])
    )
    assert_same(path, unbroken)
    with only_process(path):  # free again
        pass


def test_runs_that_begin_together_take_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mkdir, rival = Path.mkdir, Path("runs/digits-instance_labels-seed0")

    def beaten(self, *args, **options):
        if self == rival and not rival.exists():
            mkdir(self, parents=True)  # between the other's look and its own mkdir
        return mkdir(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", beaten)
    assert make_directory(TrainConfig()) == Path("runs/digits-instance_labels-seed0-2")


class Endless(Exception):
    pass


@pytest.fixture
def bounded(tmp_path, monkeypatch):
    """The current folder is empty, and nobody tries to make a folder more often than a thousand times."""
    monkeypatch.chdir(tmp_path)
    mkdir, calls = os.mkdir, []

    def counted(*given, **options):
        calls.append(given)
        if len(calls) > 2000:
            raise Endless
        return mkdir(*given, **options)

    monkeypatch.setattr(os, "mkdir", counted)


def refuse(error):
    def mkdir(path, *_):
        raise OSError(error, os.strerror(error), str(path))

    return mkdir


@pytest.mark.parametrize("runs", ["link to nothing", "link to itself", "file", "fifo", "link to file"])
def test_a_runs_folder_that_is_none(runs, bounded):
    """Which was an endless loop: a name that is there for mkdir and not for exists."""
    if runs == "fifo":
        os.mkfifo("runs")
    elif runs == "file":
        Path("runs").touch()
    else:
        Path("file").touch()
        Path("runs").symlink_to({"link to nothing": "nowhere", "link to itself": "runs", "link to file": "file"}[runs])
    before = sorted(os.listdir())
    wrong = "a link to .*, which cannot be followed" if runs in ("link to nothing", "link to itself") else "no folder"
    says = rf"cannot write the run directory runs/digits-instance_labels-seed0: \w.*; runs is {wrong}.* another out"
    with pytest.raises(InputError, match=says):
        make_directory(TrainConfig())
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EEXIST])
def test_a_runs_folder_that_takes_none(error, bounded, monkeypatch):
    Path("runs").mkdir()
    monkeypatch.setattr(os, "mkdir", refuse(error))
    with pytest.raises(InputError, match=f"cannot write the run directory runs/.*{os.strerror(error)}"):
        make_directory(TrainConfig())


def test_names_that_are_taken_by_what_is_no_run(bounded):
    """Also by links to nothing, which no exists() sees."""
    Path("runs").mkdir()
    Path("runs/digits-instance_labels-seed0").symlink_to("nowhere")
    os.mkfifo("runs/digits-instance_labels-seed0-2")
    assert new_directory(TrainConfig()) == make_directory(TrainConfig()) == Path("runs/digits-instance_labels-seed0-3")


@pytest.mark.parametrize("name", ["a" * 300, "ä" * 200, "a\x1b[2J\nb", "a" * 250, ""])
def test_a_data_set_of_any_name_has_a_run(name, bounded):
    path = make_directory(TrainConfig(dataset=f"npz:/data/{name}.npz"))
    assert path.is_dir()
    assert path.name.isprintable()
    assert make_directory(TrainConfig(dataset=f"npz:/data/{name}.npz")).is_dir()


@pytest.mark.parametrize(
    "out",
    [
        "nowhere/../link",
        "file",
        "file/run",
        "fifo",
        "loop",
        "loop/run",
        ".",
        "/",
        "a" * 300,
        "a/" * 2100,
        "~nobody-here/run",
    ],
)
def test_an_out_that_cannot_be_is_one_line(out, bounded):
    Path("link").symlink_to("missing")
    Path("loop").symlink_to("loop")
    Path("file").write_text("of the user's")
    os.mkfifo("fifo")
    before = sorted(os.listdir())
    for use in (
        lambda: train(config(out), data=two_classes()),
        lambda: train(config(out), data=two_classes(), auto_resume=True),
        lambda: dry_run(TrainConfig(epochs=1, out=out, threads=1)),
    ):
        if out in ("a" * 300, "file/run", "loop/run", "nowhere/../link") and "dry_run" in use.__code__.co_names:
            continue  # which makes no folder
        with pytest.raises(InputError) as said:
            use()
        assert "\n" not in str(said.value)
    assert sorted(os.listdir()) == before
    assert Path("file").read_text() == "of the user's"


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800", "a" * 300, "~nobody-here", None, 3, "file", "fifo", "loop"])
def test_a_path_that_is_no_run_is_one_line(path, bounded):
    Path("file").touch()
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    for read in (load_run, lambda p: train(resume=p) if p is not None else train(resume=0)):
        with pytest.raises(InputError) as said:
            read(path)
        assert "\n" not in str(said.value)


def test_an_out_of_any_bytes_works(bounded):
    """And the command that goes on can be typed, or pasted into a shell."""
    for name in (b"\xff\xfe run", b"a'b\n", b"link/deep/er"):
        Path("folder").mkdir(exist_ok=True)
        if not Path("link").exists():
            Path("link").symlink_to("folder")
        out = os.fsdecode(name)
        path = make_directory(config(out))
        assert path.is_dir()
        line = resume_command(path)
        assert line.isprintable()
        said = subprocess.run(
            ["bash", "-c", f"printf %s {line.split(' ', 3)[3]}"], capture_output=True, check=True
        ).stdout
        assert said == name


PART, STATE = ".config.toml.part", "checkpoint/state.safetensors"


@pytest.mark.parametrize(
    ("left", "free"),
    [
        ([], True),
        ([PART], True),
        ([PART, "metrics.jsonl"], True),
        ([PART, "metrics.jsonl", "checkpoint/.state.safetensors.part"], True),
        ([PART, "metrics.jsonl", STATE], True),
        (["metrics.jsonl", "checkpoint/.state.safetensors.part"], True),
        (["metrics.jsonl", STATE], False),  # of a run that has lost its config.toml
        ([PART, "metrics.jsonl", STATE, "notes.txt"], False),
        ([PART, "checkpoint/other"], False),
        (["notes.txt"], False),
        (["config.toml"], False),
    ],
)
def test_only_what_a_start_left_is_begun_anew(left, free, unbroken, tmp_path):
    """The fullest of them to the end."""
    path = tmp_path / "run"
    path.mkdir()
    for name in left:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"" if name == "metrics.jsonl" else b"torn")
    if free:
        with pytest.raises(InputError, match=r"is no run directory: it has no config.toml; .* begin"):
            train(resume=path)
        assert make_directory(config(path)) == path
        if STATE in left:
            train(config(path), data=two_classes())
            assert_same(path, unbroken)
    else:
        with pytest.raises(InputError, match="is not empty; choose another --out"):
            train(config(path), data=two_classes())
        assert all((path / name).read_bytes() in (b"", b"torn") for name in left)


def test_the_command_that_begins_again_is_exact(tmp_path, monkeypatch, capsys):
    """A start that dies with its first checkpoint half written, then what --resume says."""
    from fastmeta.cli import main

    path = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr("fastmeta.training.run.remove_beginning", lambda *_: None)
        patch.setattr("fastmeta.training.rundir.checkpoint.write_atomically", refuse(errno.EIO))
        with pytest.raises(InputError, match="cannot write the run directory"):
            train(TrainConfig(epochs=1, baselines="none", out=str(path)))
    assert main(["train", "--resume", str(path)]) == 2
    said = capsys.readouterr().err
    line = said[said.index("or by fastmeta train") + 6 :].strip()
    assert main(shlex.split(line)[1:]) == 0
    assert load_run(path).config.epochs == 1


def test_a_start_that_fails_takes_nothing_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("fastmeta.training.run.commit", refuse(errno.ENOSPC))
    for out in ("empty", "new", "new/deep/er"):
        with pytest.raises(InputError, match=r"cannot write the run directory .*: No space left"):
            train(config(tmp_path / out), data=two_classes())
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_auto_resume_takes_no_other_config(unbroken, tmp_path):
    path = tmp_path / "run"
    assert_same(train(config(path), data=two_classes(), auto_resume=True).path, unbroken)
    before = (path / "summary.json").stat().st_mtime_ns
    assert train(config(path), data=two_classes(), auto_resume=True).summary == load_run(path).summary
    assert (path / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"was begun with another config: epochs was 3, is 2 now; .* another --out"):
        train(config(path, epochs=2), data=two_classes(), auto_resume=True)
    with pytest.raises(InputError, match="auto_resume needs out"):
        train(TrainConfig(), auto_resume=True)
    with pytest.raises(InputError, match="not both"):
        train(resume=path, auto_resume=True)


def test_a_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("of the user's")
    (tmp_path / ".a.part").symlink_to("precious")
    files.write_atomically(tmp_path / "a", b"new")
    (tmp_path / "metrics.jsonl").symlink_to("precious")
    for write in (lambda p: files.append(p, b"line"), files.empty):
        with pytest.raises(OSError, match="symbolic links"):
            write(tmp_path / "metrics.jsonl")
    assert (tmp_path / "precious").read_text() == "of the user's"
    assert not (tmp_path / "a").is_symlink()


def test_what_is_renamed_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    files.write_atomically(tmp_path / "a", b"")
    assert synced == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]
    made = []
    files.make_folders(tmp_path / "b" / "c", made)
    assert made == [tmp_path / "b", tmp_path / "b" / "c"]
    assert synced[2:] == [tmp_path.stat().st_ino, (tmp_path / "b").stat().st_ino]

    def cannot(_):
        raise OSError(errno.EINVAL, "as some network's file systems say of folders")

    monkeypatch.setattr(os, "fsync", cannot)
    files.sync_directory(tmp_path)
