"""The same images and captions in the layouts that people have them in."""

import csv
import json
from pathlib import Path

from PIL import Image, ImageDraw


def picture(number: int, size: int = 64) -> Image.Image:
    """A picture that is like no other one: stripes whose places and colours follow from the number."""
    image = Image.new("RGB", (size, size), ((37 * number) % 256, (91 * number) % 256, (151 * number) % 256))
    pen = ImageDraw.Draw(image)
    for stripe in range(5):
        at = (number * (7 + 6 * stripe) + 13 * stripe) % size
        box = [at, 0, at + 6, size] if (number >> stripe) & 1 else [0, at, size, at + 6]
        pen.rectangle(box, fill=((89 * number + 50 * stripe) % 256, (53 * number) % 256, (29 * stripe) % 256))
    return image


def data(count: int) -> dict[str, list[str]]:
    """Name of an image -> its captions, in the order of the names."""
    things = ("a ball", "a box, red", 'a "roof"', "two dogs")
    return {
        f"photo{number:03}.png": [
            f"This is {things[number % 4]} beside number {number % 7}.",
            f"there is {things[number % 4]} , seen from {('above', 'below')[number % 2]}",
        ]
        for number in range(count)
    }


def write_table(path: Path, rows, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def coco(captions) -> dict:
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(captions)],
        "annotations": [
            {"id": 1, "image_id": number, "caption": text}
            for number, texts in enumerate(captions.values())
            for text in texts
        ],
    }


def karpathy(captions, split_of=lambda number: "train") -> dict:
    images = [
        {"imgid": number, "filename": name, "split": split_of(number), "sentences": [{"raw": text} for text in texts]}
        for number, (name, texts) in enumerate(captions.items())
    ]
    return {"dataset": "own", "images": images}


def write_layouts(root: Path, captions: dict[str, list[str]]) -> dict[str, str]:
    """Each layout in a folder of its own below `root`; gives what --dataset calls each of them."""
    pairs = [(name, text) for name, texts in captions.items() for text in texts]

    def folder(name: str, images: str) -> Path:
        place = root / name
        (place / images).mkdir(parents=True)
        for image in captions:
            picture(int(image[5:8])).save(place / images / image)
        return place

    place = folder("coco", "images")
    (place / "captions.json").write_text(json.dumps(coco(captions)))
    place = folder("csv", "photos")
    rows = [(number, text, name) for number, (name, text) in enumerate(pairs)]
    write_table(place / "own.csv", [("nr", "Caption", "File Name"), *rows[::2], *rows[1::2]], encoding="utf-8-sig")
    place = folder("bare", "")
    write_table(place / "captions.csv", pairs)
    place = folder("tsv", "images")
    (place / "own.tsv").write_text("image\ttext\n" + "".join(f"{name}\t{text}\n" for name, text in pairs))
    place = folder("lines", "images")
    lines = [json.dumps({"image": f"images/{name}", "captions": texts}) for name, texts in captions.items()]
    (place / "own.jsonl").write_text("\n".join(lines[::-1]))
    place = folder("imagefolder", "")
    (place / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in pairs))
    place = folder("imagefolder_csv", "")
    write_table(place / "metadata.csv", [("file_name", "text"), *pairs])
    place = folder("karpathy", "imgs")
    (place / "dataset_own.json").write_text(json.dumps(karpathy(captions)))
    place = folder("flickr", "Flicker8k_Dataset")
    tokens = [f"{name}#{number}\t{text}\n" for name, texts in captions.items() for number, text in enumerate(texts)]
    (place / "Flickr8k.token.txt").write_text("".join(tokens))
    (place / "Flickr_8k.trainImages.txt").write_text("".join(f"{name}\n" for name in captions))
    place = folder("beside", "")
    for name, texts in captions.items():
        (place / name).with_suffix(".txt").write_text("\n".join(texts) + "\n")
    specs = {"coco": "captions.json", "csv": "own.csv", "bare": "captions.csv", "tsv": "own.tsv", "lines": "own.jsonl"}
    specs |= {"imagefolder": "", "imagefolder_csv": "", "karpathy": "dataset_own.json:train", "beside": ""}
    specs |= {"flickr": "Flickr8k.token.txt:train"}
    return {name: str(root / name / file).rstrip("/") for name, file in specs.items()}
