#!/usr/bin/env python3
"""Look through images and captions once, and list what is wrong with them by row.

    ./check_data.py --images photos/ --captions captions.csv
    ./check_data.py --dataset captions.csv --json problems.json
    ./check_data.py --dataset coco:train2014 --validate coco:val2014      # is an image in both?

Problems are entries that cannot be used, missing and broken images, empty captions, captions that an image has twice,
images that are there twice (the same file, or nearly the same picture), and images in two splits. The exit status is 1
where there is one. Worth a look, but no problem, are images without captions, captions of odd lengths and words that
few captions have. Nothing is changed.
"""

import sys
from argparse import Namespace

from captioning.command_line import Parser


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--dataset", metavar="NAME", help="sections of datasets.conf, or PATH[:SPLIT] of captions; several joined by +")
    add("--captions", metavar="PATH", help="a file or folder of captions, as --dataset PATH")
    add("--images", metavar="DIR", help="folder or zip file of the images (default: looked for beside the captions)")
    add("--dataset_config_file", metavar="FILE", help="file of the datasets (default: datasets/datasets.conf)")
    add("--validate", metavar="NAME", help="validation data, like --dataset: no image may be in both")
    add("--tokenizer", default="treebank", choices=("treebank", "words", "whitespace", "char", "regex"),
        help="how captions are split into words")  # fmt: skip
    add("--rare", default=1, metavar="N", help="list words that at most N captions have; 0: none")
    add("--show", default=5, metavar="N", help="name up to N things of each kind on the terminal")
    add("--json", metavar="FILE", help="write everything that was found to this file")
    add("--num_workers", type=int, metavar="N", help="processes that read images (default: all cores)")
    args = parser.parse_args(argv)
    if bool(args.dataset) == bool(args.captions):
        parser.error("name either --dataset or --captions")
    args.dataset = args.dataset or args.captions
    parser.at_least(0, args, "rare", "show", "num_workers")
    parser.at_most(1000, args, "num_workers")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once

import json

from captioning.cores import core_count
from captioning.datasets.checks import (
    NOTES,
    PROBLEMS,
    CheckedPhoto,
    Findings,
    check_captions,
    check_images,
    checked_photos,
)
from captioning.errors import run, shown, warn
from captioning.files import atomic_write, check_writable
from captioning.images.fingerprint import Fingerprint, fingerprint
from captioning.images.image_file import image_exists
from captioning.processes import in_processes
from captioning.progress import Bar
from captioning.text.tokenizers import one_token_advice


def fingerprints(photos: list[CheckedPhoto], workers: int) -> dict[str, Fingerprint]:
    """The Fingerprint of each image file that is there, by its path."""
    paths = [path for path in dict.fromkeys(photo.path for photo in photos) if path and image_exists(path)]
    bar = Bar(len(paths), "check", "image", stream=sys.stderr)
    with in_processes(fingerprint, paths, workers) as prints, bar:
        return dict(zip(paths, bar.over(prints)))


def report(findings: Findings, show: int) -> list[str]:
    """The lines for the terminal: how many there are of each kind, and the first few of them."""
    lines = []
    for title, names in (("problems", PROBLEMS), ("worth a look", NOTES)):
        lines.append(title)
        for name in names:
            entries = findings.found[name]
            lines.append(f"  {name:<24}{len(entries):>8,}")
            lines += [f"    {shown(line_of(entry))}" for entry in entries[:show]]
            if len(entries) > show > 0:
                lines.append(f"    and {len(entries) - show:,} more")
    return lines


def line_of(entry: dict[str, str]) -> str:
    """What was found, in a line: "row 4: x.jpg: the same file as y.jpg (row 2)"."""
    parts = dict.fromkeys(part for part in (entry["place"], entry["image"], entry["text"]) if part)
    return ": ".join(parts)


def write_json(path: str, dataset: str, photos: list[CheckedPhoto], findings: Findings) -> None:
    content = {"dataset": dataset, "images": len(photos), **findings.figures}
    for title, names in (("problems", PROBLEMS), ("notes", NOTES)):
        content[title] = {name.replace(" ", "_"): findings.found[name] for name in names}
    with atomic_write(path) as file:
        json.dump(content, file, ensure_ascii=False, indent=1)


def main(args) -> int:
    if args.json:
        check_writable("--json", args.json)
    findings = Findings()
    option = "--captions" if args.captions else "--dataset"
    photos = checked_photos(args.dataset, args.dataset_config_file, args.images, findings, option)
    if args.validate:
        photos += checked_photos(args.validate, args.dataset_config_file, args.images, findings, "--validate")
    check_captions(photos, findings, args.tokenizer, args.rare)
    workers = core_count() if args.num_workers is None else args.num_workers
    check_images(photos, fingerprints(photos, workers), findings)
    figures = findings.figures
    print(f"{args.dataset}: {len(photos):,} images, {figures['captions']:,} captions, {figures['words']:,} words")
    print("\n".join(report(findings, args.show)))
    if line := one_token_advice(figures["tokens"], figures["captions"], args.tokenizer):
        warn(line)
    if args.json:
        write_json(args.json, args.dataset, photos, findings)
        print(f"written to {args.json}")
    print(f"{findings.problems:,} problems" if findings.problems else "no problems")
    return int(findings.problems > 0)


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
