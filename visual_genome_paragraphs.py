"""Visual Genome's paragraphs (Krause et al. 2017, "IM2P"): several sentences about an image; no torch."""

from common import UserError, read_json
from dataset_config import DatasetParams
from dataset_items import ID, TEXT, CaptionDataset, ImageItem, checked_entries, some, warn
from paragraph_text import spaced_paragraph


class VisualGenomeIM2PDataset(CaptionDataset):
    """A JSON list of `{"image_id": ID, "paragraph": TEXT}`. The image is ID.jpg, which is its key in feature files.

    subset: a JSON list of the ids that belong to the split. An image that is there twice has two captions. Periods
    become words of their own, since tokenisers set only the last one apart.
    Raises UserError naming the file, and the place in it, for anything malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path = self.require_caption_path()
        chosen = None if params.subset is None else self._subset(params.path(params.subset))
        by_id: dict[str, ImageItem] = {}
        listed, blank = set(), []
        data = read_json(path, f"--dataset {self.name}")
        for _, entry in checked_entries(data, path, "", image_id=ID, paragraph=TEXT):
            image_id = entry["image_id"]
            listed.add(str(image_id))
            if chosen is not None and str(image_id) not in chosen:
                continue
            name = f"{image_id}.jpg"
            item = by_id.setdefault(str(image_id), ImageItem(image_id, name, self.image_path(name)))
            text = spaced_paragraph(entry["paragraph"])
            if text:
                item.captions.append(text)
            else:
                blank.append(image_id)
        self.items = list(by_id.values())
        if blank:
            warn(f"{path}: {len(blank)} blank paragraphs left out, of images {some(blank)}")
        if chosen is not None and (absent := [name for name in chosen if name not in listed]):
            warn(f"{path}: {len(absent)} images of {params.subset} have no paragraph: {some(absent)}")
        if not self.items:
            raise UserError(f"--dataset {self.name}: {path} has no paragraphs" + (" of its subset" if chosen else ""))

    def _subset(self, path: str) -> dict[str, None]:
        """The ids of the split, in order."""
        ids = read_json(path, f"--dataset {self.name}: subset")
        if not isinstance(ids, list):
            raise UserError(f"{path} is not a list of image ids")
        for i, image_id in enumerate(ids):
            if type(image_id) not in ID:
                raise UserError(f"{path}: [{i}] is no image id but {str(image_id)[:40]!r}")
        return dict.fromkeys(map(str, ids))
