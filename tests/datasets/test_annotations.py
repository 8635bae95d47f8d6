"""Annotation files of each format with a wrong value in every place: read, or refused in a line that names the file."""

import copy
import json

import pytest
from odd_json import changed, odd_texts, places

from captioning.datasets.factory import open_dataset
from captioning.datasets.references import read_references
from captioning.errors import UserError

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "caption": "A dog."}, {"id": 2, "image_id": 2, "caption": "A cat."}],
}
MSRVTT = {
    "videos": [{"video_id": "video0", "split": "train"}, {"video_id": "video1", "split": "train"}],
    "sentences": [{"video_id": "video0", "caption": "A dog."}, {"video_id": "video1", "caption": "A cat."}],
}
VIST = {
    "annotations": [
        [{"story_id": "4", "photo_flickr_id": "7", "text": "A dog."}],
        [{"story_id": "4", "photo_flickr_id": "8", "text": "A cat."}],
    ]
}
PARAGRAPHS = [{"image_id": 1, "paragraph": "A dog. It runs."}, {"image_id": 2, "paragraph": "A cat."}]
BOX = {"x": 0, "y": 0.5, "width": 4, "height": 5}
REGIONS = [
    {"image_id": 1, "region_id": 5, "phrase": "a dog", **BOX},
    {"image_id": 1, "region_id": 6, "phrase": "", **BOX},
]
IMAGES_WITH_REGIONS = [{"id": 1, "regions": [{"region_id": 5, "phrase": "a dog", **BOX}]}]
FORMATS = {
    "CocoDataset": COCO,
    "MSRVTTDataset": MSRVTT,
    "VistDataset": VIST,
    "VisualGenomeIM2PDataset": PARAGRAPHS,
    "VisualGenomeRegionsDataset": REGIONS,
    "VisualGenomeRegionsDataset, by images": IMAGES_WITH_REGIONS,
    "references": COCO,
    "references, paragraphs": PARAGRAPHS,
}
TEXTS = ["", " ", "a\0b", "\ud83d", "9" * 5000, float("inf"), 1e300]


def reader(name: str, path):
    """A function that reads the file as the format `name`."""
    if name.startswith("references"):
        return lambda: read_references(path)
    conf = path.with_name("d.conf")
    conf.write_text(f"[d]\ndataset_class = {name.partition(',')[0]}\ncaption_path = {path.name}\n")
    return lambda: open_dataset("d", str(conf)).items


@pytest.mark.parametrize("name", FORMATS)
def test_a_wrong_value_in_any_place(tmp_path, name):
    data, file = FORMATS[name], tmp_path / "c.json"
    read, refused = reader(name, file), 0
    for what, text in odd_texts(data, TEXTS):
        file.write_text(text)
        try:
            read()
        except UserError as error:
            assert str(file) in str(error) and "\n" not in str(error), (what, error)
            refused += 1
    assert refused > 5 * len(list(places(data)))
    file.write_text(json.dumps(data))
    assert read()


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("CocoDataset", ("annotations", 1, "caption"), 3, "annotations[1]: caption 3 is not a text"),
        ("CocoDataset", ("images", 0, "file_name"), "a\0b", "images[0]: file_name 'a\\x00b' is not the name of a file"),
        ("CocoDataset", ("images", 0, "file_name"), "", "images[0]: file_name is empty"),
        ("CocoDataset", ("images", 1, "id"), "1", "images[1]: id '1' is there already"),
        ("VisualGenomeRegionsDataset", (0, "x"), float("inf"), "[0]: x inf is not a number"),
        ("references", ("annotations", 0, "image_id"), 1.0, "annotations[0]: image_id 1.0 is neither number nor text"),
    ],
)
def test_the_place_is_named(tmp_path, name, path, value, words):
    file = tmp_path / "c.json"
    file.write_text(json.dumps(changed(FORMATS[name], path, value)))
    with pytest.raises(UserError) as error:
        reader(name, file)()
    assert words in str(error.value)


def test_ids_are_the_same_as_texts_and_numbers(tmp_path):
    data = copy.deepcopy(COCO)
    data["images"][1]["id"] = "2"
    data["annotations"][0]["image_id"] = "1"
    file = tmp_path / "c.json"
    file.write_text(json.dumps(data))
    assert [item.captions for item in reader("CocoDataset", file)()] == [["A dog."], ["A cat."]]
    assert read_references(file) == {"1": ["A dog."], "2": ["A cat."]}
    del data["images"]  # the ids are then those of the annotations
    file.write_text(json.dumps(data))
    assert read_references(file) == {"1": ["A dog."], "2": ["A cat."]}


def test_captions_are_cleaned_and_counted(tmp_path, capsys):
    data = copy.deepcopy(COCO)
    texts = ["<start> a dog <end>", "a wall \ud83d", " \t", "<start><end>", "smile \U0001f600\x07"]
    data["annotations"] = [{"image_id": 1, "caption": text} for text in texts]
    file = tmp_path / "c.json"
    file.write_text(json.dumps(data))
    items = reader("CocoDataset", file)()
    assert items[0].captions == ["a dog", "a wall", "smile \U0001f600"]
    said = capsys.readouterr().err
    assert "<start>, <end> and <pad> are taken out of 2 captions" in said
    assert "2 blank captions left out" in said
