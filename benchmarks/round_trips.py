#!/usr/bin/env python3
"""How many captions come back as they were written, when they are split into words and put together again.

    benchmarks/round_trips.py captions_val2014.json
    benchmarks/round_trips.py captions_val2014.json sentences.txt --tokenizer regex --show 20

A file is COCO's file of captions, or a text file with a caption a line. Letter case does not count, and a run of blanks
counts as one. The second figure leaves out blanks beside marks too: some collections were split before they were
published ("a dog , running ."). The third is the share of captions with the same tokens for the scores (PTB) as the
words joined by blanks, so that the scores of results are those of their words.
"""

import re
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.command_line import Parser
from captioning.errors import UserError, run
from captioning.files import read_json, read_lines
from captioning.text.detokenizers import detokenize
from captioning.text.tokenizers import TOKENIZERS, tokenize


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("captions", nargs="+", metavar="FILE", help="captions: COCO's .json, or a caption a line")
    parser.add_argument("--tokenizer", choices=TOKENIZERS, default="treebank", help="the tokenizer to undo")
    parser.add_argument("--show", default=0, metavar="N", help="captions to print that come back otherwise")
    return parser.parse_args(argv)


def read_captions(path: str) -> list[str]:
    """The captions of a file in lower case, runs of blanks as one. Raises UserError where there are none."""
    if not path.lower().endswith(".json"):
        texts = read_lines(path, "captions")
    else:
        content = read_json(path, "captions")
        try:
            texts = [entry["caption"] for entry in content["annotations"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"captions: {path} is no COCO caption file: it has no list 'annotations'") from error
    captions = [" ".join(text.lower().split()) for text in texts if text.strip()]
    if not captions:
        raise UserError(f"captions: {path} has no captions")
    return captions


def round_trips(captions: Iterable[str], tokenizer: str) -> tuple[list[bool], list[bool], list[tuple[str, str]]]:
    """Of each caption, whether it is the same again, and whether it is but for blanks beside marks; those that are not.

    The latter are pairs of the caption and what became of it.
    """
    same, nearly, others = [], [], []
    for caption in captions:
        again = detokenize(tokenize(caption, tokenizer), tokenizer)
        same.append(again == caption)
        nearly.append(_without_blanks_beside_marks(again) == _without_blanks_beside_marks(caption))
        if not nearly[-1]:
            others.append((caption, again))
    return same, nearly, others


def same_tokens(captions: Iterable[str], tokenizer: str) -> list[bool]:
    """Of each caption, whether putting it together leaves the tokens that scores compare as they were."""
    from captioning.text.ptb import ptb_tokens

    split = [tokenize(caption, tokenizer) for caption in captions]
    joint = "" if tokenizer == "char" else " "
    return [ptb_tokens(joint.join(words)) == ptb_tokens(detokenize(words, tokenizer)) for words in split]


def _without_blanks_beside_marks(text: str) -> str:
    return re.sub(r"\s*([^\w\s])\s*", r"\1", text)


def main(args) -> int:
    for path in args.captions:
        captions = read_captions(path)
        same, nearly, others = round_trips(captions, args.tokenizer)
        print(f"{path}: {len(captions)} captions, tokenizer {args.tokenizer}")
        kept = same_tokens(captions, args.tokenizer)
        for share, what in ((same, "as written"), (nearly, "but for blanks"), (kept, "same PTB tokens")):
            print(f"  {what:<16} {sum(share) / len(share):8.3%}")
        for caption, again in others[: args.show]:
            print(f"  - {caption}\n  + {again}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
