"""`FileLock`: one process at a time works in a folder or on a file; the lock goes when its process dies."""

import contextlib
import errno
import os
import time
from pathlib import Path

from captioning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

MODE = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
HELD: set[tuple[int, int]] = set()  # device and inode of the locks of this process: lockf() refuses other ones only


class FileLock:
    """Holds an exclusive lock on the file `path`, which is made where it is missing, until `release` or the exit.

    what: what is locked, for the error ("the run in models/a"); advice: what to do instead; wait: for how many seconds
    to try again where another process holds it. Processes that this one forks (loaders) do not hold it, so that it is
    free as soon as this process is dead. As a context manager it releases at the end. Where the file system has no
    locks nothing is held. Raises UserError where another process, or this one, holds it, and where the file cannot be
    made.
    """

    def __init__(self, path, what: str, advice: str = "wait until it has ended", wait: float = 0.0):
        self.path, self.key, self.handle = Path(path), None, None
        last = time.monotonic() + wait
        while not self._taken():
            if time.monotonic() >= last:
                raise UserError(f"another process is at work on {what}: {advice}")
            time.sleep(0.05)

    def _taken(self) -> bool:
        """Take the lock, if nobody holds it."""
        if self._key() in HELD:  # not even opened: to close a file releases all locks that the process has on it
            return False
        try:
            handle = os.open(self.path, MODE, 0o666)
            found = os.fstat(handle)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        key = found.st_dev, found.st_ino
        try:
            lock(handle)
        except OSError as error:
            if error.errno in HELD_BY_ANOTHER:
                os.close(handle)
                return False
        if self._key() != key:  # whoever held it has removed the file in the meantime
            os.close(handle)
            return self._taken()
        self.handle, self.key = handle, key
        HELD.add(key)
        return True

    def _key(self) -> tuple[int, int] | None:
        """What tells the file from all others; None where it is not there."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def held(self) -> bool:
        return self.key is not None

    def release(self, remove: bool = False) -> None:
        """Let others in; with `remove` the lock's file goes first, on Windows last, where open files cannot go."""
        if self.key is None:
            return
        if remove and fcntl is not None:
            self.path.unlink(missing_ok=True)
        HELD.discard(self.key)
        os.close(self.handle)
        self.key = self.handle = None
        if remove and fcntl is None:
            with contextlib.suppress(OSError):  # another process has it by now
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, *error) -> None:
        self.release()

    def __del__(self):
        self.release()


def lock(handle: int) -> None:
    """Lock an open file until it is closed. Raises OSError, at once, where another process holds it."""
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
