"""Words back to text: the inverse of the tokenizers, and sentences with a capital and a period.

detokenize(["a", "dog", "'s", "ball", "(", "left", ")"])      # "a dog's ball (left)"
as_sentence("a dog's ball (left)")                            # "A dog's ball (left)."
"""

import re
from collections.abc import Iterator, Sequence

_SPLIT_OFF = {"'s", "'m", "'d", "'ll", "'re", "'ve", "n't"}
_SUFFIXES = {suffix[1:] for suffix in _SPLIT_OFF if suffix.startswith("'")}
_SPLIT_WORDS = {
    ("can", "not"), ("d", "'ye"), ("gim", "me"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("more", "'n"),
    ("wan", "na"), ("'t", "is"), ("'t", "was"),
}  # fmt: skip
_TO_THE_LEFT = {".", ",", ";", ":", "!", "?", "...", "%", "°", ")", "]", "}", ">"}
_TO_THE_RIGHT = {"(", "[", "{", "<", "#", "$", "£", "€"}
_QUOTES = {'"', "``", "''"}
_WITHIN_NUMBERS = {".", ",", ":", "/"}
_SPACED_MARK = re.compile(r"\s+([.,!?](?:\s|$))")
_ENDED = re.compile(r"[.!?][\"')\]]*$")
_BEFORE_FIRST_LETTER = re.compile(r"[\"'(\[]*")


def detokenize(words: Sequence[str], tokenizer: str = "treebank") -> str:
    """The text that `tokenizer` splits into `words`, as people write it: of do, n't, stop and ! it is "don't stop!".

    Quotes become straight ones. They open and close by turns. What was written cannot always be told from the words:
    "can not" becomes "cannot", and " & " and " -- " keep their blanks. `whitespace` leaves all as it was written,
    except that . , ! and ? join the word before them.
    """
    if tokenizer == "char":
        return "".join(words)
    if tokenizer == "whitespace":
        return _SPACED_MARK.sub(r"\1", " ".join(words))
    text, holds = "", True
    for word, to_the_left, to_the_right in _joints(words, finely=tokenizer == "regex"):
        text += word if holds or to_the_left else f" {word}"
        holds = to_the_right
    return text


def _joints(words: Sequence[str], finely: bool) -> Iterator[tuple[str, bool, bool]]:
    """Each word as it is written, and whether it holds to the word before it and to the word behind it.

    finely: the tokenizer splits numbers too ("3", ".", "5"), words at a slash, and a lone "'s".
    """
    quoted, single_quoted = False, False
    for place, word in enumerate(words):
        before = words[place - 1].lower() if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        if word in _QUOTES:
            opens = not quoted and word != "''" and bool(after)
            quoted = opens
            yield '"', not opens, opens
        elif finely and _is_inner(before, word, after):
            yield word, True, True
        elif word == "'":
            single_quoted = not single_quoted and _opens(words, place)
            yield word, not single_quoted, single_quoted
        else:
            to_the_left = word in _TO_THE_LEFT or word.lower() in _SPLIT_OFF or (before, word.lower()) in _SPLIT_WORDS
            yield word, to_the_left, word in _TO_THE_RIGHT


def _is_inner(before: str, sign: str, after: str) -> bool:
    """Whether `sign` stands within a word or a number that `regex` has split."""
    if sign in _WITHIN_NUMBERS and before[-1:].isdigit() and after[:1].isdigit():
        return True
    return sign == "/" or (sign == "'" and after.lower() in _SUFFIXES)


def _opens(words: Sequence[str], place: int) -> bool:
    """Whether the apostrophe at `place` opens a quotation, rather than end one or a plural ("two boys ' teams").

    The tokenizers leave an opening one with its word ("'stop"), except in captions that were split before. There a
    second one must follow. Two behind an "s" are two plurals.
    """
    if "'" not in words[place + 1 :]:
        return False
    end = words.index("'", place + 1)
    return not (words[max(place - 1, 0)].endswith("s") and words[end - 1].endswith("s"))


def as_sentence(text: str) -> str:
    """`text` with a capital and, where it has no mark at its end, a period: of "a dog" it is "A dog."."""
    if not text:
        return text
    first = _BEFORE_FIRST_LETTER.match(text).end()
    text = text[:first] + text[first : first + 1].upper() + text[first + 1 :]
    return text if is_ended(text) else f"{text}."


def is_ended(text: str) -> bool:
    """Whether a sentence ends with a mark; quotes and brackets may follow it."""
    return bool(_ENDED.search(text))
