"""COCO's captions: images and annotations in one JSON file."""

from captioning.datasets.base import ID, TEXT, CaptionDataset, ImageItem, checked_entries
from captioning.datasets.config import DatasetParams
from captioning.errors import UserError, warn


class CocoDataset(CaptionDataset):
    """COCO's JSON: `images[].id/file_name` and `annotations[].image_id/caption`. A file without annotations is fine.

    Raises UserError naming the file, and the place in it, for anything malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path, data = self.read_captions_file("images", "COCO's")
        if params.subset:
            warn(f"[{self.name}] sets subset = {params.subset}, which CocoDataset does not know")
        by_id = {}
        for place, image in checked_entries(data["images"], path, "images", id=ID, file_name=TEXT):
            if not image["file_name"]:
                raise UserError(f"{path}: {place}: file_name is empty")
            if image["id"] in by_id:
                raise UserError(f"{path}: {place}: id {image['id']!r} is there already")
            by_id[image["id"]] = ImageItem(image["id"], image["file_name"], self.image_path(image["file_name"]))
        self.items = list(by_id.values())
        entries = checked_entries(data.get("annotations", []), path, "annotations", image_id=ID, caption=TEXT)
        self.add_captions(path, by_id, ((entry["image_id"], entry["caption"]) for _, entry in entries))
