"""Records of feature files that are called otherwise than the images, or not at all."""

import json

import numpy as np
import pytest
from PIL import Image
from toy_layouts import make_msrvtt

from captioning.batches.features import FeatureFiles
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from captioning.features.writer import FeatureWriter


def write(path, records: dict[str, int]) -> None:
    with FeatureWriter(path, (3,)) as writer:
        for key, number in records.items():
            writer.write(key, np.full(3, number, np.float32))


def read(root, section: str, name: str) -> list[float]:
    dataset = open_dataset(section, str(root / "d.conf"))
    files = FeatureFiles(dataset, name)
    files.check(dataset.items)
    return files.get(dataset.items)[:, 0].tolist()


def coco(root, names: list[str], section: str = "c") -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    (root / f"{section}.json").write_text(json.dumps({"images": images}))
    with open(root / "d.conf", "a") as conf:
        conf.write(f"[{section}]\ndataset_class = CocoDataset\nfeatures_path = .\ncaption_path = {section}.json\n")


@pytest.mark.parametrize("file", ["f.lmdb", "f.npy", "f.h5"])
def test_deepcaptions_prefix_of_coco(tmp_path, capsys, file):
    coco(tmp_path, ["000001.jpg", "000002.jpg", "COCO_train2014_3.jpg"])
    own = {"000001.jpg": 1, "COCO_val2014_000001.jpg": 7, "COCO_val2014_000002.jpg": 2, "COCO_train2014_3.jpg": 3}
    write(tmp_path / file, own)
    assert read(tmp_path, "c", file) == [1, 2, 3]  # the plain name counts where it has a record
    said = capsys.readouterr().err
    assert said.count("records have DeepCaption's names, as 'COCO_val2014_000002.jpg' for '000002.jpg' (1 in all)") == 1
    coco(tmp_path, ["000004.jpg"], "d")
    with pytest.raises(UserError, match="no record for '000004.jpg'"):
        read(tmp_path, "d", file)
    assert read(tmp_path, "c+c", file) == [1, 2, 3] * 2  # each part by its own names
    assert not capsys.readouterr().err  # said once


def test_deepcaptions_names_of_a_folder_of_photos(tmp_path):
    (tmp_path / "p").mkdir()
    for name in ("one.jpeg", "two.jpg", "two.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "p" / name)
    conf = "[g]\ndataset_class = GenericDataset\nimage_dir = p\nfeatures_path = .\n[g:one]\nsubset = one.txt\n"
    (tmp_path / "d.conf").write_text(conf)
    (tmp_path / "one.txt").write_text("one.jpeg\n")
    write(tmp_path / "f.lmdb", {"one": 1, "two": 2})
    assert read(tmp_path, "g:one", "f.lmdb") == [1]
    with pytest.raises(UserError, match=r"no record for 'two.jpg' \(and 1 other"):  # which of the two is "two"?
        read(tmp_path, "g", "f.lmdb")


@pytest.mark.parametrize("file", ["rows.npy", "rows.h5"])
def test_rows_without_names_are_taken_by_the_videos_number(tmp_path, capsys, file):
    make_msrvtt(tmp_path, 4, 2)
    data = json.loads((tmp_path / "videodatainfo.json").read_text())
    data["videos"].reverse()
    (tmp_path / "videodatainfo.json").write_text(json.dumps(data))
    (tmp_path / "datasets.conf").rename(tmp_path / "d.conf")
    rows = np.arange(9, dtype=np.float32)[:, None].repeat(3, 1)
    write(tmp_path / "features" / file, {str(number): number for number in range(9)})
    (tmp_path / "features/rows.keys.txt").unlink()
    assert len(rows) == 9
    assert read(tmp_path, "msrvtt:train", file) == [3, 2, 1, 0]
    assert read(tmp_path, "msrvtt:validate", file) == [5, 4]
    assert capsys.readouterr().err.count("rows have no names: row N, counted from 0, is asked for by the number N") == 1
    write(tmp_path / "features" / f"few-{file}", {str(number): number for number in range(4)})
    (tmp_path / "features/few-rows.keys.txt").unlink()
    with pytest.raises(UserError, match="no record for '5'"):
        read(tmp_path, "msrvtt:validate", f"few-{file}")


def test_rows_in_the_order_of_the_dataset(tmp_path, capsys):
    coco(tmp_path, ["b.jpg", "a.jpg"])
    np.save(tmp_path / "f.npy", np.arange(2, dtype=np.float32)[:, None].repeat(3, 1))
    assert read(tmp_path, "c", "f.npy") == [0, 1]
    assert read(tmp_path, "c", "f.npy") == [0, 1]
    assert capsys.readouterr().err.count("they are taken in the order of the dataset's images") == 1


@pytest.mark.parametrize("ending", ["lmdb", "npy", "h5"])
def test_names_that_are_no_text(tmp_path, ending):
    """A file called in Latin-1 has a name of bytes that are not UTF-8; its record is found under the same bytes."""
    name = "caf\udce9.jpg"
    coco(tmp_path, [name])
    write(tmp_path / f"f.{ending}", {name: 4})
    assert read(tmp_path, "c", f"f.{ending}") == [4]
