"""Reference captions for scores, read by the rules of the dataset classes, so that all scores are of the same texts."""

from captioning.datasets.caption_file import cleaned, photos_of_split
from captioning.datasets.coco import captioned_images
from captioning.datasets.layouts.json_files import read_json_layout
from captioning.datasets.layouts.reading import read_layout
from captioning.datasets.names import as_path
from captioning.datasets.visual_genome import described_images
from captioning.errors import UserError
from captioning.files import read_json
from captioning.text.cleaning import id_text


def read_references(path, option: str = "--ground_truth") -> dict[str, list[str]]:
    """Image id as text -> captions, of COCO's captions, Visual Genome's paragraphs, or any other PATH[:SPLIT].

    An image may have none. A file of COCO's form may do without its list of images. Raises UserError naming `option`,
    the file and the place of whatever is malformed, and for a file without captions.
    """
    place, split = as_path(str(path)) or (str(path), None)
    pairs = _of_json(place, option) if place.lower().endswith(".json") and split is None else None
    if pairs is None:
        layout = read_layout(place, option)
        photos = photos_of_split(layout, split, f"{option} {path}")[0]
        pairs = [(photo.image_id, texts) for photo, texts in cleaned(photos, layout.path)]
    if not any(texts for _, texts in pairs):
        raise UserError(f"{option}: {path} has no captions")
    return {id_text(image_id): texts for image_id, texts in pairs}


def _of_json(path: str, option: str) -> list[tuple[int | str, list[str]]] | None:
    """Ids with captions of a JSON file of COCO's form or Visual Genome's; None for one of another known form."""
    content, named = read_json(path, option), f"{option}: {path}"
    if isinstance(content, list) and content and isinstance(content[0], dict) and "paragraph" in content[0]:
        items = described_images(content, named)
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        items = captioned_images(content, named)
    elif read_json_layout(path, content) is not None:
        return None
    else:
        raise UserError(f"{named} is no COCO caption file: it has no list 'annotations'; nor is it another of images")
    return [(item.image_id, item.captions) for item in items]
