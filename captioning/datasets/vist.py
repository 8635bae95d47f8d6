"""VIST, the visual storytelling data set (Huang et al. 2016): a story of several photos is one item."""

from captioning.datasets.base import ID, TEXT, CaptionCleaner, CaptionDataset, ImageFinder, ImageItem, check_entry
from captioning.datasets.config import DatasetParams
from captioning.errors import UserError
from captioning.text.cleaning import id_text


class VistDataset(CaptionDataset):
    """VIST's JSON: `annotations` is a list of one-element lists with `story_id, photo_flickr_id, text`.

    An item is a story: its id is the story_id, its photos those of its sentences, its caption the sentences joined by
    blanks. The model sees the mean of the photos' features. Photos are ID.jpg (or .png, ...) in image_dir, their key in
    feature files is the photo_flickr_id.
    Raises UserError naming the file and the place of whatever is malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path, data = self.read_captions_file("annotations", "VIST's")
        finder = ImageFinder(self.image_dir)
        cleaner = CaptionCleaner(path, "sentences")
        stories: dict[str, tuple[int | str, list[ImageItem], list[str]]] = {}
        for i, several in enumerate(data["annotations"]):
            if not isinstance(several, list) or len(several) != 1:
                raise UserError(f"{path}: annotations[{i}] is not a list of one object but {str(several)[:40]!r}")
            entry, place = several[0], f"annotations[{i}][0]"
            check_entry(entry, path, place, story_id=ID, photo_flickr_id=ID, text=TEXT)
            key = str(entry["photo_flickr_id"])
            story = entry["story_id"]
            _, photos, texts = stories.setdefault(id_text(story), (story, [], []))
            photos.append(ImageItem(key, key, finder.path(key)))
            texts.append(cleaner.clean(entry["text"]).strip())
        cleaner.report()
        for story, photos, texts in stories.values():
            text = " ".join(filter(None, texts))
            self.items.append(ImageItem(story, str(story), photos[0].path, [text] if text else [], photos=photos))
