"""A PicSOM database: objects by their labels, classes of objects, captions in a text file."""

import os

from captioning.datasets.base import CaptionDataset, ImageFinder, ImageItem, add_captions
from captioning.datasets.config import DatasetParams
from captioning.errors import UserError, first_few, warn
from captioning.features.picsom_labels import read_captions, read_class, read_label_map, read_labels


class PicSOMDataset(CaptionDataset):
    """The objects of class `subset` (without it all), in the order of labels.txt, with the captions of `caption_path`.

    The database is the folder `root_dir`, or `picsom_root`/databases/NAME for a section [picsom:NAME:...]; in it lie
    labels.txt, classes/ and the files that caption_path, features_path and label_map name. Keys of feature files are
    the labels; a PicSOM .bin that has no names of its own is asked by the object's index. An object without features
    takes those of the labels that `label_map` gives for it, the first that has any. Images are LABEL.jpg (or another
    extension) in image_dir, which is not needed for features.
    Raises UserError naming the file and line of whatever is malformed.
    """

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        root = self._root()
        labels_path = os.path.join(root, "labels.txt")
        self.labels = read_labels(labels_path)
        chosen = list(self.labels)
        if params.subset:
            folder = os.path.join(root, "classes")
            if not os.path.isfile(os.path.join(folder, params.subset)):
                raise UserError(f"--dataset {self.name}: subset: no such class file: {folder}/{params.subset}")
            wanted = dict.fromkeys(read_class(folder, params.subset))
            unknown = [label for label in wanted if label not in self.labels]
            if unknown:
                what = f"{len(unknown)} of its {len(wanted)} objects are not in {labels_path}"
                warn(f"{folder}/{params.subset}: {what} and left out: {first_few(unknown)}")
            chosen = [label for label in chosen if label in wanted]
        name = params.extra.get("label_map")
        others = read_label_map(params.path(name)) if name else {}
        finder = ImageFinder(self.image_dir)
        by_label: dict[str, ImageItem | None] = dict.fromkeys(self.labels)
        for label in chosen:
            other = tuple(others.get(label, ()))
            by_label[label] = ImageItem(label, label, finder.path(label, *other), other_keys=other)
        if self.caption_path:
            lines = read_captions(self.caption_path)
            texts = ((label, text.strip()) for _, label, several in lines for text in several)
            add_captions(self.caption_path, by_label, texts, "objects")
        self.items = [by_label[label] for label in chosen]

    def _root(self) -> str:
        """The folder of the database."""
        params = self.params
        names = params.name.split(":")
        places = [params.root_dir] if params.root_dir else []
        if params.extra.get("picsom_root") and len(names) > 1:
            places.append(os.path.join(params.path(params.extra["picsom_root"]), "databases", names[1]))
        for place in places:
            if os.path.isfile(os.path.join(place, "labels.txt")):
                return place
        if not places:
            raise UserError(f"--dataset {self.name}: set root_dir, the database's folder, in {params.config_path}")
        raise UserError(f"--dataset {self.name}: no labels.txt in {' or '.join(places)}")
