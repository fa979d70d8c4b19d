"""A process that dies, or whose disk is full, at the n-th file operation below a folder."""

import errno
import os
import pathlib
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

PATCHED = ("fsync", "replace", "unlink", "rmdir", "mkdir")
FREEING = ("unlink", "rmdir")  # what a full disk does not refuse


class Faults:
    """Counts operations on files below ``folder``. At number ``fatal`` the process dies without a word.

    With ``full`` it lives on and that operation fails for want of room, and so do all that follow. Of a write, half
    of the bytes are there in both cases.
    """

    def __init__(self, folder, fatal=None, full=False):
        self.folder, self.fatal, self.full = str(folder), fatal, full
        self.names, self.folders = [], []  # of the operations, and whether each was on a folder
        for name in PATCHED:
            setattr(os, name, self.counted(name, getattr(os, name)))
        opened = pathlib.Path.open

        def open_(path, mode="r", *arguments, **options):
            file = opened(path, mode, *arguments, **options)
            return file if "r" in mode or not str(path).startswith(self.folder) else Torn(file, self)

        pathlib.Path.open = open_

    def counted(self, name, function):
        def call(target, *arguments, **options):
            path = str(Path(f"/proc/self/fd/{target}").readlink()) if isinstance(target, int) else str(target)
            if path.startswith(self.folder) and self.reached(name, path):
                self.happen()
            return function(target, *arguments, **options)

        return call

    def reached(self, name, path):
        """Whether this is an operation that fails."""
        self.names.append(name)
        self.folders.append(Path(path).is_dir())
        number = len(self.names) - 1
        if self.fatal is None or number < self.fatal:
            return False
        return number == self.fatal if not self.full else name not in FREEING

    def happen(self):
        if not self.full:
            os._exit(9)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Torn:
    """A file that keeps the first half of the fatal write."""

    def __init__(self, file, faults):
        self.file, self.faults = file, faults

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        if self.faults.reached("write", self.file.name):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            self.faults.happen()
        return self.file.write(content)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


def forked(work, kill_after=None):
    """Run ``work`` in a fork; return its exit status, negative the signal that ended it."""
    if not (child := os.fork()):
        try:
            warnings.simplefilter("ignore")  # what is passed over, as it should be
            status = work()
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
            os._exit(70)
        os._exit(status if isinstance(status, int) else 0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
