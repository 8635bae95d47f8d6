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
    add("--vocab_threshold", default=1, metavar="N", help="without a vocabulary file: least count of a word")
    add("--tokenizer", default="treebank", metavar="NAME", help="treebank, words, whitespace, char or regex")
    add("--show", default=10, metavar="N", help="name up to N words and images of each kind")
    add("--output", metavar="FILE", help="write all figures, shared ids and words to this JSON file too")
    args = parser.parse_args(argv)
    for number in ("1", "2"):
        if not getattr(args, f"dataset_{number}") and not getattr(args, f"vocab_{number}"):
            parser.error(f"name --dataset_{number} or --vocab_{number}")
    parser.at_least(1, args, "vocab_threshold")
    parser.at_least(0, args, "show")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from captioning.datasets.base import CaptionDataset, shared_ids
from captioning.datasets.factory import open_dataset
from captioning.errors import first_few, run, warn
from captioning.files import atomic_write
from captioning.text.cleaning import id_text
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
    vocabulary = Vocabulary.load(vocab) if vocab else vocabulary_from_counts(side.counts, threshold, tokenizer)
    words = [word for word in vocabulary.words if word not in SPECIALS]
    side.words = dict.fromkeys(sorted(words, key=lambda word: -side.counts[word]))
    return side


def add_dataset(side: Side, dataset: CaptionDataset, tokenizer: str) -> None:
    side.has_dataset = True
    if shared := shared_ids(dataset):
        warn(f"{dataset.name}: {len(shared)} ids stand for several images, each counts once: {first_few(shared)}")
    for item in dataset.items:
        side.ids.add(id_text(item.image_id))
        side.num_captioned += bool(item.captions)
        for caption in item.captions:
            tokens = tokenize(caption, tokenizer)
            side.captions[" ".join(tokens)] += 1
            side.lengths.append(len(tokens))
            side.counts.update(tokens)
    for photo in dataset.photos():  # of a region or a story too
        side.files.add(os.path.basename(photo.path) if photo.path else photo.key)


# ---- what is printed ----


def length_figures(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    ordered = sorted(lengths)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    mean, median = statistics.fmean(ordered), statistics.median(ordered)
    return {"mean": mean, "median": median, "95%": high, "longest": ordered[-1]}


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
    report["lengths"] = [length_figures(one.lengths), length_figures(two.lengths)]
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
    lines = []
    for name, *values in rows:
        one_text, two_text, shared = (f"{value:,}" if isinstance(value, int) else value for value in values)
        if one_text or two_text or shared:
            lines.append(f"{name:<22}{one_text:>{width}}{two_text:>{width}}{shared:>10}")
    for side, words in zip((one, two), report["words"]["only"]):
        if words and show:
            lines.append(f"only in {side.name}: {listed(words, show)}")
    if "images" in report:
        shared = report["images"]["shared"]
        lines.append(f"There are {shared:,} images shared between {one.name} and {two.name}")
        if shared and show:
            lines.append(f"their ids: {listed(report['images']['shared_ids'], show)}")
    return lines


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
        with atomic_write(args.output) as file:
            json.dump(report, file, indent=1, ensure_ascii=False)
        print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
