#!/usr/bin/env python3
"""Score a results file against reference captions.

    ./score.py results.json --ground_truth annotations/captions_val2014.json
    ./score.py results.json --ground_truth captions.json --scoring bleu,cider --tokenizer python --output scores.json
    ./score.py results.json --ground_truth captions.json --scoring ciderd --cached_words coco-train-words.p
    ./score.py results/*.json --ground_truth captions.json --output scores.csv    # a row for each file
    ./score.py results.json --ground_truth captions.json --per_image images.csv   # a row for each image

results.json is the COCO results list that `infer.py --output_format json` writes:
[{"image_id": 42, "caption": "a dog runs on the grass"}, ...]. The ground truth is a COCO caption file, or Visual
Genome's list of paragraphs; blank references are left out. Images of the ground truth without a result, and results of
images without a reference, are counted and not scored. A metric that cannot run (METEOR and SPICE without Java) is
named with the reason; the exit status is 1 if --scoring asked for it.
"""

import sys
from argparse import Namespace

from captioning.command_line import Parser

DEFAULT_SCORING = "bleu,meteor,rouge,cider"


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULTS.json", help="captions to score, as infer.py writes them")
    add("--ground_truth", metavar="FILE", required=True, help="reference captions: COCO's or Visual Genome's file")
    add("--scoring", metavar="NAMES", help="bleu, meteor, rouge, cider, ciderd (with --cached_words), spice; METEOR, "
        f"SPICE need Java (default: {DEFAULT_SCORING})")  # fmt: skip
    add("--tokenizer", choices=("auto", "ptb", "python"), default="auto", help="ptb: Stanford's, which needs Java; "
        "python: the same tokens without Java; auto: ptb if there is Java (default: auto)")  # fmt: skip
    add("--cached_words", metavar="FILE", help="ciderd: document frequencies (of build_cached_words.py)")
    add("--output", metavar="FILE", help="write the scores too, to .csv (a row for each results file) or else as JSON")
    add("--per_image", metavar="FILE.csv", help="write the scores of every caption to this file")
    args = parser.parse_args(argv)
    if args.per_image and not args.per_image.lower().endswith(".csv"):
        parser.error(f"--per_image {args.per_image}: name a .csv file")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports of packages, so that --help and mistakes answer at once

import json
from functools import partial
from pathlib import Path

from captioning.datasets.base import ID, TEXT, checked_entries
from captioning.datasets.references import read_references
from captioning.errors import UserError, run, warn
from captioning.files import atomic_write, check_writable, read_json, require_file
from captioning.tables import csv_lines
from captioning.text.cleaning import clean_text, id_text


def read_results(path: str) -> dict[str, str]:
    """Image id as text -> caption, of a COCO results list."""
    content = read_json(path, "results")
    if not isinstance(content, list):
        raise UserError(f'results: {path} must be a list of {{"image_id": ..., "caption": ...}}')
    if not content:
        raise UserError(f"results: {path} is empty: there are no captions to score")
    captions, places = {}, {}
    for place, entry in checked_entries(content, f"results: {path}", "", image_id=ID, caption=TEXT):
        image_id = id_text(entry["image_id"])
        if image_id in places:
            raise UserError(f"results: {path}: image {image_id} has two captions, {places[image_id]} and {place}")
        places[image_id] = place
        plain = entry.get("text")  # infer.py --probabilities: "caption" has the words one by one
        captions[image_id] = clean_text(plain if isinstance(plain, str) else entry["caption"])
    if isinstance(content[0].get("text"), str):
        print(f"results: {path}: the captions under 'text' are scored", file=sys.stderr)
    return captions


def with_references(path: str, captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, str]:
    """The captions of images that have references; the others are counted. Raises UserError for unknown ids."""
    unknown = [image_id for image_id in captions if image_id not in references]
    if unknown:
        raise UserError(
            f"results: {len(unknown)} of {len(captions)} image ids are not in the ground truth, the first is "
            f"{unknown[0]}; is --ground_truth the file of these images?"
        )
    known = {image_id: caption for image_id, caption in captions.items() if references[image_id]}
    if not known:
        raise UserError(f"results: {path}: none of its {len(captions)} images has a reference in the ground truth")
    if others := len(captions) - len(known):
        warn(f"results: {path}: {others} captions of images without references are not scored")
    return known


def score_file(path: str, captions: dict, references: dict, score) -> tuple[dict, list[dict]]:
    """A report of plain types, and a row for each caption; the scores are printed.

    score(captions, references) gives the Scores of `captions`, which were read from `path`.
    """
    from captioning.scoring.metrics import caption_statistics

    scores = score(captions, references)
    statistics = caption_statistics(captions.values())
    per_image = sum(len(references[image_id]) for image_id in captions) / len(captions)
    missing = len(references.keys() - captions.keys())
    print(f"{len(captions)} captions, {per_image:.1f} references each, tokenizer {scores.tokenizer}")
    if missing:
        print(f"{missing} of {len(references)} images of the ground truth have no result and are not scored")
    print("\n".join(scores.lines()))
    print(
        f"distinct captions {statistics['distinct']:.1%}, mean length {statistics['mean_length']:.1f} words, "
        f"<unk> {statistics['unk_share']:.1%} of the words"
    )
    report = {
        "results": path,
        "scores": scores.values,
        "left_out": scores.left_out,
        "tokenizer": scores.tokenizer,
        "images": len(captions),
        "images_without_result": missing,
        "statistics": statistics,
    }
    rows = [{"results": path, "image_id": image_id, "caption": text} for image_id, text in captions.items()]
    for name, values in scores.per_image.items():
        for row, value in zip(rows, values):
            row[name] = value
    return report, rows


def write_reports(path: str, reports: list[dict]) -> None:
    """CSV with a row for each results file, or JSON: the report, a list of them where there are several."""
    if not path.lower().endswith(".csv"):
        with atomic_write(path) as file:
            file.write(json.dumps(reports[0] if len(reports) == 1 else reports, indent=2) + "\n")
        return
    names = [Path(report["results"]).stem for report in reports]
    if len(set(names)) < len(names):  # they do not tell the files apart
        names = [report["results"] for report in reports]
    figures = [{**report["scores"], "images": report["images"], **report["statistics"]} for report in reports]
    write_csv(path, [{"name": name, **values} for name, values in zip(names, figures)])


def write_csv(path: str, rows: list[dict]) -> None:
    """A table of all columns that any row has, in order of appearance; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as file:
        file.write(csv_lines([columns, *([row.get(name, "") for name in columns] for row in rows)]))


def main(args) -> int:
    for option, path in (("--output", args.output), ("--per_image", args.per_image)):
        if path:
            check_writable(option, path)
    if args.cached_words and args.scoring:
        require_file("--cached_words", args.cached_words)
    references = read_references(args.ground_truth)
    captions = {path: with_references(path, read_results(path), references) for path in args.results}
    references = {image_id: texts for image_id, texts in references.items() if texts}

    # numpy and pycocoevalcap are imported only now, so that the mistakes above are answered at once
    from captioning.scoring.document_frequencies import CachedWords
    from captioning.scoring.metrics import java_note, parse_metrics, score_captions

    metrics = parse_metrics(args.scoring or DEFAULT_SCORING)
    if args.cached_words and "ciderd" not in metrics:
        raise UserError("--cached_words is for ciderd, which --scoring does not name")
    table = CachedWords.load(args.cached_words).to_dict() if args.cached_words else None
    score = partial(score_captions, metrics=metrics, tokenizer=args.tokenizer, document_frequencies=table)
    if note := java_note(metrics, args.tokenizer):
        print(note, file=sys.stderr)
    reports, rows, failed = [], [], False
    for number, path in enumerate(args.results):
        if len(args.results) > 1:
            print(f"\n{path}" if number else path)
        report, captions_scored = score_file(path, captions[path], references, score)
        reports.append(report)
        rows += captions_scored
        failed |= not report["scores"] or bool(args.scoring and report["left_out"])
    if args.output:
        write_reports(args.output, reports)
        print(f"written to {args.output}")
    if args.per_image:
        write_csv(args.per_image, rows)
        print(f"scores of {len(rows)} captions written to {args.per_image}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
