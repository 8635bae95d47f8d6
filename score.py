#!/usr/bin/env python3
"""Score results files against reference captions.

    ./score.py results.json --ground_truth annotations/captions_val2014.json
    ./score.py a.json b.json --ground_truth captions.json --confidence 95   # intervals; is b better than a?
    ./score.py seed1.json seed2.json seed3.json --ground_truth captions.json --group   # mean and deviation
    ./score.py --group lstm=results/lstm*.json --group gru=results/gru*.json --ground_truth captions.json --format latex
    ./score.py results.json --ground_truth captions.json --scoring bleu,cider --tokenizer python --output scores.json
    ./score.py results.json --ground_truth captions.json --objects       # how often the main object is named
    ./score.py results.json --ground_truth captions.json --scoring ciderd --cached_words coco-train-words.p
    ./score.py results/*.json --ground_truth captions.json --output scores.csv    # a row for each file
    ./score.py results.json --ground_truth captions.json --per_image images.csv   # a row for each image

results.json is the COCO results list that `infer.py --output_format json` writes:
[{"image_id": 42, "caption": "a dog runs on the grass"}, ...]. Its .jsonl and .csv files are read too. The ground truth
is a COCO caption file, or Visual Genome's list of paragraphs; blank references are left out. Images of the ground truth
without a result, and results of images without a reference, are counted and not scored. A metric that cannot run
(METEOR and SPICE without Java) is named with the reason; the exit status is 1 if --scoring asked for it.
"""

import sys
from argparse import Namespace

from captioning.command_line import Parser
from captioning.groups import GROUP, group_mistake, read_groups

DEFAULT_SCORING = "bleu,meteor,rouge,cider"
FORMATS = ("text", "markdown", "latex", "csv", "json")


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("results", nargs="*", metavar="RESULTS.json", help="captions to score, as infer.py writes them")
    add("--ground_truth", metavar="FILE", required=True, help="reference captions: COCO's or Visual Genome's file")
    add("--scoring", metavar="NAMES", help="bleu, meteor, rouge, cider, ciderd (with --cached_words), spice; METEOR, "
        f"SPICE need Java (default: {DEFAULT_SCORING})")  # fmt: skip
    add("--tokenizer", choices=("auto", "ptb", "python", "words"), default="auto", help="ptb: Stanford's, needs Java; "
        "python: the same tokens without Java; words: for Chinese, Hindi, Arabic and others; auto: words where the "
        "references need it, else ptb if there is Java (default: auto)")  # fmt: skip
    add("--cached_words", metavar="FILE", help="ciderd: document frequencies (of build_cached_words.py)")
    add("--confidence", type=float, metavar="PERCENT", help="show intervals of this confidence, such as 95, and how "
        "much each further results file differs from the first")  # fmt: skip
    add("--resamples", default=1000, metavar="N", help="--confidence: samples of the images to draw")
    add("--group", **GROUP, help="show the mean and standard deviation of several results files, as of several seeds: "
        "alone, of all RESULTS.json; with NAME=A,B or NAME=PATTERN of those; may be repeated")  # fmt: skip
    add("--training", metavar="FILE", help="count novel captions: those that this caption file, or dataset of "
        "datasets.conf, does not have")  # fmt: skip
    add("--objects", action="store_true", help="count how often the main object is named: one of COCO's 80 categories "
        "that three of five references name, by that word, a synonym or a broader one (English)")  # fmt: skip
    add("--dataset_config_file", metavar="FILE", help="file of the datasets (default: datasets/datasets.conf)")
    add("--format", choices=FORMATS, help="of --output, or of what is printed (default: by the ending of --output: "
        ".csv, .md, .tex, .txt, else JSON; printed: text)")  # fmt: skip
    add("--output", metavar="FILE", help="write the scores too; tables have a row for each results file or group")
    add("--per_image", metavar="FILE.csv", help="write the scores of every caption to this file")
    args = parser.parse_args(argv)
    check_flags(parser, args)
    return args


def check_flags(parser: Parser, args: Namespace) -> None:
    """End the script where flags have impossible values or contradict each other."""
    if not args.results and not any(args.group or ()):
        parser.error("name one or more results files")
    if args.per_image and not args.per_image.lower().endswith(".csv"):
        parser.error(f"--per_image {args.per_image}: name a .csv file")
    if mistake := group_mistake(args.group or (), args.results, "RESULTS.json"):
        parser.error(mistake)
    if args.confidence is None:
        if "resamples" in args.typed_flags:
            parser.error("--resamples is for --confidence")
    elif not 50 <= args.confidence < 100:
        parser.error(f"--confidence {args.confidence:g}: give a percentage from 50 to below 100, such as 95")
    elif args.group:
        parser.error("--confidence is about images, --group about seeds: leave one of them out")
    parser.at_least(100, args, "resamples")
    if args.dataset_config_file and not args.training:
        parser.error("--dataset_config_file is for --training")


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports of packages, so that --help and mistakes answer at once

from pathlib import Path

from captioning.datasets.references import read_references
from captioning.errors import UserError, note, run, warn
from captioning.files import atomic_write, check_writable, require_file
from captioning.progress import Bar
from inference.caption_files import read_results, read_training_captions, with_references

ENDINGS = {".csv": "csv", ".md": "markdown", ".tex": "latex", ".txt": "text"}


def make_scoring(args, references: dict, training: list[str] | None):
    """The Scoring that the flags ask for; training: captions of the training set. Raises UserError for bad flags."""
    from captioning.scoring.document_frequencies import CachedWords
    from captioning.scoring.metrics import parse_metrics
    from inference.scored_files import Scoring

    metrics = parse_metrics(args.scoring or DEFAULT_SCORING)
    if args.cached_words and "ciderd" not in metrics:
        raise UserError("--cached_words is for ciderd, which --scoring does not name")
    table = CachedWords.load(args.cached_words).to_dict() if args.cached_words else None
    return Scoring(references, metrics, args.tokenizer, table, training, args.objects)


def print_scored(one, total: int) -> None:
    """The lines of a Scored; total: images of the ground truth."""
    print(f"{len(one.captions)} captions, {one.references:.1f} references each, tokenizer {one.scores.tokenizer}")
    if one.missing:
        print(f"{one.missing} of {total} images of the ground truth have no result and are not scored")
    print("\n".join(one.scores.lines(one.intervals)))
    found = one.statistics
    print(
        f"distinct captions {found['distinct']:.1%}, mean length {found['mean_length']:.1f} words, "
        f"<unk> {found['unk_share']:.1%} of the words"
    )
    novel = f", novel captions {found['novel']:.1%}" if "novel" in found else ""
    print(f"vocabulary used {found['vocabulary_used']} words{novel}")
    if "object_named" in found:
        images = found["object_images"]
        print(f"main object named in {found['object_named']:.1%} of {images} photos whose references agree on one")
    if "div_1" in found:
        print(
            f"{found['captions_per_image']:.1f} captions of an image: div-1 {found['div_1']:.4f}, "
            f"div-2 {found['div_2']:.4f}, mBLEU-4 {found['mbleu_4']:.4f}"
        )


def tell_troubles(one, total: int) -> None:
    """What print_scored would tell of a Scored and a table does not."""
    if one.missing:
        note(f"{one.path}: {one.missing} of {total} images of the ground truth have no result and are not scored")
    for name, reason in one.scores.left_out.items():
        note(f"{one.path}: {name} left out: {reason}")


def print_differences(first, second, confidence: float) -> None:
    from captioning.scoring.metrics import LABELS

    print(f"\n{second.path} minus {first.path}, {confidence:g}% intervals, p-value of no difference")
    for name, found in second.differences.items():
        bounds = f"[{found.low:+.4f}, {found.high:+.4f}]"
        print(f"{LABELS[name]:<8} {found.value:+7.4f}  {bounds}  p {found.p:.3f}")


def output_format(args) -> str:
    """The format of --output, or of what is printed."""
    if args.format or not args.output:
        return args.format or "text"
    return ENDINGS.get(Path(args.output).suffix.lower(), "json")


def report(args, scored: list, groups: list, table_only: bool) -> None:
    """Print what is told of all files together, and write the files that were asked for."""
    from inference.score_tables import render, to_csv
    from inference.scored_files import Group, file_rows, group_rows, to_json

    groups = [Group(*group) for group in groups]
    rows = group_rows(groups, scored) if groups else file_rows(scored)
    form = output_format(args)
    text = to_json(scored, args.confidence, groups) if form == "json" else render(rows, form)
    if table_only:
        print(render(rows, "text") if args.output else text, end="")
    else:
        for one in scored[1:]:
            if one.differences:
                print_differences(scored[0], one, args.confidence)
    say = note if table_only else print
    if args.output:
        write(args.output, text)
        say(f"written to {args.output}")
    if args.per_image:
        table = [row for one in scored for row in one.rows()]
        write(args.per_image, to_csv(table))
        say(f"scores of {len(table)} captions written to {args.per_image}")


def write(path: str, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


def main(args) -> int:
    for option, path in (("--output", args.output), ("--per_image", args.per_image)):
        if path:
            check_writable(option, path)
    if args.cached_words and args.scoring:
        require_file("--cached_words", args.cached_words)
    groups = read_groups(args.results, [Path(path).stem for path in args.results], args.group or [])
    paths = list(dict.fromkeys(path for _, several in groups for path in several)) if args.group else args.results
    references = read_references(args.ground_truth)
    captions = {path: with_references(path, read_results(path), references) for path in paths}
    references = {image_id: texts for image_id, texts in references.items() if texts}
    training = read_training_captions(args.training, args.dataset_config_file) if args.training else None

    # numpy and pycocoevalcap are imported only now, so that the mistakes above are answered at once
    from captioning.scoring.bootstrap import few_images_note
    from captioning.scoring.metrics import java_note

    scoring = make_scoring(args, references, training)
    if line := java_note(scoring.metrics, args.tokenizer):
        note(line)
    if line := few_images_note(min(map(len, captions.values()))):
        warn(line)
    table_only = bool(args.group) or (args.format is not None and not args.output)
    scored = []
    bar = Bar(len(paths), "score", "file", stream=sys.stderr, drawn=table_only)
    for number, path in enumerate(bar.over(paths)):
        scored.append(one := scoring.of(path, captions[path]))
        if args.confidence is not None:
            scoring.add_confidence(one, scored[0], {"confidence": args.confidence, "resamples": args.resamples})
        if table_only:
            tell_troubles(one, len(references))
            continue
        if len(paths) > 1:
            print(f"\n{path}" if number else path)
        print_scored(one, len(references))
    bar.close()
    report(args, scored, groups if args.group else [], table_only)
    return int(any(not one.scores.values or (args.scoring and one.scores.left_out) for one in scored))


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
