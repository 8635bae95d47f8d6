"""Captions in a JSON file: COCO's, Karpathy's split files, lists of objects, and names with their captions."""

from pathlib import PurePosixPath

from captioning.datasets.base import ID, NAME, TEXT, checked_entries
from captioning.datasets.layouts.layout import Layout
from captioning.datasets.layouts.tables import add_object, columns_of, is_image
from captioning.errors import UserError
from captioning.files import expect, member
from captioning.text.cleaning import id_text


def read_json_layout(path: str, content: object) -> Layout | None:
    """The layout of a JSON value; None where it is none of those that are known. Raises UserError for damaged ones."""
    if isinstance(content, list):
        return _objects(path, content)
    if not isinstance(content, dict):
        return None
    images = content.get("images")
    if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
        return _karpathy(path, content)
    if isinstance(images, list) and isinstance(content.get("annotations", []), list):
        return _coco(path, content)
    if isinstance(content.get("data"), list):
        return _objects(path, content["data"])
    return _names(path, content)


def _coco(path: str, content: dict) -> Layout:
    layout, by_id = Layout(path, "COCO's JSON"), {}
    for place, image in checked_entries(content["images"], path, "images", id=ID, file_name=NAME):
        key = id_text(image["id"])
        if key in by_id:
            raise UserError(f"{path}: {place}: id {image['id']!r} is there already")
        by_id[key] = layout.photo(image["file_name"], place, image.get("split"), image["id"])
    annotations = content.get("annotations", [])
    for place, entry in checked_entries(annotations, path, "annotations", image_id=ID, caption=TEXT):
        photo = by_id.get(id_text(entry["image_id"]))
        if photo is None:
            layout.unused.append(f"{place}: there is no image {entry['image_id']!r}")
        else:
            photo.captions.append((entry["caption"], place))
    return layout


def _karpathy(path: str, content: dict) -> Layout:
    layout = Layout(path, "Karpathy's JSON")
    for index, image in enumerate(member(content, "images", list, path)):
        place = f"images[{index}]"
        split, image_id = member(image, "split", str, path, place), karpathy_id(image, path, place)
        photo = layout.photo(karpathy_name(image, path, place), place, split, image_id)
        for number, sentence in enumerate(member(image, "sentences", list, path, place) if photo else []):
            within = f"{place}.sentences[{number}]"
            photo.captions.append((member(sentence, "raw", str, path, within), within))
    return layout


def karpathy_id(image: dict, source, place: str) -> int | str:
    """The id of an image of a split file: COCO's own where it has one."""
    return member(image, "cocoid" if "cocoid" in image else "imgid", (int, str), source, place)


def karpathy_name(image: dict, source, place: str) -> str:
    """The name of the image's file within the folder of images. Raises UserError for one that leads out of it."""
    folder = expect(image.get("filepath", ""), str, source, f"{place}.filepath")
    name = PurePosixPath(folder, member(image, "filename", str, source, place))
    if name.is_absolute() or ".." in name.parts or "\0" in str(name) or not name.name:
        raise UserError(f"{source}: {place}: {str(name)[:60]!r} is no name of an image within a folder")
    return str(name)


def _objects(path: str, rows: list) -> Layout | None:
    first = rows[0] if rows and isinstance(rows[0], dict) else {}
    if columns_of(first) is None:
        return None
    layout = Layout(path, f"JSON list ({', '.join(columns_of(first)[:2])})")
    for index, row in enumerate(rows):
        add_object(layout, row, f"[{index}]")
    return layout


def _names(path: str, content: dict) -> Layout | None:
    if not content or not all(is_image(name) for name in content):
        return None
    layout = Layout(path, "JSON object from names of images to captions")
    for name, texts in content.items():
        layout.add(name, texts, f"[{name!r}]")
    return layout
