"""Open feature files of this process, each opened once and shared by all who read it; errors that name the file."""

import contextlib
import os
import threading
from pathlib import Path

from captioning.errors import UserError, one_line

handles_lock = threading.RLock()
_handles: dict[str, tuple] = {}  # real path -> (stat of the file when opened, handle)
_recent: dict[Path, tuple] = {}  # by the path asked for: finding the real one takes as long as reading a batch


def handle(path: Path, opener):
    """The open handle of `path`, shared in this process: lmdb refuses to open a file twice. Call under handles_lock.

    opener: called where the file is not open yet, or another one took its place.
    """
    stamp = stamp_of(path)
    if path in _recent and _recent[path][0] == stamp:
        return _recent[path][1]
    name = os.path.realpath(path)
    if name in _handles and _handles[name][0] != stamp:  # another file took its place
        forget(name)
    if name not in _handles:
        _handles[name] = (stamp, opener())
    _recent[path] = _handles[name]
    return _handles[name][1]


def stamp_of(path) -> tuple[int, ...]:
    """Numbers that change when another file takes the place of `path`, and when it is written to."""
    now = os.stat(path)
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def forget(path) -> None:
    """Close the handle of `path`, if there is one."""
    with handles_lock:
        _recent.clear()
        entry = _handles.pop(os.path.realpath(path), None)
        if entry:
            entry[1].close()


def _before_fork() -> None:
    """lmdb counts a file that was open at the fork as open in the child, which then could not open it itself."""
    handles_lock.acquire()
    for name in list(_handles):
        forget(name)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=handles_lock.release, after_in_child=handles_lock.release)


@contextlib.contextmanager
def naming(path, doing: str = "read"):
    """A block in which any error of a library, as over a damaged file, becomes a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (
            getattr(error, "strerror", None) or one_line(str(error).removeprefix(f"{path}: ")) or type(error).__name__
        )
        raise UserError(f"cannot {doing} feature file {path}: {reason}") from error
