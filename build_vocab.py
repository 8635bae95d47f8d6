#!/usr/bin/env python3
"""Make a vocabulary from the captions of a dataset.

    ./build_vocab.py --dataset coco:train2014 --vocab_output_path vocab.pkl
    ./build_vocab.py --dataset coco:train2014 --vocab_output_path vocab.json --vocab_threshold 5 --keep_frequency
    ./build_vocab.py --dataset photos/captions.csv --vocab_output_path vocab.json --tokenizer words
    ./build_vocab.py --leftovers_from_vocabulary vocab.pkl --dataset coco:val2014      # words that vocab.pkl lacks

Words that occur at least --vocab_threshold times are kept, in order of first appearance, after <pad> <start> <end>
<unk>. A threshold that would make most words <unk> is refused. The files beside X.pkl are X-leftovers.txt and
X-vocab_stats.txt: "word count" lines, the most frequent first.
"""

import sys

from captioning.command_line import Parser


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--dataset", metavar="NAME", help="section of the dataset file, or PATH[:SPLIT] of captions; several: a:x+b:y")
    add("--dataset_config_file", default="datasets/datasets.conf", metavar="FILE", help="dataset file")
    add("--vocab_output_path", metavar="FILE", help="vocabulary to write: .json, .pkl or .txt")
    add("--vocab_threshold", type=int, metavar="N", help="times a word must occur to be kept (default: 4; of a small "
        "file of captions 1 or 2)")  # fmt: skip
    kinds = ("treebank", "words", "whitespace", "char", "regex")
    add("--tokenizer", default="treebank", choices=kinds, help="words: for any language; char: characters")
    add("--no_tokenize", action="store_true", help="captions are tokens already: split them at blanks, keep the case")
    add("--show_tokens", action="store_true", help="print each caption with its tokens, and whether they are the SAME")
    add("--keep_frequency", action="store_true", help="keep the number of occurrences of each word in the file")
    add("--create_vocab_stats_file", action="store_true", help="also write all words with their counts")
    add("--create_leftovers_file", action="store_true", help="also write the words below the threshold with counts")
    add("--leftovers_from_vocabulary", metavar="FILE", help="write only leftovers: words of --dataset (default: the "
        "one the vocabulary was made from) that are not in this vocabulary")  # fmt: skip
    add("--leftovers_from_dataset", metavar="NAME", help="write only leftovers: words of this dataset below the "
        "threshold, or with --dataset the words of that which this dataset's vocabulary would lack")  # fmt: skip
    add("--dont_create_vocab", action="store_true", help="write no vocabulary, only the other files asked for")
    add("--num_workers", type=int, metavar="N", help="parallel processes for large datasets (default: one per core)")
    add("--force", action="store_true", help="replace files that exist")
    add("--verbose", action="store_true", help="print the words")
    args = parser.parse_args(argv)
    parser.at_least(1, args, "vocab_threshold")
    parser.at_least(0, args, "num_workers")
    parser.at_most(1000, args, "num_workers")
    if args.no_tokenize and args.tokenizer != "treebank":
        parser.error(f"--no_tokenize and --tokenizer {args.tokenizer} exclude each other")
    if args.leftovers_from_vocabulary and args.leftovers_from_dataset:
        parser.error("--leftovers_from_vocabulary and --leftovers_from_dataset exclude each other")
    if not (args.leftovers_from_vocabulary or args.leftovers_from_dataset):
        if not args.dataset:
            parser.error("--dataset: name a section of the dataset file, such as coco:train2014")
        if not (args.vocab_output_path or args.dont_create_vocab):
            parser.error("--vocab_output_path: name the vocabulary to write, such as vocab.json")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from captioning.cores import core_count
from captioning.datasets.base import CaptionDataset
from captioning.datasets.caption_file import suitable_threshold
from captioning.datasets.factory import open_dataset
from captioning.datasets.names import short_names
from captioning.errors import UserError, run, warn
from captioning.files import atomic_write
from captioning.next_steps import config_words, print_next
from captioning.progress import Bar
from captioning.text.tokenizers import one_token_advice, tokenize
from captioning.text.tokens import SPECIALS
from vocabulary import Vocabulary, count_words, file_kind, require_known_words, vocabulary_from_counts

DEFAULT = ("treebank", True)  # tokeniser and whether words are lower-cased: what a .txt vocabulary stands for


def refuse_existing(*paths: Path | None) -> None:
    for path in filter(None, paths):
        if path.exists():
            raise UserError(f"{path} exists: --force replaces it")


def beside(path: str, ending: str) -> Path:
    """vocab.pkl, "leftovers" -> vocab-leftovers.txt; also for the name of a dataset."""
    stem = Path(path).with_suffix("") if Path(path).suffix in (".json", ".pkl", ".txt") else Path(path)
    return stem.with_name(f"{stem.name}-{ending}.txt")


def write_counts(path: Path, counter: Counter) -> None:
    with atomic_write(path) as file:
        for word, count in sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])):
            file.write(f"{word} {count}\n")
    print(f"{len(counter)} words with their counts written to {path}")


@dataclass(frozen=True)
class Counting:
    """How captions are read, split into tokens and counted."""

    config_file: str
    tokenizer: str
    lowercase: bool
    workers: int

    def read(self, name: str) -> CaptionDataset:
        """The dataset `name`. Raises UserError where it has no captions."""
        dataset = open_dataset(name, self.config_file)
        dataset.require_captions("a vocabulary")
        return dataset

    def count(self, dataset: CaptionDataset) -> Counter:
        with Bar(dataset.num_captions, "count words", "caption", stream=sys.stderr) as bar:
            return count_words(dataset.captions(), self.tokenizer, self.lowercase, self.workers, bar)

    def vocabulary(
        self, counter: Counter, threshold: int | None, dataset: CaptionDataset, name: str | None = None
    ) -> Vocabulary:
        """The words of `dataset`, which `counter` counts; without a `threshold` that which suits its size."""
        if threshold is None:
            threshold = suitable_threshold(dataset)
        return vocabulary_from_counts(counter, threshold, self.tokenizer, self.lowercase, name)


def left_over(counter: Counter, vocabulary: Vocabulary) -> Counter:
    """The words that `vocabulary` lacks, with their counts."""
    return Counter({word: count for word, count in counter.items() if word not in vocabulary})


def leftovers_of_vocabulary(path: str, dataset: str | None, counting: Counting) -> Counter:
    """The words of `dataset` (None: the one that the vocabulary file `path` was made from) that the file lacks."""
    vocabulary = Vocabulary.load(path)
    name = dataset or vocabulary.dataset
    if not name:
        raise UserError(f"--dataset: {path} does not say what it was made from; name one")
    counting = replace(counting, tokenizer=vocabulary.tokenizer, lowercase=vocabulary.lowercase)
    return left_over(counting.count(counting.read(name)), vocabulary)


def leftovers_of_dataset(source: str, dataset: str | None, threshold: int | None, counting: Counting) -> Counter:
    """The words of `dataset` (None: of `source`) that a vocabulary made from the dataset `source` would lack."""
    origin = counting.read(source)
    made_from = counting.count(origin)
    counter = counting.count(counting.read(dataset)) if dataset else made_from
    return left_over(counter, counting.vocabulary(made_from, threshold, origin))


def print_sizes(dataset: CaptionDataset, counter: Counter, vocabulary: Vocabulary) -> None:
    tokens = sum(counter.values())
    kept = sum(vocabulary.counts[len(SPECIALS) :])
    words = len(vocabulary) - len(SPECIALS)
    print(f"{dataset.name}: {dataset.num_captions} captions of {len(dataset)} images, {tokens} tokens")
    print(f"{words} of {len(counter)} distinct words kept (at least {vocabulary.threshold} times each)", end=", ")
    print(f"which is {100 * kept / max(tokens, 1):.2f}% of the tokens; {len(vocabulary)} with the special ones")


def main(args) -> int:
    workers = core_count() if args.num_workers is None else args.num_workers
    split = ("whitespace", False) if args.no_tokenize else (args.tokenizer, True)
    counting = Counting(args.dataset_config_file, *split, workers)
    source = args.leftovers_from_vocabulary or args.leftovers_from_dataset
    base = args.vocab_output_path or (source or short_names(args.dataset))
    stats = beside(base, "vocab_stats") if args.create_vocab_stats_file and not source else None
    leftovers = beside(base, "leftovers") if args.create_leftovers_file or source else None
    output = None if args.dont_create_vocab or source else Path(args.vocab_output_path)
    if output and file_kind(output) == ".txt" and split != DEFAULT:
        raise UserError("--vocab_output_path: a .txt file cannot keep how captions are split: use .json or .pkl")
    if not args.force:
        refuse_existing(output, leftovers, stats)
    if args.leftovers_from_vocabulary:
        write_counts(leftovers, leftovers_of_vocabulary(source, args.dataset, counting))
    elif source:
        write_counts(leftovers, leftovers_of_dataset(source, args.dataset, args.vocab_threshold, counting))
    if source:
        return 0

    dataset = counting.read(args.dataset)
    if args.show_tokens:
        for caption in dataset.captions():
            joined = " ".join(tokenize(caption, *split))
            print("SAME" if joined == caption else "DIFF", caption, "=>", joined)
    counter = counting.count(dataset)
    if line := one_token_advice(sum(counter.values()), dataset.num_captions, counting.tokenizer):
        warn(line)
    vocabulary = counting.vocabulary(counter, args.vocab_threshold, dataset, args.dataset)
    if args.verbose:
        print(*vocabulary.words)
    print_sizes(dataset, counter, vocabulary)
    if output:
        require_known_words(counter, vocabulary, args.dataset)
        if not args.keep_frequency:
            vocabulary.counts = None
        vocabulary.save(output)
        print(f"vocabulary written to {output}")
    if leftovers:
        write_counts(leftovers, left_over(counter, vocabulary))
    if stats:
        write_counts(stats, counter)
    if output:
        data = ["--dataset", args.dataset, *config_words(args.typed_flags.get("dataset_config_file"))]
        print_next(["train.py", *data, "--vocab", output, "--model_name", "NAME"])
    return 1 if dataset.damaged else 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
