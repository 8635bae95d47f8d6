"""Reference captions for scores, read by the rules of the dataset classes, so that all scores are of the same texts."""

from captioning.datasets.coco import captioned_images
from captioning.datasets.visual_genome import described_images
from captioning.errors import UserError
from captioning.files import read_json
from captioning.text.cleaning import id_text


def read_references(path, option: str = "--ground_truth") -> dict[str, list[str]]:
    """Image id as text -> captions, of COCO's captions or Visual Genome's paragraphs; an image may have none.

    A file of COCO's form may do without its list of images. Raises UserError naming `option`, the file and the place
    of whatever is malformed, and for a file without captions.
    """
    content, named = read_json(path, option), f"{option}: {path}"
    if isinstance(content, list) and content:
        items = described_images(content, named)
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        items = captioned_images(content, named)
    else:
        raise UserError(f"{named} is no COCO caption file: it has no list 'annotations'")
    if not any(item.captions for item in items):
        raise UserError(f"{named} has no captions")
    return {id_text(item.image_id): item.captions for item in items}
