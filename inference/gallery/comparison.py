"""The captions of another results file beside those of a run, and which of their words differ.

other = Comparison("b/best.model", "a.json", read_results("a.json"))
differing("A dog runs.", "A cat runs.")                          # [(2, 5)], [(2, 5)]: "dog", "cat"
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from captioning.text.cleaning import id_text
from inference.results.result import Result

# Chinese, Japanese and Thai put no blanks between words: there every character is compared by itself.
WORD = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\\s\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+")
Ranges = list[tuple[int, int]]  # beginnings and ends in a text


@dataclass
class Comparison:
    """Captions A, those of the gallery's results, and B, those beside them.

    first, second: what A and B are called; captions: of B, image id as text -> best first; scores: of B by image.
    """

    first: str
    second: str
    captions: Mapping[str, list[str]]
    scores: dict[str, float] = field(default_factory=dict)

    def caption(self, result: Result) -> str | None:
        """B's best caption of the image of `result`, None where it has none or a blank one."""
        several = self.captions.get(id_text(result.image_id))
        return several[0] or None if several else None


def differing(first: str, second: str) -> tuple[Ranges, Ranges]:
    """Where words of each text are that the other does not have at that place. Case and punctuation do not count."""
    words = [list(WORD.finditer(text)) for text in (first, second)]
    compared = [[re.sub(r"^\W+|\W+$", "", word[0]).casefold() for word in found] for found in words]
    ranges: tuple[Ranges, Ranges] = ([], [])
    for kind, *places in SequenceMatcher(None, *compared, autojunk=False).get_opcodes():
        for found, of_text, begin, end in zip(words, ranges, places[::2], places[1::2]):
            if kind != "equal" and begin < end:
                of_text.append((found[begin].start(), found[end - 1].end()))
    return ranges


def difference(first: str, second: str) -> float:
    """The share of both texts that differs, from 0 to 1."""
    ranges = differing(first, second)
    return sum(end - begin for several in ranges for begin, end in several) / max(1, len(first) + len(second))
