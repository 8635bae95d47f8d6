#!/usr/bin/env python3
"""Compare two datasets: which images, captions and words they share, and how long their captions are.

    ./datasets_compare.py --dataset_1 coco:train2014 --dataset_2 coco:val2014
    ./datasets_compare.py --dataset_1 coco:train2014 --dataset_2 vist:val --vocab_threshold 4 --show 20
    ./datasets_compare.py --vocab_1 vocab.pkl --vocab_2 other.json              # two vocabulary files
    ./datasets_compare.py --vocab_1 vocab.pkl --dataset_2 coco:val2014          # what a vocabulary misses of a dataset

Images are the same where their ids are, and are compared by the names of their files as well: ids of two collections
may be equal by chance. Captions are the same where their tokens are. Only captions are read; no image is opened.
"""

import sys
from argparse import Namespace

from captioning.command_line import Parser


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--dataset_1", metavar="NAME", help='first dataset, a section of datasets.conf; "a:x+b:y" joined')
    add("--dataset_2", metavar="NAME", help="second dataset")
    add("--dataset_config_file", metavar="FILE", help="file of the datasets (default: datasets/datasets.conf)")
    add("--vocab_1", metavar="FILE", help="vocabulary to compare (default: the words of --dataset_1's captions)")
    add("--vocab_2", metavar="FILE", help="vocabulary to compare (default: the words of --dataset_2's captions)")
    add(
        "--vocab_threshold",
        type=int,
        default=1,
        metavar="N",
        help="without a vocabulary file: least count of a word (default: 1)",
    )
    add("--tokenizer", default="treebank", metavar="NAME", help="treebank, whitespace, char, regex (default: treebank)")
    add("--show", type=int, default=10, metavar="N", help="name up to N words and images of each kind (default: 10)")
    add("--output", metavar="FILE", help="write all figures, shared ids and words to this JSON file too")
    args = parser.parse_args(argv)
    for number in ("1", "2"):
        if not getattr(args, f"dataset_{number}") and not getattr(args, f"vocab_{number}"):
            parser.error(f"name --dataset_{number} or --vocab_{number}")
    if args.vocab_threshold < 1:
        parser.error(f"--vocab_threshold {args.vocab_threshold}: at least 1")
    if args.show < 0:
        parser.error(f"--show {args.show}: at least 0")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from captioning.datasets.base import CaptionDataset
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError, run
from captioning.files import atomic_write
from captioning.text.tokenizers import tokenize
from captioning.text.tokens import SPECIALS
from vocabulary import Vocabulary, vocabulary_from_counts


@dataclass
class Side:
    """What is compared: of a dataset, of a vocabulary file, or of both."""

    name: str
    ids: set = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    captions: Counter = field(default_factory=Counter)  # tokens, joined by blanks -> times
    lengths: list[int] = field(default_factory=list)  # tokens of each caption
    counts: Counter = field(default_factory=Counter)  # token -> times
    words: dict[str, None] = field(default_factory=dict)  # the vocabulary, the most frequent first where counted
    num_captioned: int = 0
    has_dataset: bool = False


def read_side(dataset: str | None, vocab: str | None, config_file: str | None, tokenizer: str, threshold: int) -> Side:
    """One side of the comparison. Raises UserError for whatever cannot be read.

    threshold: least count of a word where no vocabulary file `vocab` is given.
    """
    side = Side(dataset or vocab)
    if dataset:
        add_dataset(side, open_dataset(dataset, config_file), tokenizer)
    if vocab:
        words = Vocabulary.load(vocab).words
    else:
        words = vocabulary_from_counts(side.counts, threshold, tokenizer).words
    words = [word for word in words if word not in SPECIALS]
    side.words = dict.fromkeys(sorted(words, key=lambda word: -side.counts[word]))
    return side


def add_dataset(side: Side, dataset: CaptionDataset, tokenizer: str) -> None:
    side.has_dataset = True
    for item in dataset.items:
        side.ids.add(str(item.image_id))
        side.num_captioned += bool(item.captions)
        for caption in item.captions:
            tokens = tokenize(caption, tokenizer)
            side.captions[" ".join(tokens)] += 1
            side.lengths.append(len(tokens))
            side.counts.update(tokens)
    for photo in dataset.photos():  # of a region or a story too
        side.files.add(os.path.basename(photo.path) if photo.path else photo.key)


# ---- what is printed ----


def length_figures(side: Side) -> dict[str, float]:
    if not side.lengths:
        return {}
    ordered = sorted(side.lengths)
    return {
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "95%": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "longest": ordered[-1],
    }


def missed(tokens: Side, vocabulary: Side) -> float | None:
    """Share of the running words of `tokens` that `vocabulary` lacks; None where there are no captions."""
    total = sum(tokens.counts.values())
    return sum(n for word, n in tokens.counts.items() if word not in vocabulary.words) / total if total else None


def compare(one: Side, two: Side) -> dict:
    """All figures, in plain types."""
    report: dict = {"names": [one.name, two.name]}
    if one.has_dataset and two.has_dataset:
        shared = one.captions.keys() & two.captions.keys()
        report["images"] = overlap(one.ids, two.ids) | {"shared_ids": sorted(one.ids & two.ids)}
        report["files"] = overlap(one.files, two.files) | {"shared_files": sorted(one.files & two.files)}
        report["captions"] = overlap(one.captions.keys(), two.captions.keys()) | {
            "all": [sum(one.captions.values()), sum(two.captions.values())],
            "all_shared": [sum(side.captions[text] for text in shared) for side in (one, two)],
        }
    report["lengths"] = [length_figures(one), length_figures(two)]
    report["words"] = overlap(one.words.keys(), two.words.keys()) | {
        "only": [[word for word in a.words if word not in b.words] for a, b in ((one, two), (two, one))],
        "tokens": [sum(side.counts.values()) for side in (one, two)],
        "missed": [missed(one, two), missed(two, one)],
    }
    return report


def overlap(one: Iterable, two: Iterable) -> dict:
    one, two = set(one), set(two)
    return {"counts": [len(one), len(two)], "shared": len(one & two)}


def lines_of(report: dict, one: Side, two: Side, show: int) -> list[str]:
    """The report as a table and what to look at in it."""
    width = max(16, len(one.name), len(two.name)) + 2
    rows = [("", one.name, two.name, "shared")]
    for name, key in (("images by id", "images"), ("images by file", "files"), ("distinct captions", "captions")):
        if key in report:
            rows.append((name, *report[key]["counts"], report[key]["shared"]))
    if "captions" in report:
        rows.append(("images captioned", one.num_captioned, two.num_captioned, ""))
        rows.append(("captions", *report["captions"]["all"], ""))
    rows.append(("running words", *report["words"]["tokens"], ""))
    rows.append(("vocabulary", *report["words"]["counts"], report["words"]["shared"]))
    rows.append(("lacking in the other", *("" if x is None else f"{x:.2%}" for x in report["words"]["missed"]), ""))
    for name in ("mean", "median", "95%", "longest"):
        values = [f"{figures[name]:.4g}" if figures else "" for figures in report["lengths"]]
        rows.append((f"words, {name}", *values, ""))
    lines = [
        f"{name:<22}" + "".join(f"{cell(value):>{width}}" for value in values[:2]) + f"{cell(values[2]):>10}"
        for name, *values in rows
        if any(value != "" for value in values)
    ]
    for side, words in zip((one, two), report["words"]["only"]):
        if words and show:
            lines.append(f"only in {side.name}: {listed(words, show)}")
    if "images" in report:
        shared = report["images"]["shared"]
        lines.append(f"There are {shared:,} images shared between {one.name} and {two.name}")
        if shared and show:
            lines.append(f"their ids: {listed(report['images']['shared_ids'], show)}")
    return lines


def cell(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def listed(names: list[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def main(args) -> int:
    tokenize("", args.tokenizer)  # an unknown one is said before the reading
    settings = (args.dataset_config_file, args.tokenizer, args.vocab_threshold)
    one = read_side(args.dataset_1, args.vocab_1, *settings)
    two = read_side(args.dataset_2, args.vocab_2, *settings)
    report = compare(one, two)
    print("\n".join(lines_of(report, one, two, args.show)))
    if args.output:
        try:
            with atomic_write(args.output) as file:
                json.dump(report, file, indent=1, ensure_ascii=False)
        except OSError as error:
            raise UserError(f"--output: cannot write {args.output}: {error.strerror or error}") from error
        print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
