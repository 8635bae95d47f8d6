"""The HTML of one photo in a gallery: its picture, captions, how sure the model is, scores, and maps of its words."""

import base64
import html
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from captioning.errors import shown
from captioning.images.archives import archive_of
from captioning.text.cleaning import printable
from inference.gallery.comparison import Comparison, Ranges, differing
from inference.results.result import Result

NOT_SURE = 0.3  # confidence below which a caption is shown as doubtful
ABSENT = '<p class="absent">no caption</p>'  # the model was not sure enough of any
MOST_STEPS_UP = 2  # folders that a link to a photo climbs: more would tell where the person keeps photos


@dataclass(frozen=True)
class WordMaps:
    """Where the model looked for each word of a caption.

    words: T of them, <end> included; grid: (h, w); weights: T maps, h * w bytes each, 255 for the largest of a word.
    """

    words: list[str]
    grid: tuple[int, int]
    weights: bytes


@dataclass(frozen=True)
class Card:
    """A photo of the gallery.

    picture: the URL of its thumbnail, None where it cannot be read; link: of the original; score: of the best caption,
    and of the one beside it; score_name: as "CIDEr".
    """

    result: Result
    picture: str | None = None
    link: str | None = None
    score: float | None = None
    other_score: float | None = None
    score_name: str = ""
    maps: WordMaps | None = None
    other: Comparison | None = None

    def html(self) -> str:
        result = self.result
        maps = self.maps and html.escape(base64.b64encode(self.maps.weights).decode())
        grid = f' data-grid="{self.maps.grid[0]}x{self.maps.grid[1]}" data-maps="{maps}"' if self.maps else ""
        captions = self._caption() if self.other is None else self._both()
        more = folded("Other captions", [f"{text}{_number(p, ' ({:.2f})')}" for text, p in result.captions[1:]])
        more += folded("What people wrote", result.references)
        names = "".join(f"<bdi>{text_of(name)}</bdi> " for name in names_of(result))
        return (
            f"<figure{grid}>{self._picture()}<figcaption>{captions}<small>{names}</small>{more}</figcaption></figure>\n"
        )

    def _picture(self) -> str:
        name = text_of(names_of(self.result)[-1])
        image = '<div class="none">no picture</div>'
        if self.picture is not None:
            lazy = (
                "" if self.picture.startswith("data:") else 'loading="lazy" '
            )  # a printer gets no picture that is late
            image = f'<img {lazy}decoding="async" src="{html.escape(self.picture)}" alt="{name}">'
        if self.link is None:
            return f'<div class="photo">{image}</div>'
        return f'<a class="photo" href="{html.escape(self.link)}" target="_blank" rel="noopener">{image}</a>'

    def _caption(self) -> str:
        text = self.result.captions[0][0]
        if not text:
            return f"{ABSENT}{self._facts()}"
        if self.maps is None:
            return f'<p class="caption" dir="auto">{text_of(text)}</p>{self._facts()}'
        words = with_words(text, word_places(text, self.maps.words), [])
        focus = 'role="group" tabindex="0" aria-describedby="hint"'
        return f'<p class="caption" dir="auto" {focus}>{words}</p>{self._facts()}'

    def _both(self) -> str:
        """Captions A and B with the words marked that differ."""
        first, second = self.result.captions[0][0], self.other.caption(self.result)
        ranges = differing(first, second) if second is not None else ([], [])
        places = word_places(first, self.maps.words) if self.maps else []
        focus = ' role="group" tabindex="0" aria-describedby="hint"' if places else ""
        one, other = ABSENT, ABSENT
        if first:
            one = f'<p class="caption" dir="auto"{focus}>{with_words(first, places, ranges[0])}</p>'
        if second is not None:
            other = f'<p class="caption" dir="auto">{with_words(second, [], ranges[1])}</p>'
        form = f"<span>{self.score_name} {{:.2f}}</span>"
        scores = [_number(score, form) for score in (self.score, self.other_score)]
        return (
            f'<div class="both"><div><b>A</b>{one}{self._facts()}{scores[0]}</div>'
            f"<div><b>B</b>{other}{scores[1]}</div></div>"
        )

    def _facts(self) -> str:
        sure, log_prob = confidence(self.result), self.result.captions[0][1]
        facts = []
        if sure is not None:
            if sure < NOT_SURE or self.result.unsure:
                facts.append('<strong class="unsure">not sure</strong>')
            meter = f'<meter min="0" max="1" low="{NOT_SURE}" high="0.6" optimum="1" value="{sure:.2f}"></meter>'
            facts.append(
                f'<span title="the chance that the caption is a good one">confidence {meter} {sure:.2f}</span>'
            )
        if self.other is None and self.score is not None:
            facts.append(f"<span>{self.score_name} {self.score:.2f}</span>")
        if sure is None and known(log_prob):
            facts.append(f'<span title="natural log-probability">log p {log_prob:.2f}</span>')
        return f'<p class="facts">{" ".join(facts)}</p>' if facts else ""


def text_of(text: str) -> str:
    """`text` as HTML, with what would turn or break the line written out."""
    return html.escape(shown(text))


def folded(title: str, lines: Iterable[str]) -> str:
    items = "".join(f'<li dir="auto">{text_of(line)}</li>' for line in lines)
    return f"<details><summary>{title}</summary><ul>{items}</ul></details>" if items else ""


def known(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _number(number: float | None, form: str) -> str:
    return form.format(number) if known(number) else ""


def confidence(result: Result) -> float | None:
    """The calibrated confidence of the best caption, 0 to 1; None where the model has no calibration."""
    return result.confidences[0] if result.confidences and known(result.confidences[0]) else None


def certainty(result: Result) -> float | None:
    """What captions are sorted by from the least to the most sure: the confidence, or else the log-probability."""
    for value in (confidence(result), *result.mean_log_probs[:1], result.captions[0][1]):
        if known(value):
            return value
    return None


def names_of(result: Result) -> list[str]:
    """How the page names an image: by its id, and by the name of its file where that says more.

    The page is to be shared: of an image that was given with its whole path it shows the name of the file.
    """
    name = str(result.image_id)
    name = os.path.basename(name) if os.path.isabs(name) or name.startswith("..") else name
    file = printable(os.path.basename(result.path)) if result.path else ""
    return [name] if not file or os.path.basename(name) == file else [name, file]


def link_to(path: str | None, folder: Path) -> str | None:
    """The URL of a photo relative to `folder`, where the page lies; None where it has none that may be shown.

    A photo in a zip or tar file has none. Nor has one that lies far from the page: the link would be a path through all
    the folders of whoever made the page.
    """
    if path is None or archive_of(path):
        return None
    try:
        relative = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(folder)))
    except ValueError:  # another drive of Windows
        return None
    ups = sum(part == ".." for part in relative.parts)
    if ups > MOST_STEPS_UP or len(Path(os.path.abspath(folder)).parts) - ups < 2 or relative.is_absolute():
        return None
    return quote(os.fsencode(relative.as_posix()))


# ---- words ----


def word_places(text: str, words: list[str]) -> list[tuple[int, int, int]]:
    """(begin, end, number) in `text` of each of `words`, the model's tokens, that can be found in it, in their order.

    The end of a sentence has no place; nor has a token that was written otherwise, such as a lemma.
    """
    lower, position, places = text.lower(), 0, []
    if len(lower) != len(text):  # letters such as İ, whose small form has two characters
        return []
    for number, word in enumerate(words):
        begin = lower.find(word.lower(), position)
        if not word or begin < 0 or any(sign.isalnum() for sign in text[position:begin]):
            continue
        position = begin + len(word)
        if any(sign.isalnum() for sign in word):
            places.append((begin, position, number))
    return places


def with_words(text: str, places: list[tuple[int, int, int]], marked: Ranges) -> str:
    """`text` as HTML: words at `places` in a span with their number, the ranges `marked` in a mark."""
    cuts = sorted({0, len(text), *(cut for pair in marked for cut in pair)})
    parts = []
    for begin, end in zip(cuts, cuts[1:]):
        inner, position = "", begin
        for first, last, number in places:
            if begin <= first and last <= end:
                inner += f'{text_of(text[position:first])}<span data-word="{number}">{text_of(text[first:last])}</span>'
                position = last
        inner += text_of(text[position:end])
        parts.append(f"<mark>{inner}</mark>" if (begin, end) in marked else inner)
    return "".join(parts)
