"""A disk that fails, or a process that dies, at the k-th call that would change a run directory."""

import builtins
import errno
import os
import signal
from pathlib import Path

CALLS = ("open", "write", "fsync", "replace", "mkdir", "truncate", "unlink", "rmdir")
#: what fails from then on: a full disk can still remove, a read-only one nothing; the other errors pass
LASTING = {errno.ENOSPC: {"open", "write", "mkdir"}, errno.EROFS: {*CALLS} - {"fsync"}}


class Disk:
    """Counts the calls below `root` from `os` that write, and at number `at` (from 1) raises `error`, or kills.

    `error` None kills this process. Calls beside `os` that open a file there for writing are a mistake of the tested
    code, which these tests would not see.
    """

    def __init__(self, monkeypatch, root, at=None, error=None):
        self.root, self.at, self.error = str(Path(root).absolute()), at, error
        self.count, self.ours, self.failed = 0, set(), False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        monkeypatch.setattr(builtins, "open", self._plain_open(builtins.open))

    def _inside(self, path):
        return isinstance(path, str | os.PathLike) and str(Path(path).absolute()).startswith(self.root)

    def _plain_open(self, real):
        def opened(file, mode="r", *args, **options):
            assert not (self._inside(file) and set(mode) & set("wax+")), file
            return real(file, mode, *args, **options)

        return opened

    def _watched(self, name, real):
        def call(*args, **options):
            subject = args[0]
            if name == "open":
                if not self._inside(subject):
                    return real(*args, **options)
                if args[1] & (os.O_WRONLY | os.O_RDWR):
                    self._strike(name, subject)
                file = real(*args, **options)
                self.ours.add(file)
                return file
            if subject in self.ours or self._inside(subject):
                torn = (lambda: real(subject, bytes(args[1])[: len(args[1]) // 2])) if name == "write" else None
                self._strike(name, subject, torn)
            # whether it reaches the platter is no matter here, and takes its time
            return None if name == "fsync" else real(*args, **options)

        return call

    def _strike(self, name, subject, torn=None):
        self.count += 1
        lasting = self.failed and name in LASTING.get(self.error, ())
        if self.count != self.at and not lasting:
            return
        if torn is not None:
            torn()
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.failed = True
        raise OSError(self.error, os.strerror(self.error), None if isinstance(subject, int) else str(subject))
