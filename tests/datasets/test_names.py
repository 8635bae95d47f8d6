"""What --dataset names: sections and paths, whose names may contain + and : and ~."""

import pytest

from captioning.datasets.config import get_datasets
from captioning.datasets.names import as_path, short_names, split_names
from captioning.errors import UserError

ODD = ("a+b.csv", "C:\\photos\\own.csv", "a:b.csv", "a ~ b+c:d.csv", "~own.csv", "x.csv+", "100%.csv")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.csv", *ODD):
        (tmp_path / name).write_text("a.jpg,a ball\n")
    (tmp_path / "d.conf").write_text("[coco]\ndataset_class = CocoDataset\n[coco:train]\n[coco:val]\n")
    (tmp_path / "coco").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ODD)
def test_odd_paths(folder, name):
    assert split_names(name) == [name]
    assert split_names(f"{name}:train+b.csv + {name}:val") == [f"{name}:train", "b.csv", f"{name}:val"]
    assert as_path(name) == (name, None) and as_path(f"{name}:train") == (name, "train")
    (one, two) = get_datasets(f"{name}:train+b.csv")
    assert (one.caption_path, one.subset, two.caption_path) == (name, "train", "b.csv")


def test_sections_come_first(folder):
    spec = "coco:train + coco:val+./coco+b.csv"
    names = [(one.name, one.dataset_class) for one in get_datasets(spec, "d.conf")]
    classes = ("CocoDataset", "CocoDataset", "CaptionFile", "CaptionFile")
    assert names == list(zip(("coco:train", "coco:val", "./coco", "b.csv"), classes))
    with pytest.raises(UserError, match="unknown dataset 'coco:vla'; d.conf has: coco, coco:train, coco:val, generic"):
        get_datasets("coco:vla", "d.conf")
    with pytest.raises(UserError, match="empty name"):
        get_datasets("b.csv+", "d.conf")


def test_paths_of_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert as_path("~/b.csv:train") == (str(folder / "b.csv"), "train")


def test_what_is_not_there(folder):
    for name in ("gone.csv", "gone/x", "gone.json:train", "D:\\gone.csv"):
        with pytest.raises(UserError, match="--dataset: no such file or folder: "):
            get_datasets(name, "d.conf")
    with pytest.raises(UserError, match="unknown dataset 'gone'"):
        get_datasets("gone", "d.conf")
    with pytest.raises(UserError, match="--images coco: --dataset coco is a section of d.conf"):
        get_datasets("coco", "d.conf", images="coco")


def test_short_names(folder):
    assert short_names("coco:train+coco:val") == "coco:train+coco:val"
    assert short_names(f"{folder}/a+b.csv:train+{folder}/coco") == "a+b:train+coco"
