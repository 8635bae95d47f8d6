#!/usr/bin/env python3
"""Convert Karpathy's split files (dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json) to COCO's format.

    python datasets/karpathy_split.py dataset_flickr8k.json annotations/

Writes annotations/captions_train.json, captions_val.json and captions_test.json, for COCO captions_restval.json too
(the usual training set is train + restval). The dataset class CocoDataset reads these files.
"""

import json
import re
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.command_line import Parser
from captioning.datasets.layouts.json_files import karpathy_id, karpathy_name
from captioning.errors import UserError, run
from captioning.files import atomic_write, member, read_json


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("split_file", type=Path, help="the JSON file of the split")
    parser.add_argument("output_dir", type=Path, help="folder for the annotations")
    return parser.parse_args(argv)


def convert(contents: dict, source) -> dict[str, dict]:
    """COCO annotations by the name of the split. Raises UserError, naming `source` and the place of a mistake."""
    splits: dict[str, dict] = {}
    for index, image in enumerate(member(contents, "images", list, source)):
        place = f"images[{index}]"
        name = member(image, "split", str, source, place)
        if not re.fullmatch(r"[\w-]{1,40}", name):  # it becomes part of the name of a file
            raise UserError(f"{source}: {place}.split {name[:60]!r} is no name of a split")
        split = splits.setdefault(name, {"images": [], "annotations": []})
        image_id = karpathy_id(image, source, place)
        split["images"].append({"id": image_id, "file_name": karpathy_name(image, source, place)})
        for number, sentence in enumerate(member(image, "sentences", list, source, place)):
            within = f"{place}.sentences[{number}]"
            entry = {"id": member(sentence, "sentid", (int, str), source, within), "image_id": image_id}
            split["annotations"].append({**entry, "caption": member(sentence, "raw", str, source, within)})
    return splits


def main(args) -> int:
    splits = convert(read_json(args.split_file, "split file"), args.split_file)
    for name, contents in splits.items():
        path = args.output_dir / f"captions_{name}.json"
        with atomic_write(path) as file:
            json.dump(contents, file)
        print(f"{path}: {len(contents['images']):,} images, {len(contents['annotations']):,} captions")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
