#!/usr/bin/env python3
"""Convert Karpathy's split files (dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json) to COCO's format.

    python datasets/karpathy_split.py dataset_flickr8k.json annotations/

Writes annotations/captions_train.json, captions_val.json and captions_test.json, for COCO captions_restval.json too
(the usual training set is train + restval). The dataset class CocoDataset reads these files.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning.datasets.base import ID, NAME, TEXT, check_entry, checked_entries
from captioning.errors import UserError, run
from captioning.files import atomic_write, read_json


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split_file", type=Path, help="the JSON file of the split")
    parser.add_argument("output_dir", type=Path, help="folder for the annotations")
    return parser.parse_args(argv)


def convert(contents: dict, source) -> dict[str, dict]:
    """COCO annotations by the name of the split. Raises UserError, naming `source` and the place of a mistake."""
    splits: dict[str, dict] = {}
    if not isinstance(contents, dict) or not isinstance(contents.get("images"), list):
        raise UserError(f"{source}: no list under `images`: not a split file of Karpathy's")
    for place, image in checked_entries(contents["images"], source, "images", split=NAME, filename=NAME):
        number = "cocoid" if "cocoid" in image else "imgid"
        optional = {"filepath": TEXT} if image.get("filepath") is not None else {}
        check_entry(image, source, place, **{number: ID}, **optional)
        if "/" in image["split"]:
            raise UserError(f"{source}: {place}: split {image['split']!r} cannot be part of the name of a file")
        split = splits.setdefault(image["split"], {"images": [], "annotations": []})
        name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
        split["images"].append({"id": image[number], "file_name": name})
        sentences = checked_entries(image.get("sentences"), source, f"{place}.sentences", sentid=ID, raw=TEXT)
        for _, sentence in sentences:
            entry = {"id": sentence["sentid"], "image_id": image[number], "caption": sentence["raw"]}
            split["annotations"].append(entry)
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
