"""Paragraphs as texts: where their sentences end, and how sentences are put together again. Light imports only."""

import re
from collections.abc import Iterable

_SENTENCE_END = re.compile(
    r"\.(?!\d)"
)  # not within 3.5; a blank may be missing after it, as in many a crowd-sourced text


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, split at periods and without them; blank ones are left out."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(paragraph) if sentence.strip()]


def spaced_paragraph(paragraph: str) -> str:
    """The paragraph with every period a word of its own, for tokenisers that set the last one apart only."""
    return "".join(f"{' '.join(sentence.split())} . " for sentence in split_sentences(paragraph)).rstrip()


def join_sentences(sentences: Iterable[str]) -> str:
    """Sentences as one text; those that end with no mark get a period, or the text could not be split again."""
    marked = (text if text.endswith((".", "!", "?")) else f"{text}." for text in sentences if text)
    return " ".join(marked)
