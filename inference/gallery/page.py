"""The HTML gallery of photos and their captions: one page, beyond EMBEDDED photos with a folder of thumbnails.

    write_gallery("holiday.html", results, Gallery("80 images of holiday", "Captioned by photos.model"))

The page has the cards of its first photos as HTML, which any browser shows. Its script sorts, filters and turns pages;
it makes the cards of later pages from texts that the page holds. Nothing is loaded but thumbnails, so that the page
works from a disk as from a server.
"""

import base64
import contextlib
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

from PIL import features

from captioning.cores import core_count
from captioning.files import atomic_write, is_plain, naming_file
from captioning.images.image_file import ImageError, open_image
from captioning.locks import FileLock
from captioning.text.cleaning import id_text
from inference.gallery.cards import Card, WordMaps, certainty, confidence, link_to, names_of, text_of
from inference.gallery.comparison import Comparison, difference
from inference.results.result import Result

THUMBNAIL = 400  # pixels of the longer side
SMALL = "WEBP" if features.check("webp") else "JPEG"  # within the page: smaller by a third, but slow to make
EMBEDDED = 1000  # photos whose thumbnails the page itself holds; those of more lie in a folder
PAGE = 500  # photos shown at a time, where they are more than EMBEDDED
VERSION = re.compile(r"thumbnails-(\d+)")  # folders within that of a page, and the names of the files there
FILE = re.compile(r"\d+\.jpg")
STYLE, SCRIPT = (Path(__file__).with_name(f"gallery.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))


@dataclass(frozen=True)
class Gallery:
    """What a gallery tells besides its results.

    title, about: its first lines; table: lines of scores; scores: of each image, by its id as text, where it has
    references, and their name, as "CIDEr"; maps: where the model looked, by image; other: captions to compare with.
    """

    title: str
    about: str
    table: Sequence[str] = ()
    score_name: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, WordMaps] = field(default_factory=dict)
    other: Comparison | None = None


def write_gallery(path, results: list[Result], gallery: Gallery) -> None:
    """Write the page `path` of `results`. Images that cannot be read are left grey.

    Beyond EMBEDDED photos their thumbnails lie in a folder beside the page, NAME_files for NAME.html. An older page and
    its thumbnails stay until the new ones stand. Raises UserError where something cannot be written.
    """
    path = Path(path)
    apart = len(results) > EMBEDDED and is_plain(path)
    shown, keys = PAGE if apart else len(results), _keys(results, gallery)
    with thumbnails(path, apart) as folder, atomic_write(path) as file:
        cards = _cards(results, gallery, path.parent, folder)
        file.write(_head(gallery, len(results), apart) + _tools(gallery, keys))
        file.write('<main class="pairs">\n' if gallery.other else "<main>\n")
        for _, card in zip(range(shown), cards):
            file.write(card)
        file.write("</main>\n")
        file.write('<nav aria-label="Pages" hidden></nav>\n' if apart else "")
        file.write('<p id="hint" hidden>Left and right arrow keys show where the model looked for each word.</p>\n')
        file.write('<script type="application/json" id="data">')
        file.write(f'{{"size":{shown},"keys":{as_json(keys)},"cards":[')
        for number, card in enumerate(cards):
            file.write((",\n" if number else "") + as_json(card))
        file.write(f"]}}</script>\n<script>{SCRIPT}</script>\n</html>\n")


def as_json(value) -> str:
    """`value` as JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


# ---- pictures ----


def thumbnail(path: str | None, form: str = "JPEG") -> bytes | None:
    """A small picture of an image file, in the format `form`; None where it cannot be read."""
    if path is None:
        return None
    try:
        image = open_image(path, size_hint=THUMBNAIL)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, form, **({"quality": 70, "method": 2} if form == "WEBP" else {"quality": 80}))
    return out.getvalue()


@contextlib.contextmanager
def thumbnails(page: Path, apart: bool) -> Iterator[Path | None]:
    """Within it the new folder for thumbnails of `page`; None where the page shall hold them itself.

    At a good end the older ones are removed, after an error the new one.
    """
    target = Path(os.path.realpath(page))
    parent = target.with_name(f"{target.stem}_files")
    if not apart:
        yield None
        if is_plain(page) and parent.is_dir():
            _remove_versions(parent, None)
        return
    with naming_file(parent):
        parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parent / ".lock", f"the gallery {page}")
    try:
        found = [int(match[1]) for entry in parent.iterdir() if (match := VERSION.fullmatch(entry.name))]
        folder = parent / f"thumbnails-{max(found, default=0) + 1}"
        with naming_file(folder):
            folder.mkdir()
        try:
            yield folder
        except BaseException:
            _remove(folder)
            raise
        _remove_versions(parent, folder)
    finally:
        lock.release(remove=True)


def _remove_versions(parent: Path, kept: Path | None) -> None:
    for entry in parent.iterdir():
        if entry != kept and VERSION.fullmatch(entry.name):
            _remove(entry)
    if kept is None:
        with contextlib.suppress(OSError):  # it holds something else
            parent.rmdir()


def _remove(folder: Path) -> None:
    """Remove a folder of thumbnails; files of another kind, and then the folder, stay."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if FILE.fullmatch(entry.name):
                entry.unlink()
        folder.rmdir()


# ---- parts of the page ----


def _cards(results: list[Result], gallery: Gallery, place: Path, folder: Path | None) -> Iterator[str]:
    """The HTML of each photo's card. place: the page's folder; folder: of the thumbnails, None to embed them."""
    other, make = gallery.other, partial(thumbnail, form="JPEG" if folder else SMALL)
    with ThreadPoolExecutor(min(8, core_count())) as pool:
        for start in range(0, len(results), 64):  # not all at once: thumbnails of a large folder fill the memory
            chunk = results[start : start + 64]
            data_of = pool.map(make, [result.path for result in chunk])
            for number, (result, data) in enumerate(zip(chunk, data_of), start):
                name = id_text(result.image_id)
                picture = data and _picture(data, number, folder)
                scores = gallery.scores.get(name), other and other.scores.get(name)
                maps = gallery.maps.get(name)
                link = link_to(result.path if data else None, place)
                yield Card(result, picture, link, *scores, gallery.score_name, maps, other).html()


def _picture(data: bytes, number: int, folder: Path | None) -> str:
    """The URL of a thumbnail, which is written into `folder` where there is one."""
    if folder is None:
        return f"data:image/{SMALL.lower()};base64,{base64.b64encode(data).decode()}"
    file = folder / f"{number + 1:05d}.jpg"
    with naming_file(file):
        file.write_bytes(data)
    return quote(os.fsencode(f"{folder.parent.name}/{folder.name}/{file.name}"))


def _keys(results: list[Result], gallery: Gallery) -> dict[str, list]:
    """What the script sorts and filters by: of each key a number, or None, for every photo; only keys that tell."""
    ids = [id_text(result.image_id) for result in results]
    names = [_natural(names_of(result)[0]) for result in results]
    ranks = {name: rank for rank, name in enumerate(sorted(set(names)))}
    keys = {
        "sure": [_rounded(certainty(result)) for result in results],
        "confidence": [_rounded(confidence(result)) for result in results],
        "score": [_rounded(gallery.scores.get(name)) for name in ids],
        "name": [ranks[name] for name in names],
        "length": [len(result.captions[0][0]) or None for result in results],  # None: no caption
        "references": [int(bool(result.references)) for result in results],
    }
    if other := gallery.other:
        texts = [other.caption(result) for result in results]
        pairs = [(result.captions[0][0], text) for result, text in zip(results, texts)]
        keys["difference"] = [1.0 if b is None else _rounded(difference(a, b)) for a, b in pairs]
        gains = [(gallery.scores.get(name), other.scores.get(name)) for name in ids]
        keys["gain"] = [None if a is None or b is None else _rounded(b - a) for a, b in gains]
    return {name: values for name, values in keys.items() if any(value is not None for value in values)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _natural(name: str) -> tuple:
    """A key by which photo2 comes before photo10."""
    parts = re.split(r"(\d{1,18})", name.casefold())
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def digest(content: str) -> str:
    """The name of an inline style or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def policy(apart: bool) -> str:
    """The content security policy of a page; apart: whether its thumbnails are files.

    Names and captions come from strangers. Should one ever be more than text to a browser, the browser still runs and
    loads nothing but the script, the style and the thumbnails of the page.
    """
    images = "img-src 'self' data:" if apart else "img-src data:"
    rules = f"default-src 'none'; base-uri 'none'; form-action 'none'; {images}"
    return f"{rules}; style-src {digest(STYLE)}; script-src {digest(SCRIPT)}"


def _head(gallery: Gallery, photos: int, apart: bool) -> str:
    """The page up to its controls. photos: how many there are."""
    title, other, table = text_of(gallery.title), gallery.other, html.escape("\n".join(gallery.table))
    about = f"<p>{text_of(gallery.about)}</p>"
    if other:
        about += f"<p><b>A</b> {text_of(other.first)} &middot; <b>B</b> {text_of(other.second)}</p>"
    if gallery.maps:
        about += '<p class="hint">Point at a word, or tap it, to see where the model looked.</p>'
    rest = photos - PAGE
    more = f"<noscript><p>The other {rest:,} photos need JavaScript.</p></noscript>" if apart else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(apart)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n'
        f"<header><h1>{title}</h1>{about}"
        + (f"<pre>{table}</pre>" if table else "")
        + f"{more}</header>\n"
    )  # fmt: skip


def _tools(gallery: Gallery, keys: Mapping[str, list]) -> str:
    """The controls, which the page's script shows: without it they would do nothing."""
    score = text_of(gallery.score_name)
    sorts = [("sure 1", "least sure first"), ("sure -1", "most sure first"), ("difference -1", "most different first")]
    sorts += [("gain -1", f"B better by {score} first"), ("gain 1", f"A better by {score} first")]
    sorts += [("score 1", f"lowest {score} first"), ("score -1", f"highest {score} first"), ("name 1", "name")]
    sorts += [("length -1", "longest caption first"), ("length 1", "shortest caption first")]
    sorts = [("", "as given"), *(pair for pair in sorts if pair[0].split()[0] in keys)]
    filters = [("", "all photos")]
    filters += [("differ", "captions that differ"), ("same", "captions that agree")] if gallery.other else []
    if len(set(keys["references"])) > 1:
        filters += [("references", "with references"), ("none", "without references")]
    bounds = "".join(
        f'<label>{word} <input type="number" id="{name}" min="0" max="1" step="0.05" placeholder="{value}"></label> '
        for word, name, value in (("Confidence from", "least", 0), ("to", "most", 1))
    )
    return (
        '<form role="search" hidden><label>Search <input type="search" placeholder="captions and names"></label> '
        f'<label>Sort <select id="sort">{_options(sorts)}</select></label> '
        + (f'<label>Show <select id="filter">{_options(filters)}</select></label> ' if len(filters) > 1 else "")
        + (f"<span>{bounds}</span>" if "confidence" in keys else "")
        + '<output aria-live="polite"></output></form>\n'
    )


def _options(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<option value="{value}">{text}</option>' for value, text in pairs)
