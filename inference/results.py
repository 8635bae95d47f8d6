"""Results of captioning and their files (txt, json, jsonl, csv).

    with ResultsFile("captions.jsonl", "jsonl", resume=True) as file:
        file.earlier                                     # results of an interrupted run
        file.add(Result(42, [("A dog runs.", -7.31)]))

txt: `image_id caption` a line. json: the COCO results list. jsonl: a JSON object a line. csv: a row per caption. The
last two carry natural log-probabilities, of captions and of a token, and confidences; json has them where Style.scores
says so. A file grows in FILE.part, for txt and json in the format of jsonl, and becomes FILE when all is written. Of
several processes that torchrun started the second grows FILE.part.1, and so on; the first one writes FILE from all.

Where the words of the captions are shown one by one (Result.words), txt and json have them in place of the caption, as
DeepCaption does: `A=0.69/two=0.08 man=0.15/young=0.10`; json keeps the caption as `text`. jsonl has them under `words`
as numbers, with the <end> of the caption, and csv as a column of its own.

An image has the caption "" where the model was not sure enough of any (Result.withhold); json and jsonl say `unsure`.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from captioning.datasets.base import ImageItem
from captioning.errors import LINE_ENDS, UserError
from captioning.files import atomic_write, expect, is_plain, member, naming_file, open_through, parse_json, read_bytes
from captioning.images.tar_file import plain_path
from captioning.locks import FileLock
from captioning.tables import csv_lines, plain_cell
from captioning.text.cleaning import id_text, printable
from inference.lemmas import LemmaRules

FORMATS = ("txt", "json", "jsonl", "csv")
GROWING = ("jsonl", "csv")  # in FILE.part as in FILE
COLUMNS = ["image_id", "rank", "caption", "log_prob"]
LATER_COLUMNS = ["mean_log_prob", "confidence"]  # behind those, and behind the words; files of older versions lack them
NOT_SURE = "(not sure)"  # shown in place of captions that were withheld
Word = tuple[str, float | None]  # None: its probability was not asked for


@dataclass(frozen=True)
class Style:
    """How results name an image, and what they say of it.

    capitalize: captions are sentences, with a capital and a period; rules: turn lemmas into words; probabilities,
    alternatives: show the words of a caption one by one, with their probabilities or so many of the likeliest words at
    each step (None: not asked for); paths: images are named by their paths instead of their ids; scores: json has
    log-probabilities and confidences; min_confidence: captions of less confidence are withheld.
    """

    capitalize: bool = True
    rules: LemmaRules | None = None
    probabilities: bool = False
    alternatives: int | None = None
    paths: bool = False
    scores: bool = False
    min_confidence: float | None = None

    @property
    def wants_words(self) -> bool:
        """Whether the words of captions are shown one by one."""
        return self.probabilities or self.alternatives is not None

    def id_of(self, item: ImageItem) -> int | str:
        """How results name an image: by its id, or by its path (its key where no image_dir tells the path)."""
        return printable(plain_path(item.path or item.key) if self.paths else item.image_id)


@dataclass
class Result:
    """An image's captions with their log-probabilities, best first. path and references serve the gallery.

    words: nothing, or for every caption its steps, <end> included: the word written, then others that might have been.
    shown: word_text() of them, where they were read from a csv file, which has no more.
    mean_log_probs: of every caption the natural log-probability of a token, the mean over the words and <end>; nothing
    where they were read from a file of an older version. confidences: of every caption the chance, 0 to 1, that it is a
    good one; nothing where the model's file has no calibration. unsure: all captions were withheld: the only one is "".
    """

    image_id: int | str
    captions: list[tuple[str, float]]
    path: str | None = None
    references: list[str] = field(default_factory=list)
    words: list[list[list[Word]]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    mean_log_probs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    unsure: bool = False

    def figures(self) -> dict[str, list[float]]:
        """`mean_log_probs` and `confidences` by the names that files have for one of them; those that are there."""
        figures = {"mean_log_prob": self.mean_log_probs, "confidence": self.confidences}
        return {name: values for name, values in figures.items() if values}

    def withhold(self, least: float) -> None:
        """Leave out captions of less confidence than `least`. Where none is left, "" takes the place of the best."""
        kept = [n for n, confidence in enumerate(self.confidences) if confidence >= least]
        if len(kept) == len(self.captions):
            return
        if not kept:
            self.captions[0], self.unsure = ("", self.captions[0][1]), True
            self.words, self.shown = self.words and [[]], self.shown and [""]
        for name in ("captions", "words", "shown", "mean_log_probs", "confidences"):
            values = getattr(self, name)
            setattr(self, name, values and [values[n] for n in kept or [0]])


def format_of(path) -> str | None:
    """The format that the ending of `path` names, None where it names none."""
    ending = Path(path).suffix.lower().removeprefix(".")
    return ending if ending in FORMATS else None


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
                    self._file.writelines(_all_lines(self.form, self.earlier, self.words))
                    return self
                # without the half line that an interruption may have left
                write_part(self.part, self.part_form, self.earlier, self.words)
                self._remove_other_parts()
                self._file = open(self.part, "a", encoding="utf-8", newline="")
        return self

    def add(self, result: Result) -> None:
        if self.grows:
            with naming_file(self.path):
                self._file.write(_lines(self.part_form, result))
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
            if self.form == "json":
                entries = [json.dumps(_coco(one, "json", self.scores), ensure_ascii=False) for one in self.results]
                file.write("[\n" + ",\n".join(entries) + "\n]\n")
            else:
                file.writelines(_all_lines(self.form, self.results, self.words))


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
        file.writelines(_all_lines(form, results, words))


def _all_lines(form: str, results: list[Result], words: bool) -> list[str]:
    """The lines of a txt, jsonl or csv file of `results`."""
    head = [",".join(COLUMNS + ["words"] * words + LATER_COLUMNS) + "\n"] if form == "csv" else []
    return head + [_lines(form, result) for result in results]


def _has_results(part: Path, form: str) -> bool:
    """Whether FILE.part holds more than the names of its columns."""
    return part.read_bytes().count(b"\n") > (form == "csv")


def word_text(steps: list[list[Word]], capitalize: bool = True) -> str:
    """The words of a caption, <end> left out: `A=0.69/two=0.08 man=0.15`, or `A/two man` without probabilities."""
    texts = []
    for number, step in enumerate(step for step in steps if step[0][0] != "<end>"):
        names = [word for word, _ in step]
        if number == 0 and capitalize:
            names[0] = names[0][:1].upper() + names[0][1:]
        texts.append("/".join(name if p is None else f"{name}={p:.6g}" for name, (_, p) in zip(names, step)))
    return " ".join(texts)


def shown_texts(result: Result) -> list[str]:
    """What is shown of the captions: their words one by one, where those are there, else the captions."""
    if not result.words:
        return result.shown or [text for text, _ in result.captions]
    # a caption that begins with a capital shows its first word so
    return [word_text(steps, text[:1].isupper()) for steps, (text, _) in zip(result.words, result.captions)]


def _lines(form: str, result: Result) -> str:
    """The lines of one image, each ended."""
    if form == "jsonl":
        return json.dumps(_coco(result, "jsonl", scores=True), ensure_ascii=False) + "\n"
    if form == "txt":  # a line each, whatever the name of a file holds
        lines = [f"{result.image_id} {text}".translate(LINE_ENDS) for text in shown_texts(result)]
        return "".join(f"{line}\n" for line in lines)
    rows = [[result.image_id, n, text, f"{p:.4f}"] for n, (text, p) in enumerate(result.captions, 1)]
    if result.words or result.shown:
        rows = [[*row, text] for row, text in zip(rows, shown_texts(result))]
    for name in LATER_COLUMNS:
        cells = [f"{value:.4f}" for value in result.figures().get(name, ())] or [""] * len(rows)
        rows = [[*row, cell] for row, cell in zip(rows, cells)]
    return csv_lines(rows)


def _coco(result: Result, form: str, scores: bool) -> dict:
    entries = []
    for number, ((text, log_prob), shown) in enumerate(zip(result.captions, shown_texts(result))):
        by_word = (result.words or result.shown) and form == "json"
        entry = {"caption": shown, "text": text} if by_word else {"caption": text}
        if scores:
            entry["log_prob"] = round(log_prob, 4)
            for name, values in result.figures().items():
                entry[name] = round(values[number], 4)
        if form == "jsonl" and result.words:
            steps = result.words[number]
            entry["words"] = [[name if p is None else [name, float(f"{p:.6g}")] for name, p in step] for step in steps]
        entries.append(entry)
    more = {"n_best": entries} if len(entries) > 1 else {"unsure": True} if result.unsure else {}
    return {"image_id": result.image_id, **entries[0], **more}


def read_results(path, form: str, unfinished: bool = False, words: bool = False) -> list[Result]:
    """The results in a json, jsonl or csv file. unfinished: its last image may be cut off, and is then left out.

    words: whether its results should have words. Log-probabilities that json does not have are not a number. Raises
    UserError naming the file and the place of what is wrong.
    """
    try:
        text = read_bytes(path, "--resume").decode("utf-8", "replace" if unfinished else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"--resume: {path} is not UTF-8 text (byte {error.start})") from error
    try:
        readers = {"json": _read_json, "jsonl": _read_jsonl, "csv": _read_csv}
        return readers[form](text, unfinished, words)
    except (ValueError, csv.Error) as error:
        raise UserError(f"--resume: {path} is no {form} results file of infer.py ({error}); remove it first") from error


def _read_jsonl(text: str, unfinished: bool, words: bool) -> list[Result]:
    lines = text.split("\n")
    if unfinished:
        lines.pop()  # it is empty, or was cut off
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line]
    return [_result(parse_json(line), f"line {number}", words, _take_jsonl_caption) for number, line in numbered]


def _read_json(text: str, unfinished: bool, words: bool) -> list[Result]:
    """The results in a finished json file, whose words are texts."""
    entries = expect(parse_json(text), list, "the file", "the results")
    return [_result(entry, f"entry {n}", words, _take_json_caption) for n, entry in enumerate(entries, 1)]


def _result(entry, place: str, words: bool, take: Callable) -> Result:
    """The result in an object of a json or jsonl file.

    take(result, object of a caption, place, place within, words) adds one of its captions, with its words if `words`.
    """
    result = Result(member(entry, "image_id", (int, str), place), [])
    several = expect(entry.get("n_best", [entry]), list, place, "n_best")
    for number, one in enumerate(several):
        take(result, one, place, f"n_best[{number}]" if "n_best" in entry else "", words)
    if not several:
        raise ValueError(f"{place} has no caption")
    return result


def _take_json_caption(result: Result, entry, place: str, within: str, words: bool) -> None:
    shown = member(entry, "caption", str, place, within)
    _check_words("text" in entry, words, place)
    log_prob = float(member(entry, "log_prob", float, place, within)) if "log_prob" in entry else math.nan
    result.captions.append((member(entry, "text", str, place, within) if words else shown, log_prob))
    result.unsure = entry.get("unsure") is True
    result.shown += [shown] if words else []
    _take_figures(result, entry, place, within)


def _take_jsonl_caption(result: Result, entry, place: str, within: str, words: bool) -> None:
    text = member(entry, "caption", str, place, within)
    result.captions.append((text, float(member(entry, "log_prob", float, place, within))))
    _take_figures(result, entry, place, within)
    _check_words("words" in entry, words, place)
    if words:
        steps = member(entry, "words", list, place, within)
        result.words.append([_step(step, place, f"words[{n}]") for n, step in enumerate(steps)])


def _check_words(there: bool, words: bool, place: str) -> None:
    """Raises ValueError where a caption has words and should not, or the reverse."""
    if there != words:
        raise ValueError(f"{place} has {'no ' if words else ''}words: same flags as before?")


def _take_figures(result: Result, entry: Mapping, place: str, within: str = "") -> None:
    """Add what `entry` has of `Result.figures` of a caption to `result`. Raises ValueError where others lack it."""
    if "mean_log_prob" in entry:
        result.mean_log_probs.append(float(member(entry, "mean_log_prob", float, place, within)))
    if "confidence" in entry:
        confidence = float(member(entry, "confidence", float, place, within))
        if not 0 <= confidence <= 1:
            raise ValueError(f"{place} has the confidence {confidence:g}, which is not from 0 to 1")
        result.confidences.append(confidence)
        result.unsure = result.captions[0][0] == ""
    for name, values in result.figures().items():
        if len(values) != len(result.captions):
            raise ValueError(f"{place} has no {name}, but other captions of the image have one")


def _step(entries, place: str, within: str) -> list[Word]:
    """The words of a step, each a text or [text, probability]."""
    step: list[Word] = []
    for entry in expect(entries, list, place, within):
        if isinstance(entry, str):
            step.append((entry, None))
        elif len(expect(entry, list, place, f"{within}: a word")) != 2:
            raise ValueError(f"{place}: {within}: a word is no pair of text and probability")
        else:
            name, p = expect(entry[0], str, place, within), expect(entry[1], float, place, within)
            step.append((name, float(p)))
    if not step:
        raise ValueError(f"{place}: {within} is empty")
    return step


def _read_csv(text: str, unfinished: bool, words: bool) -> list[Result]:
    whole, end, cut = text.rpartition("\n")
    reader = csv.reader(io.StringIO(whole + end if unfinished else text, newline=""), strict=True)
    columns, results = COLUMNS + ["words"] * words, []
    try:
        head = next(reader, columns)
        if head not in (columns, columns + LATER_COLUMNS):
            raise ValueError(f"its columns are {','.join(head)}, not {','.join(columns + LATER_COLUMNS)}")
        for row in reader:
            _take_row(row, f"line {reader.line_num}", head, results)
    except csv.Error:
        if not unfinished:
            raise
        cut = "within a cell"
    return results[:-1] if unfinished and cut else results


def _take_row(row: list[str], place: str, columns: list[str], results: list[Result]) -> None:
    """Add a row of a csv file, a caption, to `results`: to the last one or as the first of another image."""
    if not row:
        return
    if len(row) != len(columns):
        raise ValueError(f"{place} has {len(row)} cells, not {len(columns)}")
    cells = dict(zip(columns, map(plain_cell, row)))
    image_id, rank, caption = (cells[name] for name in COLUMNS[:3])
    if rank == "1":
        results.append(Result(image_id, []))
    if not results or results[-1].image_id != image_id or rank != str(len(results[-1].captions) + 1):
        raise ValueError(f"{place}: the caption of rank {rank!r} does not follow that before it")
    numbers = {}
    for name in (COLUMNS[3], *LATER_COLUMNS):
        if not cells.get(name) and name in LATER_COLUMNS:
            continue  # of an older version, or a model without calibration
        try:
            numbers[name] = expect(float(cells[name]), float, place, name)
        except ValueError as error:
            raise ValueError(f"{place}: {name} is {cells[name][:40]!r}") from error
    results[-1].captions.append((caption, numbers["log_prob"]))
    _take_figures(results[-1], numbers, place)
    results[-1].shown += [cells["words"]] if "words" in cells else []
