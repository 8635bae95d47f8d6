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
# More marks of the languages that the tokenizer `words` splits. Full-width ones need no blanks around them.
_MORE_LEFT = {"।", "॥", "،", "؛", "؟", "۔", "։", "…", "”", "»", "’", "〉", "٪"}
_MORE_RIGHT = {"¿", "¡", "“", "«", "„", "‘", "〈"}
_NO_BLANKS = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff9f\U00020000-\U0003ffff]"
)
_SPACED_MARK = re.compile(r"\s+([.,!?](?:\s|$))")
SENTENCE_ENDS = ".!?。！？．…।॥؟۔։።༎။។"
_ENDED = re.compile(rf"[{SENTENCE_ENDS}][\"')\]”’»」』）】]*$")
_BEFORE_FIRST_LETTER = re.compile(r"[\"'(\[¿¡“„«‘]*")
# How a sentence ends, by the script of its last letter; others end with a period. Thai, Lao write no sign there.
_END_OF_SCRIPT = {
    "[\u0900-\u0bff]": "।", "[\u0530-\u058f]": "։", "[\u0e00-\u0eff]": "", "[\u0f00-\u0fff]": "།",
    "[\u1000-\u109f]": "။", "[\u1200-\u137f]": "።", "[\u1780-\u17ff]": "។",
    "[\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]": "。",
}  # fmt: skip
_LAST_LETTER = re.compile(r"\w[^\w]*$")


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
    joints = _word_joints(words) if tokenizer == "words" else _joints(words, finely=tokenizer == "regex")
    for word, to_the_left, to_the_right in joints:
        text += word if holds or to_the_left else f" {word}"
        holds = to_the_right
    return text


def _word_joints(words: Sequence[str]) -> Iterator[tuple[str, bool, bool]]:
    """_joints() of the tokenizer `words`, which splits no contractions: marks of all languages, no blanks in some."""
    for word, to_the_left, to_the_right in _joints(words, finely=True):
        alone = _NO_BLANKS.match(word) is not None
        yield word, alone or to_the_left or word in _MORE_LEFT, alone or to_the_right or word in _MORE_RIGHT


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
    """`text` with a capital and, where it has no mark at its end, that of its language: of "a dog" it is "A dog."."""
    if not text:
        return text
    first = _BEFORE_FIRST_LETTER.match(text).end()
    return with_end(text[:first] + text[first : first + 1].title() + text[first + 1 :])


def with_end(text: str) -> str:
    """`text` with a mark at its end: its own, or that which ends a sentence in the script of its last letter."""
    if is_ended(text):
        return text
    last = _LAST_LETTER.search(text)
    letter = last[0][0] if last else ""
    return text + next((mark for script, mark in _END_OF_SCRIPT.items() if re.match(script, letter)), ".")


def is_ended(text: str) -> bool:
    """Whether a sentence ends with a mark; quotes and brackets may follow it."""
    return bool(_ENDED.search(text))
