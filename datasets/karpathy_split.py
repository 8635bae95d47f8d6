#!/usr/bin/env python3
"""Convert Karpathy's split files (dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json) to COCO's format.

    python datasets/karpathy_split.py dataset_flickr8k.json annotations/

Writes annotations/captions_train.json, captions_val.json and captions_test.json, for COCO captions_restval.json too
(the usual training set is train + restval). The dataset class CocoDataset reads these files.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.command_line import Parser
from captioning.errors import UserError, run
from captioning.files import atomic_write, read_json


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("split_file", type=Path, help="the JSON file of the split")
    parser.add_argument("output_dir", type=Path, help="folder for the annotations")
    return parser.parse_args(argv)


def convert(contents: dict, source) -> dict[str, dict]:
    """COCO annotations by the name of the split. Raises UserError, naming `source` and the place of a mistake."""
    splits: dict[str, dict] = {}
    if not isinstance(contents, dict) or not isinstance(contents.get("images"), list):
        raise UserError(f"{source}: no list under `images`: not a split file of Karpathy's")
    for index, image in enumerate(contents["images"]):
        try:
            split = splits.setdefault(image["split"], {"images": [], "annotations": []})
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            image_id = image.get("cocoid", image["imgid"])
            split["images"].append({"id": image_id, "file_name": name})
            for sentence in image["sentences"]:
                entry = {"id": sentence["sentid"], "image_id": image_id, "caption": sentence["raw"]}
                split["annotations"].append(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{source}: images[{index}] lacks {error}: not a split file of Karpathy's") from error
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
