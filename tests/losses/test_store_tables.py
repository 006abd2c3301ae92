"""Tables of rows on the host and in a file: the bits of a dense tensor, and a file that goes back to a state."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

import fastmeta
from fastmeta.losses import HostTable, MmapTable, TableError
from fastmeta.losses.away_table import Way
from fastmeta.losses.row_file import RowFile
from tests.support.label_tables import WAYS, after


def in_file(folder, **kw):
    return partial(MmapTable, path=folder / "labels.rows", **kw)


def table_of(kind, folder):
    return HostTable if kind == "host" else in_file(folder)


@pytest.mark.parametrize(("kind", "way"), [*(("mmap", way) for way in WAYS), ("host", "exact"), ("host", "delayed")])
def test_the_bits_of_a_dense_table(kind, way, tmp_path):
    dtype = torch.float64 if way in ("forward", "traced") else torch.float32
    want, _ = after(None, dtype=dtype, **WAYS[way])
    got, labels = after(table_of(kind, tmp_path), dtype=dtype, **WAYS[way])
    assert labels.table is not None
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


TARGETS = torch.arange(12) % 3


def labels_in(folder, classes=3, dtype=torch.float32, **kw):
    return fastmeta.InstanceLabels(TARGETS, classes, dtype=dtype, table=in_file(folder, **kw))


def write(labels, *rows, seed=0):
    values = torch.randn(len(rows), labels.num_classes, generator=torch.Generator().manual_seed(seed))
    labels.write_(torch.tensor(rows), values.to(labels.dtype))


def every(labels):
    return labels.rows(torch.arange(len(labels))).clone()


def state_of(labels):
    """As a checkpoint holds it."""
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in labels.state_dict().items()}


CLASSES = {"by a mapping": 3, "by calls": 1100}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_a_new_process_goes_back_to_the_state(classes, dtype, tmp_path):
    labels = labels_in(tmp_path, classes, dtype)
    write(labels, 1, 2, 3)
    state = state_of(labels)
    want = every(labels)
    write(labels, 3, 4, 3, seed=1)
    labels.state_dict()  # a state that nobody saves
    write(labels, 3, 2, 5, seed=2)
    assert not torch.equal(every(labels), want)
    del labels  # its file is let go
    for _ in range(2):  # twice: the second one starts from what the first has put back and moved on from
        other = labels_in(tmp_path, classes, dtype)
        other.load_state_dict(state)
        assert torch.equal(every(other), want)
        write(other, 1, 9, seed=3)
        del other


def test_a_live_table_goes_back_and_its_process_may_die_then(tmp_path):
    labels = labels_in(tmp_path)
    write(labels, 1, 2)
    best = state_of(labels)
    labels.table.keep("best")
    want = every(labels)
    write(labels, 2, 3, seed=1)
    saved = state_of(labels)
    labels.table.saved()
    at_saved = every(labels)
    write(labels, 1, 7, seed=2)
    labels.load_state_dict(best)
    assert torch.equal(every(labels), want)
    write(labels, 3, 7, seed=5)
    del labels
    other = labels_in(tmp_path)
    other.load_state_dict(saved)
    assert torch.equal(every(other), at_saved)
    other.load_state_dict(best)
    assert torch.equal(every(other), want)


def test_the_journal_holds_what_states_that_count_need(tmp_path):
    labels = labels_in(tmp_path)
    journals = lambda: sorted(int(p.name.split("-")[1]) for p in tmp_path.glob("*.undo-*"))  # noqa: E731
    write(labels, 1)
    for _ in range(3):
        labels.state_dict()
    assert journals() == [1, 2, 3, 4]
    labels.table.saved()
    assert journals() == [4]
    labels.state_dict()
    labels.table.keep("best")
    for _ in range(3):
        labels.state_dict()
        labels.table.saved()
    assert journals() == [5, 6, 7, 8]
    labels.table.finished()
    assert journals() == []


def test_what_was_never_written_takes_no_disk(tmp_path):
    targets = torch.zeros(200_000, dtype=torch.int64)
    labels = fastmeta.InstanceLabels(targets, 2000, table=in_file(tmp_path))
    write(labels, 0, 199_999)
    stat = os.stat(tmp_path / "labels.rows")
    assert stat.st_size > 1.6e9
    assert stat.st_blocks * 512 < 2e5
    assert labels.finite()
    labels.write_(torch.tensor([5]), torch.full((1, 2000), torch.nan))
    assert not labels.finite()
    write(labels, 5)
    assert labels.finite()


def no_room(monkeypatch, name, at):
    real, count = getattr(os, name), [0]

    def call(*args, **kw):
        count[0] += 1
        if count[0] >= at:
            raise OSError(28, os.strerror(28))
        return real(*args, **kw)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("classes", "name"), [(1100, "pwrite"), (3, "posix_fallocate")])
def test_a_full_disk_is_said_and_the_state_stays(classes, name, tmp_path, monkeypatch):
    labels = labels_in(tmp_path, classes)
    write(labels, 1, 2)
    state, want = state_of(labels), every(labels)
    said = r"^cannot write the label rows in .*labels.rows: No space left on device; make room there, or name a file"
    with monkeypatch.context() as patch:
        no_room(patch, name, 1)
        labels.table.file._allocated[:] = labels.table.file._all_allocated = False
        with pytest.raises(TableError, match=said):
            write(labels, 2, 3, seed=1)
    with monkeypatch.context() as patch:
        no_room(patch, "write", 1)
        with pytest.raises(TableError, match="cannot write the journal of the label rows in"):
            write(labels, 1, seed=1)
    write(labels, 1, 6, seed=1)
    del labels
    other = labels_in(tmp_path, classes)
    other.load_state_dict(state)
    assert torch.equal(every(other), want)


def damaged(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_what_is_missing_damaged_or_somebody_elses_is_said(tmp_path):
    labels = labels_in(tmp_path, owner="a")
    write(labels, 1, 2)
    state = labels.state_dict()
    write(labels, 1, seed=1)
    write(labels, 2, seed=1)
    rows, journal = tmp_path / "labels.rows", next(tmp_path.glob("*undo-2-0"))
    del labels

    def raises(message):
        with pytest.raises(TableError, match=message):
            labels_in(tmp_path).load_state_dict(state)

    content = rows.read_bytes(), journal.read_bytes()
    journal.unlink()
    raises("the journal of the label rows is not whole: .*undo-2-0 is gone; bring it back")
    journal.write_bytes(content[1])
    damaged(journal, 70)
    raises("undo-2-0 is damaged: its content and its checksum differ; bring it back")
    journal.write_bytes(content[1])
    damaged(journal, 10)
    raises("undo-2-0 is damaged, or the journal of other label rows")
    journal.write_bytes(content[1])
    rows.unlink()
    raises("the label rows were in .*labels.rows, which is gone; bring it back")
    rows.write_bytes(b"x" * 10000)
    raises("holds no label rows")
    rows.write_bytes(content[0][:-4])
    raises("is damaged: it has lost rows at its end")
    rows.write_bytes(content[0])
    other = labels_in(tmp_path, owner="a")
    with pytest.raises(ValueError, match="holds the label rows of another run; name another file, or delete it"):
        labels_in(tmp_path, owner="b")
    with pytest.raises(TableError, match="holds the label rows of another run"):
        write(labels_in(tmp_path), 1)
    write(other, 1)  # of the same owner: begun anew
    del other
    raises("holds the label rows of another run; bring the file of this one back")
    with pytest.raises(ValueError, match="is no folder; make it first"):
        labels_in(tmp_path / "nowhere")


def test_ranks_share_one_file_and_another_number_of_them_goes_on(tmp_path):
    def on_ranks(parts, work):
        """`work` on each part of the rows, all at once."""
        meet = threading.Barrier(len(parts), timeout=20).wait

        def rank(part):
            (a, b), kind = part, in_file(tmp_path, first_row=part[0], rows_in_all=12, meet=meet)
            return work(fastmeta.InstanceLabels(TARGETS[a:b], 3, table=kind), a, b)

        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(rank, parts))

    def first_run(own, a, b):
        write(own, 1, 4, seed=a)
        state, rows = (
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in own.state_dict().items()},
            every(own),
        )
        write(own, 0, 4, seed=7 + a)
        return state, rows

    states, rows = zip(*on_ranks([(0, 7), (7, 12)], first_run), strict=True)
    written = torch.cat([state["table.written"] for state in states])
    for parts in ([(0, 5), (5, 9), (9, 12)], [(0, 12)], [(0, 12), (12, 12)]):

        def go_on(own, a, b):
            own.load_state_dict({**states[0], "targets": own.targets, "table.written": written[a:b]})
            made = every(own)
            if a < b:
                write(own, 0, 2, seed=3)
            return made, own.table.journal.generation

        made, generations = zip(*on_ranks(parts, go_on), strict=True)
        assert torch.equal(torch.cat(made), torch.cat(rows))
        assert len(set(generations)) == 1


class Late:
    """Copies as CUDA makes them: what is there before they have been waited for is nothing to go by."""

    def __init__(self, real, copied):
        self.real, self.copied = real, copied

    def synchronize(self):
        for t, value in zip(self.copied, self.real, strict=True):
            t.copy_(value)


class Link:
    def to_device(self, rows):
        there = torch.full_like(rows, torch.nan)
        return there, Late([rows.clone()], [there])

    def wait(self, arrived, rows):
        arrived.synchronize()

    def to_host(self, index, rows):
        copied = [torch.full_like(index, -9), torch.full_like(rows, torch.nan)]
        return *copied, Late([index.clone(), rows.clone()], copied)


@pytest.mark.parametrize("kind", ["host", "mmap"])
@pytest.mark.parametrize("told", ["ahead", "not told", "another batch"])
def test_rows_that_are_brought_ahead_and_written_behind(kind, told, tmp_path):
    dense, away = (fastmeta.InstanceLabels(TARGETS, 3, table=t) for t in (None, table_of(kind, tmp_path)))
    away.table.way = way = Way(Link())
    batches = torch.randint(0, 12, (20, 5), generator=torch.Generator().manual_seed(0))  # rows stand in several
    away.table.ahead(batches[0])
    for k, index in enumerate(batches):
        asked = index if k % 7 else torch.tensor([1, 11, 3])
        assert torch.equal(away.rows(asked), dense.rows(asked))
        if told == "ahead" and k + 1 < len(batches):
            coming = batches[k + 1]
            away.table.ahead(coming)
            before = len(way._behind)
            assert before <= 1  # nothing waits for the step before
        elif told == "another batch":
            away.table.ahead(torch.tensor([2, 2, 3]))
        seeds = torch.Generator().manual_seed(k)
        new = torch.randn(12, 3, generator=seeds)[index]
        for own in (dense, away):
            old = own.rows(index)
            own.write_(index, new)
            if k % 3 == 0:  # as a step that does not count
                own.write_(index, old)
        if k == 10:
            away.table.settle()
    assert torch.equal(away.rows(torch.arange(12)), dense.label_logits)
    state = state_of(away)
    other = fastmeta.InstanceLabels(TARGETS, 3, table=table_of(kind, tmp_path))
    del away
    other.load_state_dict(state)
    assert torch.equal(every(other), dense.label_logits)


class Stopped(BaseException):
    """A process that is no more."""


class Stop:
    """Ends at call number `at` of those that write, some of them half done."""

    def __init__(self, patch, at):
        self.at, self.count = at, 0
        for name in (
            "open",
            "write",
            "pwrite",
            "ftruncate",
            "posix_fallocate",
            "fsync",
            "fdatasync",
            "unlink",
            "replace",
        ):
            patch.setattr(os, name, self.watched(getattr(os, name), name))
        patch.setattr(RowFile, "write", self.rows(RowFile.write))

    def strike(self):
        self.count += 1
        return self.count == self.at

    def watched(self, real, name):
        def call(*args, **kw):
            if threading.current_thread() is not threading.main_thread():
                return real(*args, **kw)
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kw)
            if self.strike():
                if name in ("write", "pwrite"):
                    real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
                raise Stopped
            return None if "sync" in name else real(*args, **kw)

        return call

    def rows(self, real):
        def write(file, index, rows):
            if self.strike():
                real(file, index[: len(index) // 2], rows[: len(index) // 2])
                raise Stopped
            real(file, index, rows)

        return write


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_a_stop_between_any_two_writes_leaves_the_state_that_counts(classes, tmp_path, monkeypatch):
    """Also one while the rows of another stop are put back."""

    def life(folder, saved, at):
        """A process: goes on from what is saved, saves twice more; how many writes it came to."""
        with monkeypatch.context() as patch:
            stop = Stop(patch, at)
            try:
                labels = labels_in(folder, classes, owner="a")
                if saved:
                    labels.load_state_dict(saved[-1][0])
                    assert torch.equal(every(labels), saved[-1][1])
                for k in range(2):
                    write(labels, 1, 2 + k, 5, seed=k)
                    labels.table.soon(torch.tensor([1, 3, 7]))
                    write(labels, 1, 3, 7, seed=5 + k)
                    state = state_of(labels), every(labels)
                    saved.append(state)  # its file moves into place
                    labels.table.saved()
                write(labels, 1, 2, 3, 11, seed=9)
            except Stopped:
                pass
        return stop.count

    whole = life(tmp_path / "whole", [], 0) if (tmp_path / "whole").mkdir() is None else 0
    assert whole > 30
    for at in range(1, whole + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        saved = []
        life(folder, saved, at)
        life(folder, saved, 1 + at % 11)
        for _ in range(2):
            labels = labels_in(folder, classes, owner="a")
            if saved:
                labels.load_state_dict(saved[-1][0])
                assert torch.equal(every(labels), saved[-1][1]), at
            write(labels, 1, 4, seed=at)
            del labels
