"""check_data.py: what is wrong with images and captions, and where it stands."""

import json
import shutil

import pytest
from own_data import coco, data, picture, write_table


@pytest.fixture
def check(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = script("check_data.py", *arguments, "--json", "found.json", "--num_workers", 0)
        content = json.loads((tmp_path / "found.json").read_text()) if done.status < 2 else {}
        return done, content

    return run


def named(content: dict, kind: str) -> list[tuple[str, str]]:
    entries = content["problems"].get(kind, content["notes"].get(kind))
    return [(entry["place"], entry["image"]) for entry in entries]


def make(root, count: int = 8) -> list[tuple[str, str]]:
    captions = data(count)
    for number, name in enumerate(captions):
        picture(number, 200).save(root / name)
    return [(name, text) for name, texts in captions.items() for text in texts]


def test_good_data(check, tmp_path):
    write_table(tmp_path / "c.csv", [("image", "caption"), *make(tmp_path)])
    done, content = check("--captions", "c.csv")
    assert done.status == 0 and done.out.endswith("written to found.json\nno problems\n")
    assert (content["images"], content["captions"]) == (8, 16)
    assert not any(content["problems"].values())


def test_every_kind_of_mistake(check, tmp_path):
    rows = make(tmp_path)
    shutil.copy(tmp_path / "photo001.png", tmp_path / "copy.png")
    picture(2, 200).resize((150, 150)).save(tmp_path / "near.jpg", quality=70)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "near.jpg").read_bytes()[:800])
    rows += [("copy.png", "a ball"), ("near.jpg", "a box"), ("broken.jpg", "a roof, red"), ("gone.jpg", "two dogs")]
    rows += [("", "nobody's"), ("photo003.png", " "), ("photo003.png", rows[6][1]), ("photo004.png", "zebra " * 40)]
    write_table(tmp_path / "c.csv", [("image", "caption"), *rows])
    done, content = check("--captions", "c.csv")
    assert done.status == 1
    assert named(content, "duplicate_images") == [("row 18", "copy.png")]
    assert named(content, "near_duplicates") == [("row 19", "near.jpg")]
    assert named(content, "broken_images") == [("row 20", "broken.jpg")]
    assert named(content, "missing_images") == [("row 21", "gone.jpg")]
    assert named(content, "unusable_entries") == [("row 22", "")]
    assert named(content, "empty_captions") == [("row 23", "photo003.png")]
    assert named(content, "repeated_captions") == [("row 24", "photo003.png")]
    assert named(content, "long_captions") == [("row 25", "photo004.png")]
    assert "zebra" in [entry["text"] for entry in content["notes"]["rare_words"]]
    assert content["problems"]["duplicate_images"][0]["text"] == "the same file as photo001.png (row 4)"
    assert content["problems"]["images_in_both_splits"] == []
    assert "    row 22: no image is named\n" in done.out and "7 problems" in done.out


def test_images_in_both_splits(check, tmp_path):
    rows = [(name, text, "train") for name, text in make(tmp_path)]
    shutil.copy(tmp_path / "photo001.png", tmp_path / "copy.png")
    picture(2, 200).resize((150, 150)).save(tmp_path / "near.jpg", quality=70)
    rows += [("copy.png", "a ball", "val"), ("near.jpg", "a box", "val"), ("photo003.png", "a roof", "val")]
    write_table(tmp_path / "c.csv", [("image", "caption", "split"), *rows])
    done, content = check("--dataset", "c.csv")
    both = [("row 20", "photo003.png"), ("row 18", "copy.png"), ("row 19", "near.jpg")]
    assert done.status == 1 and named(content, "images_in_both_splits") == both
    done, content = check("--dataset", "c.csv:train")
    assert done.status == 0
    done, content = check("--dataset", "c.csv:train", "--validate", "c.csv:val")
    assert named(content, "images_in_both_splits") == both
    assert "in c.csv:val; the same file as photo001.png (row 4) in c.csv:train" in done.out


def test_sections_of_datasets_conf(check, tmp_path):
    make(tmp_path)
    content = coco(data(8))
    content["annotations"] += [{"image_id": 77, "caption": "x"}, {"image_id": 2, "caption": ""}]
    (tmp_path / "c.json").write_text(json.dumps(content))
    (tmp_path / "photo005.png").unlink()
    (tmp_path / "d.conf").write_text(
        "[c]\ndataset_class = CocoDataset\ncaption_path = c.json\nimage_dir = .\n"
        "[g]\ndataset_class = GenericDataset\nimage_dir = .\n"
    )
    done, content = check("--dataset", "c", "--dataset_config_file", "d.conf")
    assert done.status == 1 and named(content, "unusable_entries") == [("annotations[16]", "")]
    assert named(content, "empty_captions") == [("annotations[17]", "photo002.png")]
    assert named(content, "missing_images") == [("images[5]", "photo005.png")]
    done, content = check("--dataset", "g", "--dataset_config_file", "d.conf")
    assert done.status == 0 and len(content["notes"]["images_without_captions"]) == 7


def test_processes_find_the_same(check, script, tmp_path):
    write_table(tmp_path / "c.csv", [("image", "caption"), *make(tmp_path), ("gone.jpg", "x")])
    (tmp_path / "photo002.png").write_bytes(b"")
    one, content = check("--captions", "c.csv")
    two = script("check_data.py", "--captions", "c.csv", "--json", "two.json", "--num_workers", 2)
    assert one.status == two.status == 1
    assert json.loads((tmp_path / "two.json").read_text()) == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either --dataset or --captions"),
        (["--dataset", "a", "--captions", "b"], "name either --dataset or --captions"),
        (["--dataset", "gone.csv"], "no such file or folder: gone.csv"),
        (["--dataset", "gone", "--rare", "-1"], "--rare -1: must be at least 0"),
    ],
)
def test_mistakes(check, arguments, message):
    done, _ = check(*arguments)
    assert done.status == 2 and done.err.count("\n") == 1 and message in done.err
