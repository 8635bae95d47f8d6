"""Tokenizers: a caption to its words. detokenizers.py is the way back."""

import re
from collections.abc import Callable
from functools import cache

from captioning.errors import UserError
from captioning.text.tokens import MARKS

TOKENIZERS = ("treebank", "words", "whitespace", "char", "regex")
ONE_TOKEN = 1.5  # tokens of a caption on average: with fewer the tokenizer does not split this language
# Captions of letters, digits, blanks, single hyphens, ", " and a final period: on these the Treebank rules only set the
# comma and the period apart. 98 captions of 100 are such. They need neither the 40 regular expressions of nltk nor its
# import, which takes over a second.
_PLAIN = re.compile(r"(?:[a-z0-9 ]|-(?!-)|, )*[a-z0-9 ]\.?\s*", re.IGNORECASE)
_CONTRACTION = re.compile(r"cannot|gimme|gonna|gotta|lemme|wanna", re.IGNORECASE)
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


# Of UAX #29, the word boundaries of Unicode: marks belong to their letter, apostrophes and hyphens to the word around
# them, points and commas to the number around them. Scripts that put no blanks between words are split by character, as
# a reader sees it: with its vowel signs and tone marks.
NO_BLANKS = r"[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\uff70\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_LETTER = rf"(?:(?!{NO_BLANKS})[\p{{L}}\p{{N}}\p{{M}}_\u200c\u200d])"
_WORDS = (
    rf"(?={NO_BLANKS})\X",
    rf"\p{{N}}+(?:[.,:\u066b\u066c]\p{{N}}+)*(?!{_LETTER})",
    rf"{_LETTER}+(?:['\u2019\u05f3\u05f4\u00b7\u05be\u2010-]{_LETTER}+)*",
    r"\.\.\.|(?![\s\x1c-\x1f])\X",
)


@cache
def load_words():
    """The pattern of the words of any language. The package regex, which knows scripts, is imported on first use."""
    import regex

    return regex.compile("|".join(_WORDS))


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


def _tokenize_words(text: str) -> list[str]:
    return load_words().findall(text)


_FUNCTIONS: dict[str, Callable[[str], list[str]]] = {
    "treebank": _tokenize_treebank,
    "words": _tokenize_words,
    "whitespace": _tokenize_whitespace,
    "char": _tokenize_char,
    "regex": _WORD.findall,
}


def tokenize(text: str, tokenizer: str = "treebank", lowercase: bool = True) -> list[str]:
    """Tokens of `text`: of "A dog's bone." they are a, dog, 's, bone and the period.

    `words` is for all languages: the words between Unicode's word boundaries, each other sign alone, and single
    characters of scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan).
    `treebank` is nltk's TreebankWordTokenizer (a final period and commas set apart, "child's" -> child 's),
    `whitespace` splits at blanks and leaves out <pad>, <start> and <end>, `char` gives single characters (runs of
    blanks as one), `regex` gives words with their inner apostrophes and hyphens, and each other sign alone.
    Raises UserError for an unknown tokenizer.
    """
    return tokenize_function(tokenizer)(text.lower() if lowercase else text)


def one_token_advice(tokens: int, captions: int, tokenizer: str) -> str | None:
    """A warning where a caption is about one token, as of a language without blanks between words; else None."""
    if not captions or tokens >= ONE_TOKEN * captions or tokenizer in ("words", "char"):
        return None
    what = f"a caption has {tokens / captions:.1f} tokens on average by --tokenizer {tokenizer}"
    return f"{what}: for a language without blanks between words use --tokenizer words"


def tokenize_function(tokenizer: str) -> Callable[[str], list[str]]:
    """The function from a text to its tokens, in the case of the text. Raises UserError for an unknown tokenizer."""
    try:
        return _FUNCTIONS[tokenizer]
    except (KeyError, TypeError):
        raise UserError(f"unknown tokenizer {tokenizer!r}: use one of {', '.join(TOKENIZERS)}") from None
