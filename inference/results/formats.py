"""The formats of results files: from a result to its lines, and from the text of a file to its entries.

txt: `image_id caption` a line. json: the COCO results list. jsonl: a JSON object a line. csv: a row per caption. The
last two carry natural log-probabilities, of captions and of a token, and confidences; json has them where Style.scores
says so.

Where the words of the captions are shown one by one (Result.words), txt and json have them in place of the caption, as
DeepCaption does: `A=0.69/two=0.08 man=0.15/young=0.10`; json keeps the caption as `text`. jsonl has them under `words`
as numbers, with the <end> of the caption, and csv as a column of its own.

An image has the caption "" where the model was not sure enough of any (Result.withhold); json and jsonl say `unsure`.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from captioning.errors import LINE_ENDS, UserError
from captioning.files import parse_json, read_bytes
from captioning.tables import csv_lines, plain_cell
from inference.results.result import Result, shown_texts

FORMATS = ("txt", "json", "jsonl", "csv")
COLUMNS = ["image_id", "rank", "caption", "log_prob"]
LATER_COLUMNS = ["mean_log_prob", "confidence"]  # behind those, and behind the words; files of older versions lack them


def format_of(path) -> str | None:
    """The format that the ending of `path` names, None where it names none."""
    ending = Path(path).suffix.lower().removeprefix(".")
    return ending if ending in FORMATS else None


# ---- writing ----


def whole_text(form: str, results: Sequence[Result], words: bool, scores: bool) -> str:
    """The text of a file of `results`. words: whether csv has a column for them; scores: whether json has figures."""
    if form != "json":
        return "".join(all_lines(form, results, words))
    entries = [json.dumps(_entry(one, "json", scores), ensure_ascii=False) for one in results]
    return "[\n" + ",\n".join(entries) + "\n]\n"


def all_lines(form: str, results: Sequence[Result], words: bool) -> list[str]:
    """The lines of a txt, jsonl or csv file of `results`."""
    head = [",".join(COLUMNS + ["words"] * words + LATER_COLUMNS) + "\n"] if form == "csv" else []
    return head + [lines_of(form, result) for result in results]


def lines_of(form: str, result: Result) -> str:
    """The lines of one image, each ended."""
    if form == "jsonl":
        return json.dumps(_entry(result, "jsonl", scores=True), ensure_ascii=False) + "\n"
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


def _entry(result: Result, form: str, scores: bool) -> dict:
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


# ---- reading ----


def read_text(path, what: str, cut_off: bool = False) -> str:
    """The text of a results file. `what` names its role in errors; cut_off: it may end in the middle of a character.

    A byte order mark is passed over. Raises UserError for what is no UTF-8 text.
    """
    try:
        return read_bytes(path, what).decode("utf-8-sig", "replace" if cut_off else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {path} is not UTF-8 text (byte {error.start})") from error


def jsonl_entries(text: str, cut_off: bool = False) -> list[tuple[str, object]]:
    """("line 3", the value in it) for each line that is not blank. Raises ValueError where a line is no JSON.

    cut_off: the last line may be half a line, and is left out.
    """
    lines = text.split("\n")
    if cut_off:
        lines.pop()  # it is empty, or was cut off
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries += [(f"line {number}", parse_json(line))] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number} is not valid JSON: {error}") from error
    return entries


def csv_rows(text: str, cut_off: bool = False) -> tuple[list[str], list[tuple[str, list[str]]], bool]:
    """The names of the columns, ("line 3", its cells) for each row that is not blank, and whether a row was left out.

    Cells are as they were before they were made safe for spreadsheets. cut_off: the text may end within a row, which is
    then left out. Raises ValueError where the text is no CSV.
    """
    whole, end, half = text.rpartition("\n")
    reader = csv.reader(io.StringIO(whole + end if cut_off else text, newline=""), strict=True)
    rows: list[tuple[str, list[str]]] = []
    try:
        for row in reader:
            rows += [(f"line {reader.line_num}", [plain_cell(cell) for cell in row])] if row else []
    except csv.Error as error:
        if not cut_off:
            raise ValueError(f"line {reader.line_num}: {error}") from error
        half = "within a cell"
    return rows[0][1] if rows else [], rows[1:], cut_off and bool(half)
