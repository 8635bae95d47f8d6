"""What inference leaves behind: results files (txt, json, jsonl, csv), attention weights (npz), a gallery (html).

    with ResultsFile("captions.jsonl", "jsonl", resume=True) as file:
        file.earlier                                     # results of an interrupted run
        file.add(Result(42, [("A dog runs.", -7.31)]))

txt: `image_id caption` a line. json: the COCO results list. jsonl: a JSON object a line. csv: a row per caption. The
last two carry natural log-probabilities and grow in FILE.part, which is renamed to FILE when all is written.

Where the words of the captions are told one by one (Result.words), txt and json have them in place of the caption, as
DeepCaption does: `A=0.69/two=0.08 man=0.15/young=0.10`; json keeps the caption as `text`. jsonl has them under `words`
as numbers, with the <end> of the caption, and csv as a column of its own.
"""

import base64
import csv
import html
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from common import UserError, atomic_write
from images import ImageError, open_image

FORMATS = ("txt", "json", "jsonl", "csv")
GROWING = ("jsonl", "csv")  # written image by image, so that they can be resumed
COLUMNS = ["image_id", "rank", "caption", "log_prob"]
Word = tuple[str, float | None]  # None: its probability was not asked for
THUMBNAIL = 400  # pixels of the longer side


@dataclass
class Result:
    """An image's captions with their log-probabilities, best first. path and references serve the gallery.

    words: nothing, or for every caption its steps, <end> included: the word written, then others that might have been.
    shown: word_text() of them, where they were read from a csv file, which has no more.
    """

    image_id: int | str
    captions: list[tuple[str, float]]
    path: str | None = None
    references: list[str] = field(default_factory=list)
    words: list[list[list[Word]]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)


def format_of(path, given: str | None = None) -> str:
    """The format `given`, or else that of the extension of `path`. Raises UserError where that tells none."""
    form = given or Path(path).suffix.lower().removeprefix(".")
    if form not in FORMATS:
        known = ", ".join(FORMATS)
        raise UserError(
            f"--output_file {path}: the extension tells no format; end it in one of {known}, or give --output_format"
        )
    return form


def check_writable(option: str, path) -> None:
    """Raises UserError where `path` cannot be written: better before the work than after it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: cannot make the folder {path.parent}: {error.strerror or error}") from error
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{option}: the folder {path.parent} cannot be written")


# ---- results ----


class ResultsFile:
    """Writes results; complete or not there at all, but for FILE.part of the formats that can be resumed.

    resume: take over what FILE.part, or else FILE, holds; `earlier` has it. Its image ids are texts where the file is
    a csv. words: whether the results have words. Raises UserError for a file that is no such results file.
    """

    def __init__(self, path, form: str, resume: bool = False, words: bool = False):
        self.path, self.form, self.words = Path(path), form, words
        self.part = self.path.with_name(self.path.name + ".part")
        self.earlier: list[Result] = []
        if resume:
            source = next((p for p in (self.part, self.path) if p.exists()), None)
            if source is not None:
                self.earlier = read_results(source, form, unfinished=source == self.part, words=words)
        self.results = list(self.earlier)

    def __enter__(self) -> "ResultsFile":
        if self.form in GROWING:
            with atomic_write(self.part) as file:  # without the half line that an interruption may have left
                file.write(_head(self.form, self.words) + "".join(_lines(self.form, result) for result in self.earlier))
            self._file = open(self.part, "a", encoding="utf-8", newline="")
        return self

    def add(self, result: Result) -> None:
        self.results.append(result)
        if self.form in GROWING:
            self._file.write(_lines(self.form, result))
            self._file.flush()

    def __exit__(self, kind, error, traceback) -> None:
        """Completes the file; after an error leaves FILE.part for resuming, or removes it where it holds nothing."""
        if self.form in GROWING:
            if kind is None:
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                os.replace(self.part, self.path)
            elif not self.results:
                self.part.unlink()
        elif kind is None:
            with atomic_write(self.path) as file:
                if self.form == "json":
                    entries = [json.dumps(_coco(result, "json"), ensure_ascii=False) for result in self.results]
                    file.write("[\n" + ",\n".join(entries) + "\n]\n")
                else:
                    file.writelines(_lines(self.form, result) for result in self.results)


def _head(form: str, words: bool) -> str:
    return ",".join(COLUMNS + ["words"] * words) + "\n" if form == "csv" else ""


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
        return json.dumps(_coco(result, "jsonl"), ensure_ascii=False) + "\n"
    if form == "txt":
        return "".join(f"{result.image_id} {text}\n" for text in shown_texts(result))
    out = io.StringIO()
    rows = [[result.image_id, n, text, f"{p:.4f}"] for n, (text, p) in enumerate(result.captions, 1)]
    if result.words or result.shown:
        rows = [[*row, text] for row, text in zip(rows, shown_texts(result))]
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _coco(result: Result, form: str) -> dict:
    entries = []
    for number, ((text, log_prob), shown) in enumerate(zip(result.captions, shown_texts(result))):
        entry = {"caption": shown, "text": text} if result.words and form == "json" else {"caption": text}
        if form == "jsonl":
            entry["log_prob"] = round(log_prob, 4)
            if result.words:
                entry["words"] = [[_number(word) for word in step] for step in result.words[number]]
        entries.append(entry)
    more = {"n_best": entries} if len(entries) > 1 else {}
    return {"image_id": result.image_id, **entries[0], **more}


def _number(word: Word) -> str | list:
    name, p = word
    return name if p is None else [name, float(f"{p:.6g}")]


def _word(entry: str | list) -> Word:
    return (entry, None) if isinstance(entry, str) else (str(entry[0]), float(entry[1]))


def read_results(path, form: str, unfinished: bool = False, words: bool = False) -> list[Result]:
    """The results in a jsonl or csv file. unfinished: its last image may be cut off, and is then left out.

    words: whether its results should have words.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8", "replace" if unfinished else "strict")
    except OSError as error:
        raise UserError(f"--resume: cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--resume: {path} is not UTF-8 text (byte {error.start})") from error
    whole, _, cut = text.rpartition("\n")
    lines = [*whole.split("\n"), *([] if unfinished or not cut else [cut])] if text else []
    read = _read_jsonl if form == "jsonl" else _read_csv
    try:
        results = list(read((line for line in lines if line), words))
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(
            f"--resume: {path} is no {form} results file of this script ({error}); remove it first"
        ) from error
    return results[:-1] if form == "csv" and unfinished and cut else results


def _read_jsonl(lines: Iterable[str], words: bool) -> Iterator[Result]:
    for line in lines:
        entry = json.loads(line)
        captions = entry.get("n_best") or [entry]
        result = Result(entry["image_id"], [(c["caption"], float(c["log_prob"])) for c in captions])
        if ("words" in captions[0]) != words:
            raise ValueError(f"image {entry['image_id']!r} has {'no ' if words else ''}words: same flags as before?")
        if words:
            result.words = [[[_word(word) for word in step] for step in c["words"]] for c in captions]
        yield result


def _read_csv(lines: Iterable[str], words: bool) -> Iterator[Result]:
    rows, columns = csv.reader(lines), COLUMNS + ["words"] * words
    if (head := next(rows, columns)) != columns:
        raise ValueError(f"its columns are {','.join(head)}, not {','.join(columns)}")
    result = None
    for image_id, rank, text, log_prob, *shown in rows:
        if rank == "1":
            if result is not None:
                yield result
            result = Result(image_id, [])
        result.captions.append((text, float(log_prob)))
        result.shown += shown
    if result is not None:
        yield result


# ---- attention ----


class AttentionLog:
    """Gathers where the model looked, word by word. grid: (h, w) of the map that the model was trained on."""

    def __init__(self, grid: tuple[int, int]):
        self.grid = grid
        self.ids, self.words, self.weights, self.log_probs = [], [], [], []

    def add(self, image_id, words: list[str], weights, log_probs) -> None:
        """words: T of them, with <end>; weights (T, R) with R = h * w; log_probs (T,): numpy arrays."""
        self.ids.append(str(image_id))
        self.words.append(words)
        self.weights.append(weights)
        self.log_probs.append(log_probs)

    def write(self, path) -> None:
        """A compressed npz of the n images, padded to the longest sentence, T words:

        image_ids (n,) and words (n, T) as text, lengths (n,), attention (n, T, h, w) whose maps sum to one, zero beyond
        the sentence, log_prob (n, T), natural, NaN beyond it.
        """
        import numpy as np

        n, longest, regions = len(self.ids), max(map(len, self.words)), self.weights[0].shape[1]
        h, w = self.grid
        if h * w != regions:  # images of another size (--resize), square ones
            h = math.isqrt(regions)
            w = regions // h
        attention = np.zeros((n, longest, regions), np.float32)
        log_prob = np.full((n, longest), np.nan, np.float32)
        words = np.full((n, longest), "", f"<U{max(len(word) for row in self.words for word in row)}")
        for i, row in enumerate(self.words):
            words[i, : len(row)] = row
            attention[i, : len(row)], log_prob[i, : len(row)] = self.weights[i], self.log_probs[i]
        with atomic_write(path, "wb") as file:
            np.savez_compressed(
                file,
                image_ids=np.array(self.ids),
                words=words,
                lengths=np.array([len(row) for row in self.words]),
                attention=attention.reshape(n, longest, h, w),
                log_prob=log_prob,
            )


# ---- gallery ----

STYLE = """
:root { color-scheme: light dark; --card: #fff; --page: #f2f2ef; --text: #1d1d1b; --soft: #6d6d68; }
@media (prefers-color-scheme: dark) { :root { --card: #242422; --page: #161615; --text: #ecece8; --soft: #9a9a93; } }
body { margin: 0 auto; max-width: 1500px; padding: 2rem; background: var(--page); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0; }
header p, small, summary, li { color: var(--soft); }
header { margin-bottom: 1.5rem; }
pre { color: var(--soft); }
input { font: inherit; padding: .45rem .8rem; width: min(24rem, 100%); box-sizing: border-box; border-radius: 8px;
  border: 1px solid color-mix(in srgb, var(--soft) 50%, transparent); background: var(--card); color: inherit; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1.2rem; }
figure { margin: 0; background: var(--card); border-radius: 12px; overflow: hidden; box-shadow: 0 1px 4px #0003; }
figure[hidden] { display: none; }
img, .none { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: cover; background: #8883; }
figcaption { padding: .8rem 1rem 1rem; }
figcaption p { margin: 0 0 .3rem; }
small, details { font-size: .8rem; overflow-wrap: anywhere; }
ul { margin: .3rem 0 0; padding-left: 1.1rem; }
"""
SCRIPT = """
const box = document.querySelector("input"), cards = [...document.querySelectorAll("figure")];
box.oninput = () => { const wanted = box.value.toLowerCase();
  for (const card of cards) card.hidden = !card.textContent.toLowerCase().includes(wanted); };
"""


def write_gallery(path, results: list[Result], title: str, about: str = "", scores: Iterable[str] = ()) -> None:
    """One HTML file that needs no other: every image as a thumbnail over its captions, and a box to search them.

    about: a line below the title; scores: lines of a table. Images that cannot be read are left grey.
    """
    scores = "\n".join(scores)
    with atomic_write(path) as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        file.write(
            '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n"
            f"<header><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>"
            + (f"<pre>{html.escape(scores)}</pre>" if scores else "")
            + '<input type="search" placeholder="Search the captions" aria-label="Search"></header>\n<main>\n'
        )
        for start in range(0, len(results), 64):  # not all at once: thumbnails of a large folder fill the memory
            chunk = results[start : start + 64]
            for result, data in zip(chunk, pool.map(thumbnail, [result.path for result in chunk])):
                file.write(_figure(result, data))
        file.write(f"</main>\n<script>{SCRIPT}</script>\n</html>\n")


def _figure(result: Result, data: str | None) -> str:
    caption, log_prob = result.captions[0]
    image = '<div class="none"></div>'
    if data is not None:
        image = f'<img loading="lazy" src="data:image/jpeg;base64,{data}" alt="{html.escape(caption)}">'
    more = _folded("Other captions", [f"{text} ({p:.2f})" for text, p in result.captions[1:]])
    more += _folded("What people wrote", result.references)
    name = html.escape(str(result.image_id))
    return (
        f"<figure>{image}<figcaption><p>{html.escape(caption)}</p>"
        f'<small title="natural log-probability">{name} &middot; {log_prob:.2f}</small>{more}</figcaption></figure>\n'
    )


def _folded(title: str, lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<details><summary>{title}</summary><ul>{items}</ul></details>" if lines else ""


def thumbnail(path: str | None) -> str | None:
    """A small JPEG of an image file in base64; None where it cannot be read."""
    if path is None:
        return None
    try:
        image = open_image(path, size_hint=THUMBNAIL)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()
