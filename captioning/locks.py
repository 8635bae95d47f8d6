"""`FileLock`: one process at a time works in a folder or on a file; the lock goes when its process dies."""

import errno
import os
from pathlib import Path

from captioning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

HELD: set[tuple[int, int]] = set()  # device and inode of the locks of this process: lockf() refuses other ones only


class FileLock:
    """Holds an exclusive lock on the file `path`, which is made where it is missing, until `release` or the exit.

    what: what is locked, for the error ("the run in models/a"); advice: what to do instead. Processes that this one
    forks (loaders) do not hold it, so that it is free as soon as this process is dead. As a context manager it releases
    at the end. Where the file system has no locks nothing is held. Raises UserError where another process, or this one,
    holds it, and where the file cannot be made.
    """

    def __init__(self, path, what: str, advice: str = "wait until it has ended"):
        self.path, self.key, self.handle = Path(path), None, None
        while fcntl is not None and self.key is None:
            self._take(what, advice)

    def _take(self, what: str, advice: str) -> None:
        """Lock the file, unless its holder has removed it meanwhile."""
        try:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            found = os.fstat(self.handle)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        key = found.st_dev, found.st_ino
        busy = key in HELD
        if not busy:
            try:
                fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                busy = error.errno in (errno.EACCES, errno.EAGAIN)
        if busy:
            if key not in HELD:  # to close a file releases all locks that the process has on it
                os.close(self.handle)
            raise UserError(f"another process is at work on {what}: {advice}")
        try:
            there = os.stat(self.path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != key:
            os.close(self.handle)
        else:
            self.key = key
            HELD.add(key)

    @property
    def held(self) -> bool:
        return self.key is not None

    def release(self, remove: bool = False) -> None:
        """Let others in; with `remove` the lock's file goes first."""
        if self.key is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        HELD.discard(self.key)
        os.close(self.handle)
        self.key = self.handle = None

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, *error) -> None:
        self.release()

    def __del__(self):
        self.release()
