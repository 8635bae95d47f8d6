"""Files of captions that are compared: results with the ground truth, and with the captions of the training set.

references = read_references("captions_val2014.json")      # {"42": ["A dog runs.", ...], ...}
captions = with_references("results.json", read_results("results.json"), references)
"""

import os
import sys
from collections.abc import Mapping

from captioning.datasets.base import ID, TEXT, check_entry, checked_entries
from captioning.datasets.factory import open_dataset
from captioning.datasets.references import read_references
from captioning.errors import UserError, warn
from captioning.files import read_json
from captioning.text.cleaning import clean_text, id_text
from inference.results.formats import csv_rows, format_of, jsonl_entries, read_text


def read_results(path: str) -> dict[str, list[str]]:
    """Image id as text -> its captions, best first, of a results file; several where infer.py wrote `n_best`.

    A file that ends in .jsonl or .csv is read as infer.py writes it, any other as a COCO results list. Raises UserError
    for another file, and where an image stands there twice.
    """
    readers = {"jsonl": _jsonl_entries, "csv": _csv_entries}
    content = readers.get(format_of(path), _json_entries)(path)
    if not content:
        raise UserError(f"results: {path} is empty: there are no captions to score")
    captions, places, unsure = {}, {}, 0
    for place, entry in checked_entries(content, f"results: {path}", "", image_id=ID, caption=TEXT):
        image_id = id_text(entry["image_id"])
        if image_id in places:
            raise UserError(f"results: {path}: image {image_id} has two captions, {places[image_id]} and {place}")
        places[image_id] = place
        if entry.get("unsure") is True:  # infer.py --min_confidence
            unsure += 1
            continue
        captions[image_id] = _captions(entry, path, place)
    if unsure:
        print(f"results: {path}: {unsure} images without a caption that the model was sure of", file=sys.stderr)
    if not captions:
        raise UserError(f"results: {path} has no captions to score: the model was not sure enough of any")
    if isinstance(content[0].get("text"), str):
        print(f"results: {path}: the captions under 'text' are scored", file=sys.stderr)
    return captions


def _json_entries(path: str) -> list:
    try:
        content = read_json(path, "results")
    except UserError as error:
        if format_of(path) == "txt" and os.path.isfile(path):
            raise UserError(f"{error}; captions in text are not read back: write json, jsonl or csv") from error
        raise
    if not isinstance(content, list):
        raise UserError(f'results: {path} must be a list of {{"image_id": ..., "caption": ...}}')
    return content


def _jsonl_entries(path: str) -> list:
    text = read_text(path, "results")
    try:
        return [entry for _, entry in jsonl_entries(text)]
    except ValueError as error:
        raise UserError(f"results: {path}, {error}") from error


def _csv_entries(path: str) -> list[dict]:
    """The rows of an image, one after the other, as one entry with `n_best`."""
    text = read_text(path, "results")
    try:
        head, rows, _ = csv_rows(text)
    except ValueError as error:
        raise UserError(f"results: {path}, {error}") from error
    if not {"image_id", "caption"} <= set(head):
        raise UserError(f"results: {path}: its first row must name the columns image_id and caption")
    entries: list[dict] = []
    for place, row in rows:
        cells = dict(zip(head, row))
        if not {"image_id", "caption"} <= set(cells):
            raise UserError(f"results: {path}, {place} has no caption")
        if cells.get("rank") in (None, "1"):
            entries.append({"image_id": cells["image_id"], "caption": cells["caption"], "n_best": []})
        if not entries or entries[-1]["image_id"] != cells["image_id"]:
            raise UserError(f"results: {path}, {place}: rank 1 of the image is missing")
        entries[-1]["n_best"].append({"caption": cells["caption"]})
    return entries


def _captions(entry: dict, path: str, place: str) -> list[str]:
    """The captions of an entry of results, of which the first is scored."""
    several = entry.get("n_best")
    if not isinstance(several, list):
        return [_caption(entry)]
    for number, other in enumerate(several):
        check_entry(other, f"results: {path}", f"{place}: n_best[{number}]", caption=TEXT)
    return [_caption(entry), *map(_caption, several[1:])]


def _caption(entry: dict) -> str:
    plain = entry.get("text")  # infer.py --probabilities: "caption" has the words one by one
    return clean_text(plain if isinstance(plain, str) else entry["caption"])


def with_references(path: str, captions: Mapping, references: Mapping) -> dict[str, list[str]]:
    """The captions of images that have references; the others are counted. Raises UserError for unknown ids."""
    unknown = [image_id for image_id in captions if image_id not in references]
    if unknown:
        raise UserError(
            f"results: {len(unknown)} of {len(captions)} image ids are not in the ground truth, the first is "
            f"{unknown[0]}; is --ground_truth the file of these images?"
        )
    known = {image_id: texts for image_id, texts in captions.items() if references[image_id]}
    if not known:
        raise UserError(f"results: {path}: none of its {len(captions)} images has a reference in the ground truth")
    if others := len(captions) - len(known):
        warn(f"results: {path}: {others} captions of images without references are not scored")
    return known


def read_training_captions(name: str, config_file: str | None = None) -> list[str]:
    """All captions of a caption file, or of a dataset of datasets.conf. Raises UserError where there are none."""
    if os.path.exists(name) or name.lower().endswith(".json"):
        return [text for texts in read_references(name, "--training").values() for text in texts]
    captions = [text for item in open_dataset(name, config_file, option="--training").items for text in item.captions]
    if not captions:
        raise UserError(f"--training: the dataset {name} has no captions")
    return captions
