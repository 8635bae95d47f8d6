"""Tokenizers: a caption to its words. detokenizers.py is the way back."""

import re
from collections.abc import Callable
from functools import cache

from captioning.errors import UserError
from captioning.text.tokens import MARKS

TOKENIZERS = ("treebank", "whitespace", "char", "regex")
# Captions of letters, digits, blanks, single hyphens, ", " and a final period: on these the Treebank rules only set the
# comma and the period apart. 98 captions of 100 are such. They need neither the 40 regular expressions of nltk nor its
# import, which takes over a second.
_PLAIN = re.compile(r"(?:[a-z0-9 ]|-(?!-)|, )*[a-z0-9 ]\.?\s*", re.IGNORECASE)
_CONTRACTION = re.compile(r"cannot|gimme|gonna|gotta|lemme|wanna", re.IGNORECASE)
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


@cache
def load_treebank():
    """nltk's TreebankWordTokenizer, which needs no data files. It is imported on first use."""
    from nltk.tokenize.treebank import TreebankWordTokenizer

    return TreebankWordTokenizer()


def _tokenize_treebank(text: str) -> list[str]:
    if not _PLAIN.fullmatch(text) or _CONTRACTION.search(text):
        return load_treebank().tokenize(text)
    text = text.replace(", ", " , ").rstrip()
    if text.endswith("."):
        text = text[:-1] + " ."
    return text.split()


def _tokenize_whitespace(text: str) -> list[str]:
    words = text.split()
    return [word for word in words if word not in MARKS] if "<" in text else words  # these would be special tokens


def _tokenize_char(text: str) -> list[str]:
    return list(" ".join(text.split()))


_FUNCTIONS: dict[str, Callable[[str], list[str]]] = {
    "treebank": _tokenize_treebank,
    "whitespace": _tokenize_whitespace,
    "char": _tokenize_char,
    "regex": _WORD.findall,
}


def tokenize(text: str, tokenizer: str = "treebank", lowercase: bool = True) -> list[str]:
    """Tokens of `text`: of "A dog's bone." they are a, dog, 's, bone and the period.

    `treebank` is nltk's TreebankWordTokenizer (a final period and commas set apart, "child's" -> child 's),
    `whitespace` splits at blanks and leaves out <pad>, <start> and <end>, `char` gives single characters (runs of
    blanks as one), `regex` gives words with their inner apostrophes and hyphens, and each other sign alone.
    Raises UserError for an unknown tokenizer.
    """
    return tokenize_function(tokenizer)(text.lower() if lowercase else text)


def tokenize_function(tokenizer: str) -> Callable[[str], list[str]]:
    """The function from a text to its tokens, in the case of the text. Raises UserError for an unknown tokenizer."""
    try:
        return _FUNCTIONS[tokenizer]
    except (KeyError, TypeError):
        raise UserError(f"unknown tokenizer {tokenizer!r}: use one of {', '.join(TOKENIZERS)}") from None
