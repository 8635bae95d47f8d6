"""Results files while they grow, and going on with them.

    with ResultsFile("captions.jsonl", "jsonl", resume=True) as file:
        file.earlier                                     # results of an interrupted run
        file.add(Result(42, [("A dog runs.", -7.31)]))

A file grows in FILE.part, for txt and json in the format of jsonl, and becomes FILE when all is written. Of several
processes that torchrun started the second grows FILE.part.1, and so on; the first one writes FILE from all.
"""

import contextlib
import os
import re
from pathlib import Path

from captioning.errors import UserError
from captioning.files import atomic_write, is_plain, naming_file, open_through
from captioning.locks import FileLock
from captioning.text.cleaning import id_text
from inference.results.formats import all_lines, lines_of, whole_text
from inference.results.reading import read_results
from inference.results.result import Result

GROWING = ("jsonl", "csv")  # in FILE.part as in FILE


class ResultsFile:
    """Writes results; FILE is complete or not there at all. FILE.part has them while they grow.

    resume: keep what FILE.part and the parts of other processes, or else FILE, hold; `earlier` has it. Its image ids
    are texts where the file is a csv. words: whether the results have words. force: begin anew where an interrupted run
    left results in parts. shared: other processes have PartFiles; `arrange` then gives the results of all.
    scores: whether json has log-probabilities and confidences, as jsonl always has.
    A link stays a link; what is no plain file (`/dev/stdout`, a pipe) is written to directly. From the beginning until
    `close`, or the end of the `with` block, no other process can write a file that grows.
    Raises UserError for a file that is no such results file, and where another run is at work on it or left results.
    """

    scores = False

    def __init__(self, path, form: str, resume=False, words=False, force=False, shared=False):
        self.path, self.form, self.words = Path(path), form, words
        self.target = Path(os.path.realpath(path))
        self.direct = not is_plain(path)
        self.part = part_path(self.target, 0)
        self.part_form = part_form(form)
        # a pipe must wait for the results of all processes, and for all of json
        self.grows = not self.direct or (form in GROWING and not shared)
        self.earlier: list[Result] = []
        self.anew = False  # whether FILE.part has other lines than `results`
        self.lock = None
        if resume and self.direct:
            raise UserError(f"--resume: {path} is not a plain file")
        if not self.direct:
            hidden = self.target.with_name(f".{self.target.name}.lock")
            self.lock = FileLock(hidden, f"{path}")
            try:
                self.earlier = self._earlier(resume, force)
            except UserError:
                self.close()
                raise
        self.results = list(self.earlier)

    def _earlier(self, resume: bool, force: bool) -> list[Result]:
        parts = [path for path in (self.part, *self._other_parts()) if path.exists()]
        if resume and not parts:
            finished = self.target.exists() and self.form != "txt"  # whose ids and captions may have blanks: made anew
            return read_results(self.target, self.form, False, self.words) if finished else []
        if resume:
            results = [result for path in parts for result in read_results(path, self.part_form, True, self.words)]
            return list({id_text(result.image_id): result for result in results}.values())
        for part in parts:
            if not force and _has_results(part, self.part_form):
                advice = "add --resume to go on, or --force to begin anew"
                raise UserError(f"{part} has captions of an interrupted run: {advice}")
        return []

    def _other_parts(self) -> list[Path]:
        """FILE.part.1, ... that are there."""
        name, folder = re.compile(re.escape(self.part.name) + r"\.\d+"), self.part.parent
        return sorted(path for path in folder.iterdir() if name.fullmatch(path.name)) if folder.is_dir() else []

    def _remove_other_parts(self) -> None:
        for path in self._other_parts():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write the file."""
        if self.lock is not None:
            self.lock.release(remove=True)

    def __enter__(self) -> "ResultsFile":
        if self.grows:
            with naming_file(self.path):
                if self.direct:
                    self._file = open_through(self.path)
                    self._file.writelines(all_lines(self.form, self.earlier, self.words))
                    return self
                # without the half line that an interruption may have left
                write_part(self.part, self.part_form, self.earlier, self.words)
                self._remove_other_parts()
                self._file = open(self.part, "a", encoding="utf-8", newline="")
        return self

    def add(self, result: Result) -> None:
        if self.grows:
            with naming_file(self.path):
                self._file.write(lines_of(self.part_form, result))
                self._file.flush()
        self.results.append(result)

    def arrange(self, results: list[Result]) -> None:
        """`results` are all that FILE shall have, in this order: those of the other processes too."""
        self.anew |= len(results) != len(self.results) or any(a is not b for a, b in zip(results, self.results))
        self.results = results

    def __exit__(self, kind, error, traceback) -> None:
        """Completes the file; after an error leaves FILE.part for resuming, or removes it where it holds nothing."""
        try:
            if self.grows:
                self._end_growing(well=kind is None)
            elif kind is None:
                self._write_whole()
        finally:
            self.close()

    def _end_growing(self, well: bool) -> None:
        if not well:
            with contextlib.suppress(OSError):  # a full disk, which has been told
                self._file.close()
            if not self.results and not self.direct:
                self.part.unlink(missing_ok=True)
            return
        with naming_file(self.path):
            if not self.direct:
                os.fsync(self._file.fileno())
            self._file.close()
            if not self.direct:
                self._part_to_whole()

    def _part_to_whole(self) -> None:
        """Write FILE from its parts, before these go."""
        if self.part_form != self.form:
            self._write_whole()
            self._remove_other_parts()
            self.part.unlink()
            return
        if self.anew:
            write_part(self.part, self.form, self.results, self.words)
        self._remove_other_parts()
        os.replace(self.part, self.target)

    def _write_whole(self) -> None:
        with atomic_write(self.path) as file:
            file.write(whole_text(self.form, self.results, self.words, self.scores))


class PartFile:
    """The part of a results file that another process than the first one writes: FILE.part.N of process N.

    It has what infer.py asks of a ResultsFile. At a good end it goes: the first process has written FILE by then.
    """

    def __init__(self, path, form: str, process: int, words: bool = False):
        self.path, self.form, self.words = Path(path), form, words
        self.part = part_path(Path(os.path.realpath(path)), process)
        self.part_form, self.grows = part_form(form), is_plain(path)
        self.earlier: list[Result] = []
        self.results: list[Result] = []

    def __enter__(self) -> "PartFile":
        if self.grows:
            with naming_file(self.part):
                write_part(self.part, self.part_form, [], self.words)
                self._file = open(self.part, "a", encoding="utf-8", newline="")
        return self

    add = ResultsFile.add

    def __exit__(self, kind, error, traceback) -> None:
        if self.grows:
            with contextlib.suppress(OSError):
                self._file.close()
            if kind is None or not self.results:
                self.part.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing: the lock is with the first process."""


def part_path(target: Path, process: int) -> Path:
    """Where the results of a process grow."""
    return target.with_name(f"{target.name}.part" + (f".{process}" if process else ""))


def part_form(form: str) -> str:
    """The format of FILE.part: an object of json would have no end, and a line of txt has no log-probability."""
    return form if form in GROWING else "jsonl"


def write_part(path: Path, form: str, results: list[Result], words: bool) -> None:
    with atomic_write(path) as file:
        file.writelines(all_lines(form, results, words))


def _has_results(part: Path, form: str) -> bool:
    """Whether FILE.part holds more than the names of its columns."""
    return part.read_bytes().count(b"\n") > (form == "csv")
