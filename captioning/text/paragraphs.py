"""Paragraphs as texts: split into sentences, and joined again."""

import re
from collections.abc import Iterable

from captioning.text.detokenizers import with_end

# A period ends a sentence, but not within 3.5. The blank behind it is missing in many texts of crowd workers.
PERIODS = (".", "。", "।", "۔", "።")
_SENTENCE_END = re.compile(rf"\.(?!\d)|[{''.join(PERIODS[1:])}]")


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph without their periods. Blank sentences are left out."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(paragraph) if sentence.strip()]


def spaced_paragraph(paragraph: str) -> str:
    """The paragraph with blanks around every period, for tokenisers that set only the last period apart."""
    pairs = zip(_SENTENCE_END.split(paragraph), [*_SENTENCE_END.findall(paragraph), "."])
    return "".join(f"{' '.join(sentence.split())} {mark} " for sentence, mark in pairs if sentence.strip()).rstrip()


def join_sentences(sentences: Iterable[str]) -> str:
    """Sentences as one text. A sentence that ends with no mark gets one, so that the text can be split again."""
    return " ".join(with_end(text) for text in sentences if text)
