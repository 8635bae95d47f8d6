"""The tokens that scores compare: PTB's, and for languages that PTB's rules cannot split, those of `words`.

    by = score_tokenizer(references)          # "python" or "words"
    tokens = score_tokens(by)                 # a function: score_tokens("words")("一只狗。") is ["一", "只", "狗"]

PTB's rules are for English. They do well with all texts in Latin, Greek and Cyrillic letters and in Korean ones. They
leave a Chinese sentence in one piece, and lose the vowel signs of Hindi and Thai.
"""

import re
from collections.abc import Callable, Iterable

from captioning.text.ptb import ptb_tokens
from captioning.text.tokenizers import tokenize

# Hebrew, Arabic, the scripts of India and South-East Asia, Ethiopic, Chinese characters and kana.
_NOT_FOR_PTB = re.compile(
    "[\u0590-\u08ff\u0900-\u109f\u1200-\u137f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\ufb1d-\ufdff\ufe70-\ufefc\uff66-\uff9f\U00020000-\U0003ffff]"
)
_LETTER = re.compile(r"[^\W\d_]")
NOTE = "the references are in a script that PTB's rules do not split: scores are of the tokens of `words` (docs)"


def score_tokenizer(captions: Iterable[str]) -> str:
    """ "words" where most letters of `captions` are of scripts that PTB's rules do not split, else "python"."""
    others = letters = 0
    for caption in captions:
        if caption.isascii():
            letters += len(caption)
        else:
            others += len(_NOT_FOR_PTB.findall(caption))
            letters += len(_LETTER.findall(caption))
    return "words" if 2 * others > letters else "python"


def score_tokens(tokenizer: str) -> Callable[[str], list[str]]:
    """The function from a caption to its tokens, lower-cased and without punctuation: by "python" or "words"."""
    return _words if tokenizer == "words" else ptb_tokens


def _words(caption: str) -> list[str]:
    return [token for token in tokenize(caption, "words") if any(sign.isalnum() for sign in token)]
