"""Small made-up copies of the layouts that the dataset classes read, with toy pictures and features that know them.

Each maker fills the folder `root` and appends its sections to root/datasets.conf: a training and a validation set. The
features lie in root/features under `pooled.lmdb` and `pooled.npy`.
"""

import json

from PIL import Image
from toy import SENTENCES, draw, feature_vector, scene

from captioning.features.writer import FeatureWriter


def sentences(number: int, count: int = 5) -> list[str]:
    colour, shape = scene(number)
    return [text.format(colour=colour, shape=shape) for text in SENTENCES[:count]]


def append(root, text: str) -> None:
    with open(root / "datasets.conf", "a") as file:
        file.write(text)


def write_records(root, records: dict[str, int], names=("pooled.lmdb", "pooled.npy")) -> None:
    """Feature files with `feature_vector(number)` for every key."""
    for name in names:
        with FeatureWriter(root / "features" / name, (16,)) as writer:
            for key, number in records.items():
                writer.write(key, feature_vector(number))


def save(picture: Image.Image, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def make_msrvtt(root, train: int = 24, validate: int = 12) -> None:
    videos, texts, records = [], [], {}
    for number in range(train + validate):
        split = "train" if number < train else "validate"
        videos.append({"category": 9, "video_id": f"video{number}", "start time": 0.5, "end time": 9.5, "split": split})
        videos[-1] |= {"id": number, "url": f"https://videos.example/{number}"}
        for text in sentences(number):
            texts.append({"caption": text, "video_id": f"video{number}", "sen_id": len(texts)})
        save(draw(number), root / "frames" / f"{number:04}:kf1.jpeg")
        records[str(number)] = number
    data = {"info": {"year": "2016"}, "videos": videos, "sentences": texts}
    (root / "videodatainfo.json").write_text(json.dumps(data))
    write_records(root, records)
    append(
        root,
        "[msrvtt]\ndataset_class = MSRVTTDataset\nroot_dir = %(here)s\nimage_dir = frames\nfeatures_path = features\n"
        "caption_path = videodatainfo.json\n[msrvtt:train]\nsubset = train\n[msrvtt:validate]\nsplit = validate\n",
    )


def make_trecvid(root, count: int = 12) -> None:
    """Beside make_msrvtt's, whose features are known by the same keys: it has no captions to train on."""
    for number in range(count):
        save(draw(number), root / "trecvid" / f"{number}:{number % 3 + 1}.jpeg")
    append(
        root,
        "[trecvid2018]\ndataset_class = TRECVID2018Dataset\nroot_dir = %(here)s\nimage_dir = trecvid\n"
        "features_path = features\n",
    )


def make_vist(root, train: int = 24, val: int = 12) -> None:
    """Stories of five photos of one scene each; the last photo of a story is the first of the next of its scene."""
    records: dict[str, int] = {}
    for split, first, count in (("train", 0, train), ("val", train, val)):
        annotations, images = [], {}
        for story in range(first, first + count):
            for order, text in enumerate(sentences(story)):
                number = story + 12 * order  # twelve on, it is the same scene again
                photo = str((70_000 if split == "train" else 80_000) + number)
                records[photo] = number
                images[photo] = {"id": photo, "album_id": "7215", "datetaken": "2004-11-18 06:30:36"}
                save(draw(number), root / "images" / split / f"{photo}.{'png' if number % 5 == 0 else 'jpg'}")
                entry = {"original_text": text, "album_id": "7215", "photo_flickr_id": photo, "setting": "first-2-pick"}
                entry |= {"worker_id": "FJROI8NWDRIPAM1", "story_id": str(40_000 + story), "tier": "story-in-sequence"}
                annotations.append([entry | {"worker_arranged_photo_order": order, "text": text.lower()}])
        data = {"images": list(images.values()), "annotations": annotations, "albums": [], "type": "vist"}
        (root / f"{split}.story-in-sequence.json").write_text(json.dumps(data))
    write_records(root, records)
    append(root, "[vist]\ndataset_class = VistDataset\nroot_dir = %(here)s\nfeatures_path = features\n")
    for split in ("train", "val"):
        append(root, f"[vist:{split}]\nimage_dir = images/{split}\ncaption_path = {split}.story-in-sequence.json\n")


def make_picsom(root, train: int = 24, val: int = 12) -> None:
    """Objects 0.. in index order; PicSOM's own .bin has no names; of every sixth object only a frame has features."""
    import struct

    from captioning.features.picsom_file import PICSOM_HEADER

    total = train + val
    labels = [f"toy_{number:05}" for number in range(total)]
    frames = [f"{label}_frame" for label in labels]
    lines = [f"#{i} <{label}> width=[96] height=[96]\n" for i, label in enumerate(labels + frames)]
    (root / "labels.txt").write_text("".join(lines))
    classes = root / "classes"
    classes.mkdir()
    half = train // 2
    (classes / "train_a").write_text("# made by hand\n" + "".join(f"{label}\n" for label in labels[:half]))
    (classes / "train_b").write_text("".join(f"{label}\n" for label in labels[half:train]))
    (classes / "train").write_text("# METACLASSFILE\n# both halves\ntrain_a\ntrain_b\n")
    (classes / "val").write_text("".join(f"{label}\n" for label in labels[train:]))
    texts = [f"{label} {' # '.join(sentences(number))}\n" for number, label in enumerate(labels)]
    (root / "textdumps").mkdir()
    (root / "textdumps/gt.txt").write_text("".join(texts) + f"{frames[0]}\n")
    (root / "label-map.txt").write_text("".join(f"{label} {frame}\n" for label, frame in zip(labels, frames)))
    records = {(labels[n] if n % 6 else frames[n]): n for n in range(total)}
    write_records(root, records, ("pooled.lmdb",))
    rows = [feature_vector(records.get(label, -1)) if label in records else None for label in labels + frames]
    with open(root / "features/pooled.bin", "wb") as file:
        file.write(PICSOM_HEADER.pack(struct.unpack("i", b"PSBD")[0], 1.0, PICSOM_HEADER.size, 64, 16, 1, 0, 0, 0))
        for row in rows:
            file.write(b"\x00\x00\xc0\x7f" * 16 if row is None else row.tobytes())  # NaN: missing
    for number, label in enumerate(labels):
        save(draw(number), root / "images" / f"{label}.jpg")
    append(
        root,
        "[picsom]\ndataset_class = PicSOMDataset\nfeatures_path = features\ncaption_path = textdumps/gt.txt\n"
        "[picsom:toy]\nroot_dir = %(here)s\nlabel_map = label-map.txt\nimage_dir = images\n"
        "[picsom:toy:train]\nsubset = train\n[picsom:toy:val]\nsubset = val\n",
    )


def make_regions(root, train: int = 6, val: int = 3, feather: bool = False) -> None:
    """Images of 2 x 2 scenes, a region with a phrase for each, as Visual Genome's own JSON and as a flat list."""
    images, records = [], {}
    splits: dict[str, list[int]] = {"train": [], "val": []}
    for image in range(train + val):
        image_id = 2_300_000 + image
        splits["train" if image < train else "val"].append(image_id)
        canvas, regions = Image.new("RGB", (200, 200), "white"), []
        for corner in range(4):
            number, x, y = 4 * image + corner, 100 * (corner % 2), 100 * (corner // 2)
            canvas.paste(draw(number, 100), (x, y))
            for which, phrase in enumerate(sentences(number, 2)):
                region = {"region_id": 10 * number + which, "image_id": image_id, "phrase": phrase}
                regions.append(region | {"x": x, "y": y, "width": 100, "height": 100})
                records[f"{image_id}:{region['region_id']}"] = number
        records[f"{image_id}.jpg"] = 4 * image
        images.append({"id": image_id, "regions": regions})
        save(canvas, root / "images" / f"{image_id}.jpg")
    flat = [region for image in images for region in image["regions"]]
    (root / "region_descriptions.json").write_text(json.dumps(images))
    (root / "regions.json").write_text(json.dumps(flat))
    (root / "splits.json").write_text(json.dumps(splits))
    if feather:
        import pyarrow
        from pyarrow import feather as files

        files.write_feather(pyarrow.Table.from_pylist(flat), str(root / "regions.feather"))
    write_records(root, records)
    append(
        root,
        "[visualgenome]\nroot_dir = %(here)s\nimage_dir = images\nfeatures_path = features\n"
        "[visualgenome:regions]\ndataset_class = VisualGenomeRegionsDataset\ncaption_path = region_descriptions.json\n"
        "[visualgenome:regions:train]\nsubset = splits.json:train\n"
        "[visualgenome:regions:val]\nsubset = splits.json:val\n"
        "[visualgenome:regions:flat]\ncaption_path = regions.json\n"
        "[visualgenome:regions:whole]\ncrop = no\n"
        "[visualgenome:regions:feather]\ncaption_path = regions.feather\n",
    )
