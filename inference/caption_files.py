"""Files of captions that are compared: results, ground truth, and the captions of the training set.

references = read_ground_truth("captions_val2014.json")      # {42: ["A dog runs.", ...], ...}
captions = match_images(read_results("results.json"), references)
"""

import os
from collections.abc import Mapping

from captioning.datasets.base import ID, TEXT, check_entry, checked_entries
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from captioning.files import read_json


def read_ground_truth(path: str, option: str = "--ground_truth") -> dict:
    """image id -> list of captions, of a COCO caption file or Visual Genome's file of paragraphs.

    option: what messages name. Raises UserError for another file.
    """
    content = read_json(path, option)
    entries, place, text = content, "", "paragraph"  # Visual Genome's paragraphs
    if not isinstance(content, list) or not content:
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise UserError(f"{option}: {path} is no COCO caption file: it has no list 'annotations'")
        entries, place, text = content["annotations"], "annotations", "caption"
    references = {}
    for _, entry in checked_entries(entries, f"{option}: {path}", place, image_id=ID, **{text: TEXT}):
        references.setdefault(entry["image_id"], []).append(entry[text])
    if not references:
        raise UserError(f"{option}: {path} has no captions")
    return references


def read_results(path: str) -> dict:
    """image id -> its captions, best first, of a COCO results list; several where infer.py wrote them (`n_best`).

    Raises UserError for another file, and where an image stands there twice.
    """
    content = read_json(path, "results")
    if not isinstance(content, list):
        raise UserError(f'results: {path} must be a list of {{"image_id": ..., "caption": ...}}')
    if not content:
        raise UserError(f"results: {path} is empty: there are no captions to score")
    captions, places = {}, {}
    for place, entry in checked_entries(content, f"results: {path}", "", image_id=ID, caption=TEXT):
        image_id = entry["image_id"]
        if str(image_id) in places:
            raise UserError(f"results: {path}: image {image_id} has two captions, {places[str(image_id)]} and {place}")
        places[str(image_id)] = place
        captions[image_id] = _several(entry, path, place)
    return captions


def _several(entry: dict, path: str, place: str) -> list[str]:
    """The captions of an entry of results, of which `caption` is scored."""
    several = entry.get("n_best")
    if not isinstance(several, list) or len(several) < 2:
        return [entry["caption"]]
    for number, other in enumerate(several):
        check_entry(other, f"results: {path}", f"{place}: n_best[{number}]", caption=TEXT)
    return [entry["caption"], *(other["caption"] for other in several[1:])]


def match_images(captions: Mapping, references: Mapping) -> dict:
    """`captions` under the ids of `references`: "42" and 42 are the same image. Raises UserError for unknown ids."""
    by_text = {str(image_id): image_id for image_id in references}
    unknown = [image_id for image_id in captions if str(image_id) not in by_text]
    if unknown:
        raise UserError(
            f"results: {len(unknown)} of {len(captions)} image ids are not in the ground truth, the first is "
            f"{unknown[0]!r}; is --ground_truth the file of these images?"
        )
    return {by_text[str(image_id)]: caption for image_id, caption in captions.items()}


def read_training_captions(name: str, config_file: str | None = None) -> list[str]:
    """All captions of a caption file, or of a dataset of datasets.conf. Raises UserError where there are none."""
    if os.path.exists(name) or name.lower().endswith(".json"):
        return [text for texts in read_ground_truth(name, "--training").values() for text in texts]
    captions = [text for item in open_dataset(name, config_file).items for text in item.captions]
    if not captions:
        raise UserError(f"--training: the dataset {name} has no captions")
    return captions
