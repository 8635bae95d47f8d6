"""Videos that stand as one frame each: MSR-VTT and TRECVID's video-to-text task."""

import os
import re

from captioning.datasets.base import TEXT, CaptionDataset, ImageItem, add_captions, checked_entries
from captioning.datasets.config import DatasetParams
from captioning.errors import UserError, first_few, warn
from captioning.images.listing import list_images


class MSRVTTDataset(CaptionDataset):
    """MSR-VTT's JSON: `videos[].video_id/split` and `sentences[].video_id/caption`.

    The videos of the split that `subset` or `split` names: train (the default), validate, test, or all. The id of
    `video12` is 12, its key in feature files "12", its frame `0012:kf1.jpeg` in image_dir.
    Raises UserError naming the file and the place of whatever is malformed, and for a split that is not there.
    """

    keys_are_rows = True

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        path, data = self.read_captions_file("videos", "MSR-VTT's")
        split = params.subset or params.extra.get("split") or "train"
        by_id: dict[str, ImageItem | None] = {}
        splits: dict[str, None] = {}
        for place, video in checked_entries(data["videos"], path, "videos", video_id=TEXT, split=TEXT):
            name = video["video_id"]
            digits = name.removeprefix("video")
            if digits == name or not digits.isdecimal() or len(digits) > 18:
                raise UserError(f"{path}: {place}: video_id {name[:60]!r} is not of the form 'video12'")
            if name in by_id:
                raise UserError(f"{path}: {place}: {name} is there already")
            splits[video["split"]] = None
            number = int(digits)
            wanted = split in ("all", video["split"])
            by_id[name] = ImageItem(number, str(number), self.image_path(f"{number:04}:kf1.jpeg")) if wanted else None
        if not any(by_id.values()):
            known = ", ".join(splits) or "none"
            raise UserError(f"--dataset {self.name}: {path} has no videos of split {split!r}; it has: {known}")
        entries = checked_entries(data.get("sentences", []), path, "sentences", video_id=TEXT, caption=TEXT)
        add_captions(path, by_id, ((entry["video_id"], entry["caption"]) for _, entry in entries), "videos")
        self.items = [item for item in by_id.values() if item is not None]


class TRECVID2018Dataset(CaptionDataset):
    """TRECVID's frames, `ID:N.jpeg` in image_dir, in the order of their numbers, without captions.

    The id is a number, its text the key in feature files. Of several frames of a video the first stands for it; files
    of other names are left out; both are said in one warning.
    """

    keys_are_rows = True

    def __init__(self, params: DatasetParams):
        super().__init__(params)
        if not self.image_dir:
            where = f"set image_dir in {params.config_path}"
            raise UserError(f"--dataset {self.name}: {where}: its files tell which videos there are")
        frames: dict[int, list[tuple[int, str]]] = {}
        odd = []
        for path in list_images(self.image_dir):
            found = re.fullmatch(r"([0-9]+):([0-9]+)\.jpe?g", path.name, re.IGNORECASE)
            if found:
                frames.setdefault(int(found[1]), []).append((int(found[2]), str(path)))
            else:
                odd.append(path.name)
        if odd:
            warn(f"{self.image_dir}: {len(odd)} images left out, they are not called ID:N.jpeg: {first_few(odd)}")
        several = [f"{number} ({len(names)})" for number, names in sorted(frames.items()) if len(names) > 1]
        if several:
            what = f"{len(several)} videos have several frames, the first is used"
            warn(f"{self.image_dir}: {what}: {first_few(several)}")
        if not frames:
            raise UserError(f"--dataset {self.name}: no frames ID:N.jpeg in {os.path.abspath(self.image_dir)}")
        self.items = [ImageItem(number, str(number), min(names)[1]) for number, names in sorted(frames.items())]
