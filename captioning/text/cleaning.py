"""Text from files: captions without what is no text, names and ids that can be compared and written.

Every reader of captions calls `clean_caption`, so that a caption is the same for the vocabulary, in training and in
scores. What is written goes through `captioning.files.atomic_write`, which spells half characters out as \\udcXX.
"""

import re

from captioning.text.tokens import MARKS

# Control characters that are no blanks, the byte order mark, and halves of a character that stand alone.
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # the two halves of one character
_MARK = re.compile("|".join(MARKS), re.IGNORECASE)


def clean_text(text: str) -> str:
    """`text` with a blank for each control character and half character (what is left of an emoji that was cut)."""
    if text.isprintable() or not _NO_TEXT.search(text):
        return text
    whole = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _NO_TEXT.sub(" ", whole.replace("\ufeff", "")).strip()


def clean_caption(text: str) -> str:
    """`text` as clean_text() gives it, without <start>, <end> and <pad>, which other programs put into captions."""
    text = clean_text(text)
    return " ".join(_MARK.sub(" ", text).split()) if has_marks(text) else text


def has_marks(text: str) -> bool:
    """Whether <start>, <end> or <pad> is written in `text`."""
    return "<" in text and _MARK.search(text) is not None


def printable(value: int | str) -> int | str:
    """A text with half characters written out as \\udcXX: file names may hold bytes that are no text."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def id_text(image_id: int | str) -> str:
    """What image ids are compared by, in all files: 42 and "42" are the same image."""
    return str(printable(image_id))


def can_be_a_name(text: str) -> bool:
    """Whether a file could have this name or path: no NUL, no half character but those of bytes that are no text."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text
