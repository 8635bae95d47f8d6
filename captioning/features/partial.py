"""`PartialFolder`: X.EXT.partial, where the records of a feature file gather until the file is put in place.

settings.json   the shape, type and provenance of the records: they are being gathered
complete.json   in place of settings.json: all are there, and the name of the finished file in the folder
lock            held by the process that works in the folder
the others      are the store's; keys.txt and provenance.json belong beside the finished file

complete.json is there before the first file moves. Whatever ends the process then, `place` can go on, and nobody takes
old records for those of new names meanwhile: `refuse_half_placed`.
"""

import json
import os
import shutil
from pathlib import Path

from captioning.errors import UserError
from captioning.features.handles import forget
from captioning.files import atomic_write, member, read_json
from captioning.locks import FileLock

LMDB_FILE = "data.mdb"  # of a folder that lmdb made


def partial_path(path: Path) -> Path:
    """The partial folder of the feature file `path`; of a link, beside what it leads to."""
    target = Path(os.path.realpath(path))
    return target.with_name(target.name + ".partial")


def is_unfinished(path: Path) -> bool:
    """Whether an interrupted run left records of the feature file `path`."""
    folder = partial_path(path)
    if (folder / "complete.json").exists():
        return True
    names, records = folder / "keys.txt", folder / "lmdb" / LMDB_FILE
    return (folder / "settings.json").exists() and (records.exists() or (names.exists() and names.stat().st_size > 0))


def refuse_unfinished(path: Path) -> None:
    """Raises UserError where an interrupted run left records of the feature file `path`."""
    if is_unfinished(path):
        advice = "add --resume to go on, or --force to begin anew"
        raise UserError(f"{partial_path(path)} holds records of an interrupted run: {advice}")


def refuse_half_placed(path: Path) -> None:
    """Raises UserError where the writer of `path` died as it put the file in place, so that names may be others'."""
    if (partial_path(path) / "complete.json").exists():
        raise UserError(f"feature file {path} was not put in place to the end: repeat its extraction with --resume")


def discard_partial(path: Path) -> None:
    """Remove the records that an interrupted run left of `path`. Those of a complete file are put in place first."""
    if partial_path(path).exists():
        folder = PartialFolder(path)
        folder.place()
        folder.remove()


class PartialFolder:
    """The folder of the feature file `path`, made where it is missing, and locked until `leave` or `remove`.

    Raises UserError where another process is at work in it.
    """

    def __init__(self, path: Path):
        self.file, self.path = path, partial_path(path)
        self.target = Path(os.path.realpath(path))
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self.path.parent):
            if entry.name.startswith(leftover(self.path)) and entry.name.endswith(".tmp"):
                shutil.rmtree(entry, ignore_errors=True)
        self.lock = FileLock(self.path / "lock", f"feature file {path}")

    def begin(self, settings: dict, resume: bool) -> bool:
        """Note the settings of the records that are to come. Gives whether there are records to go on from.

        Raises UserError where there are some and `resume` is False, or where they were made with other settings.
        """
        noted = self.path / "settings.json"
        if not resume:
            refuse_unfinished(self.file)
        if resume and noted.exists():
            if read_json(noted, "resume") != json.loads(json.dumps(settings)):
                advice = f"remove it, or go on with those in {noted}"
                raise UserError(f"{self.path} was begun with other settings: {advice}")
            return True
        for entry in self.path.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with atomic_write(noted) as file:
            json.dump(settings, file, indent=1)
        return False

    def complete(self, name: str, provenance: dict | None) -> None:
        """Note that all records are there: in the file, or the folder of lmdb, `name`, and in keys.txt."""
        if provenance is not None and (self.path / "keys.txt").exists():
            with atomic_write(self.path / "provenance.json") as file:
                json.dump(provenance, file, indent=1)
        with atomic_write(self.path / "complete.json") as file:
            json.dump({"name": name, "provenance": provenance is not None}, file)

    def place(self) -> bool:
        """Put the files in place, if all records are there. Gives whether they are.

        Each file moves at one stroke, the data last. Called again after an interruption it goes on. What stood there
        before is replaced.
        """
        noted = self.path / "complete.json"
        if not noted.exists():
            return False
        where = f"resume: {noted}"
        complete = read_json(noted, "resume")
        name, has_maker = member(complete, "name", str, where), member(complete, "provenance", bool, where)
        if Path(name).name != name or name == "..":
            raise UserError(f"{where}: name is {name[:60]!r}, which is no file of the folder")
        source = self.path / name
        if source.is_dir():
            if self.target.exists():  # a folder cannot take the place of one
                source = source / LMDB_FILE
            move(source, self.target / LMDB_FILE if self.target.is_dir() else self.target)
        else:
            names, said = (Path(os.path.realpath(self.file.with_suffix(end))) for end in (".keys.txt", ".json"))
            move(self.path / "keys.txt", names)
            move(self.path / "provenance.json", said)
            if not has_maker:
                said.unlink(missing_ok=True)
            move(source, self.target)
        return True

    def remove(self) -> None:
        """Remove the folder and let others in."""
        gone = self.path.with_name(f"{leftover(self.path)}{os.getpid()}.tmp")  # at one stroke: others may begin at once
        os.replace(self.path, gone)
        self.lock.release()
        shutil.rmtree(gone, ignore_errors=True)

    def leave(self) -> None:
        """Let others in, unless that is done; the folder stays where it holds records."""
        if self.lock.held and not is_unfinished(self.file):
            self.remove()
        self.lock.release()


def leftover(folder: Path) -> str:
    """What the names of partial folders that are being removed begin with."""
    return f".{folder.name}."


def move(source: Path, target: Path) -> None:
    """Rename `source` to `target`, unless that has been done already."""
    if source.exists():
        forget(target)
        os.replace(source, target)
