"""Names of encoders: which are plain, what they ask for, and which known name one is near.

A name is never an address or a folder: models and feature files name their encoders, and whoever wrote them need not
be trusted.
"""

import difflib
import re
from collections.abc import Iterable

from captioning.errors import UserError

_WORD = r"\w+([.-]\w+)*"
PLAIN_NAME = re.compile(rf"(timm:)?{_WORD}|open_clip:{_WORD}(/{_WORD})?", re.ASCII)
KINDS = ("conv", "tokens")  # what a name may end in: the last map, or all tokens; without it, the pooled vector


def split_name(name: str) -> tuple[str, str]:
    """The network's name and what its output is to be: "pooled", "conv" or "tokens".

    Raises UserError for a name that is not plain.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(
            f"unknown encoder {name[:100]!r}: use the plain name of a network of torchvision, timm:NAME or "
            "open_clip:NAME/TAG; weights that come from elsewhere are given as a file (--weights)"
        )
    for kind in KINDS:
        if name.endswith(f"-{kind}"):
            return name.removesuffix(f"-{kind}"), kind
    return name, "pooled"


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message: names among `known` that are like `name`; "" where none is."""
    found = difflib.get_close_matches(name, list(known), n=3)
    return f"; near: {', '.join(found)}" if found else ""


def no_tokens(base: str) -> UserError:
    return UserError(f"{base}-tokens: {base} has no tokens; {base}-conv gives its last map")
