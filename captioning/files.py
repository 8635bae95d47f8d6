"""Files: atomic writing, checks before the work, reading JSON and text with errors that name file and line."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from captioning.errors import UNWRITABLE, UserError

try:
    import fcntl
except ImportError:  # Windows: leftovers stay, since nothing tells whether their writer is alive
    fcntl = None

CANNOT_WRITE = UNWRITABLE | {errno.EISDIR}
STREAM = re.compile(r"/dev/std(out|err)|/(?:dev|proc/self)/fd/(\d+)")  # what is open in this process, by its number
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # names that atomic_write gives


@contextlib.contextmanager
def atomic_write(path, mode: str = "w", flush: bool = True):
    """Open a temporary file beside `path`; on success flush it to disk and rename it to `path`, else remove it.

    A reader therefore sees the old file or the complete new one, never half of it. Without `flush` that holds unless
    the machine itself fails soon after. A link stays a link: the file that it leads to is replaced. What is no plain
    file (`/dev/null`, a pipe) is written to directly. Raises UserError where the file cannot be written, at whatever
    byte; an older file is then as it was. What killed processes left of the same file is removed.
    Text is UTF-8; half characters, and bytes of file names that are no text, are written as \\udcXX, as JSON has them.
    """
    path = Path(path)
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    if not is_plain(path):
        with naming_file(path), open_through(path, mode) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    try:
        if flush:
            remove_leftovers(target.parent, target.name)
        handle, temporary = new_file_beside(target)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with open(handle, mode, encoding=encoding, errors=errors) as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        with naming_file(path):
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private; give it the usual mode
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if (cause := _write_error(error)) is not None:
            raise UserError(f"cannot write {path}: {cause.strerror or cause}") from error
        raise


@contextlib.contextmanager
def naming_file(path):
    """Within it an error of writing becomes a UserError that names `path`, but BrokenPipeError stays."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def is_plain(path) -> bool:
    """Whether `path` is a plain file, a link to one, or nothing yet: neither a device or pipe nor an open stream."""
    return STREAM.fullmatch(os.path.abspath(path)) is None and (os.path.isfile(path) or not exists_apart(path))


def exists_apart(path) -> bool:
    """Whether `path` is there and is no folder, which is refused as every file of that name would be."""
    return os.path.exists(path) and not os.path.isdir(path)


def open_through(path, mode: str = "w"):
    """Open what is no plain file for writing: a stream of this process as it stands, others by their name."""
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    stream = STREAM.fullmatch(os.path.abspath(path))
    if stream is None:
        return open(path, mode, encoding=encoding, errors=errors)
    sys.stdout.flush()  # what has been printed comes first
    return open(os.dup({"out": 1, "err": 2}.get(stream[1]) or int(stream[2])), mode, encoding=encoding, errors=errors)


def new_file_beside(path: Path) -> tuple[int, str]:
    """A new file for `atomic_write` in the folder of `path`, which is made where it is missing: handle and name.

    A lock on it lasts as long as this process has it open: remove_leftovers() lets it be.
    """
    names = {"prefix": f".{path.name}.", "suffix": ".tmp", "dir": path.parent}
    while True:
        try:
            handle, name = tempfile.mkstemp(**names)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(**names)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink or fcntl is None:
            return handle, name
        os.close(handle)  # another process took it for a leftover before it was locked


def known_ending(path, what: str, known: Sequence[str]) -> str:
    """The ending of `path`, in lower case. Raises UserError where it is none of `known`; `what` names its role."""
    ending = Path(path).suffix.lower()
    if ending not in known:
        raise UserError(f"{what}: unknown ending of {str(path)!r}: use one of {', '.join(known)}")
    return ending


def require_file(option: str, path) -> None:
    """Raises UserError where `path`, the value of the flag `option`, is no file."""
    if not Path(path).is_file():
        found = "is a folder, not a file" if Path(path).is_dir() else "no such file"
        raise UserError(f"{option}: {found}: {path}")


def require_model_file(path) -> None:
    """Raises UserError where there is no file `path`; whether it is a model file is for checkpoint.load to say."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a model file; perhaps {path / 'best.model'}")
    if not path.exists():
        raise UserError(f"no such model file: {path}")
    require_plain_file(path, "model file")


def check_new(option: str, path, force: bool) -> None:
    """Raises UserError where `path` exists, unless it may be written over. `option` names its flag."""
    if Path(path).exists() and not force:
        raise UserError(f"{option} {path} exists: give another name, or --force to write over it")


def check_writable(option: str, path) -> None:
    """Raises UserError where `path` cannot be written: better before the work than after it. `option` names its flag.

    The folder of `path` is made where it is not there.
    """
    if not is_plain(path):
        if STREAM.fullmatch(os.path.abspath(path)) is None and not os.access(path, os.W_OK):
            raise UserError(f"{option}: {path} cannot be written")
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"{option}: {path} is a folder; name a file")
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: cannot make the folder {Path(path).parent}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: the folder {Path(path).parent} cannot be written")


def _write_error(error: BaseException | None) -> OSError | None:
    """The error of a full or read-only disk that led to `error`; libraries hide it behind errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            return error
        error = error.__cause__ or error.__context__
    return None


def remove_leftovers(folder, name: str = "") -> None:
    """Remove the temporary files that killed processes left in `folder`; those being written now stay.

    name: only those of this file.
    """
    if fcntl is None:
        return
    begin = f".{name}." if name else "."
    with contextlib.suppress(OSError):
        found = [entry for entry in os.scandir(folder) if entry.name.startswith(begin)]
        for path in [Path(entry) for entry in found if TEMPORARY.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where the writer is alive
                path.unlink()


def require_plain_file(path, what: str) -> None:
    """Raises UserError for a folder, a pipe, a device, and where nothing is at `path`; `what` names its role.

    A pipe may never give anything, and /dev/zero never ends.
    """
    with _reading(path, what):
        pass


@contextlib.contextmanager
def _reading(path, what: str) -> Iterator[None]:
    """Within it an error of reading `path` becomes a UserError, as for what is no plain file. `what` names its role."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{what}: {path} is {'a folder' if os.path.isdir(path) else 'not a plain file'}")
        yield
    except FileNotFoundError:
        raise UserError(f"{what}: no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_bytes(path, what: str) -> bytes:
    """The content of the file `path`; `what` names its role in errors. Raises UserError where it cannot be read."""
    with _reading(path, what), open(path, "rb") as file:
        return file.read()


def sha256_of(path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path, what: str):
    """Parse the JSON file `path`; `what` names its role in errors ("captions", "results").

    A byte order mark is passed over. Raises UserError naming the file and, for malformed JSON, the line and column.
    """
    data = read_bytes(path, what)
    try:
        return parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {path} is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise UserError(f"{what}: {path} is not valid JSON: {error}") from error


def parse_json(text: str):
    """The value of a JSON text. Raises ValueError with a message of one line, also where a key stands there twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError:
        raise ValueError("lists within lists without end") from None


def _object(pairs: list[tuple[str, object]]) -> dict:
    """An object of a JSON file. Of a key that stands there twice, one value would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"an object has the key {twice[:60]!r} twice")
    return found


KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def expect(value, kinds: type | tuple[type, ...], path, place: str = ""):
    """`value` itself, which must be of one of `kinds`. A float stands for any finite number; a bool is no number.

    path: the file that it was read from; place: where in it, as in "images[3].id"; "" is the whole content.
    Raises UserError that names both and what stands there: "x.json: images[3].id is a number, not a text".
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    kind, where = type(value), f"{path}: {place}" if place else f"{path}"
    if kind in kinds and kind is not float:
        return value
    if float in kinds and kind in (int, float):
        if is_finite(value):
            return value
        raise UserError(f"{where} is {value if kind is float else 'too large'}, not a finite number")
    found = "a number" if kind in (int, float) else KINDS.get(kind, kind.__name__)
    if kind is float and int in kinds:
        found = f"{value}"
    raise UserError(f"{where} is {found}, not {' or '.join(KINDS[wanted] for wanted in kinds)}")


def member(table, name: str, kinds: type | tuple[type, ...], path, place: str = ""):
    """The value of `name` in `table`, the object at `place` of the file `path`. Raises UserError as `expect` does.

    Raises UserError too where `table` is no object or has no such member.
    """
    if name not in expect(table, dict, path, place):
        raise UserError(f"{path}{f': {place}' if place else ''} has no {name!r}")
    return expect(table[name], kinds, path, f"{place}.{name}" if place else name)


def is_finite(value: float) -> bool:
    """Whether a number is finite and no whole number beyond the largest float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_lines(path, what: str, errors: str = "strict") -> list[str]:
    """The lines of the UTF-8 text file `path`, without their ends; `what` names its role in errors.

    A byte order mark is passed over. errors: "surrogateescape" keeps bytes that are no text, as names of files may have
    them. Raises UserError naming the file and, for other bytes that are no text, the line.
    """
    data = read_bytes(path, what)
    try:
        text = data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{what}: {path}, line {line} is not UTF-8 text") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
