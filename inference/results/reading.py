"""Reading back what infer.py wrote, to go on with it: every figure must be there and make sense.

inference/caption_files.py reads the captions alone, also of files that other programs wrote.
"""

import math
from collections.abc import Callable, Mapping

from captioning.errors import UserError
from captioning.files import expect, member, parse_json
from inference.results.formats import COLUMNS, LATER_COLUMNS, csv_rows, jsonl_entries, read_text
from inference.results.result import Result, Word


def read_results(path, form: str, unfinished: bool = False, words: bool = False) -> list[Result]:
    """The results in a json, jsonl or csv file. unfinished: its last image may be cut off, and is then left out.

    words: whether its results should have words. Log-probabilities that json does not have are not a number. Raises
    UserError naming the file and the place of what is wrong.
    """
    text = read_text(path, "--resume", unfinished)
    try:
        if form == "csv":
            return _read_csv(text, unfinished, words)
        if form == "jsonl":
            entries, take = jsonl_entries(text, unfinished), _take_jsonl_caption
        else:
            listed = expect(parse_json(text), list, "the file", "the results")
            entries, take = [(f"entry {n}", entry) for n, entry in enumerate(listed, 1)], _take_json_caption
        return [_result(entry, place, words, take) for place, entry in entries]
    except ValueError as error:
        raise UserError(f"--resume: {path} is no {form} results file of infer.py ({error}); remove it first") from error


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
    columns, results = COLUMNS + ["words"] * words, []
    head, rows, cut = csv_rows(text, unfinished)
    if head and head not in (columns, columns + LATER_COLUMNS):
        raise ValueError(f"its columns are {','.join(head)}, not {','.join(columns + LATER_COLUMNS)}")
    for place, row in rows:
        _take_row(row, place, head, results)
    return results[:-1] if cut else results  # the last image may have had more captions


def _take_row(row: list[str], place: str, columns: list[str], results: list[Result]) -> None:
    """Add a row of a csv file, a caption, to `results`: to the last one or as the first of another image."""
    if len(row) != len(columns):
        raise ValueError(f"{place} has {len(row)} cells, not {len(columns)}")
    cells = dict(zip(columns, row))
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
