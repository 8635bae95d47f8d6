"""Each dataset class on a small copy of its layout: what it reads, and what is said of a malformed file."""

import json
import sys

import numpy as np
import pytest
from toy import feature_vector
from toy_layouts import append, make_msrvtt, make_picsom, make_regions, make_trecvid, make_vist, sentences

from captioning.batches.features import FeatureFiles
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError


def load(root, name: str):
    return open_dataset(name, str(root / "datasets.conf"))


def refused(root, name: str, *words: str) -> None:
    """Reading dataset `name` ends in one line with `words`."""
    with pytest.raises(UserError) as error:
        load(root, name)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def features(root, name: str, file: str) -> np.ndarray:
    dataset = load(root, name)
    source = FeatureFiles(dataset, file)
    source.check(dataset.items)
    return source.get(dataset.items).numpy()


def change_json(path, change) -> None:
    data = json.loads(path.read_text())
    data = change(data) or data
    path.write_text(data if isinstance(data, str) else json.dumps(data))


# ---------------------------------------------------------------- MSR-VTT, TRECVID


def test_msrvtt(tmp_path, capsys):
    make_msrvtt(tmp_path, 4, 2)
    make_trecvid(tmp_path, 3)
    train = load(tmp_path, "msrvtt:train")
    assert [(item.image_id, item.key) for item in train.items] == [(n, str(n)) for n in range(4)]
    assert train.items[3].path == str(tmp_path / "frames/0003:kf1.jpeg")
    assert train.items[3].captions == sentences(3)
    assert [item.image_id for item in load(tmp_path, "msrvtt:validate").items] == [4, 5]
    assert len(load(tmp_path, "msrvtt")) == 4  # train is the default, as in DeepCaption
    append(tmp_path, "[msrvtt:all]\nsubset = all\n[msrvtt:test]\nsubset = test\n")
    assert len(load(tmp_path, "msrvtt:all")) == 6
    refused(tmp_path, "msrvtt:test", "videodatainfo.json has no videos of split 'test'; it has: train, validate")
    assert not capsys.readouterr().err  # captions of other splits are no matter
    for file in ("pooled.lmdb", "pooled.npy"):
        expected = np.stack([feature_vector(n) for n in (4, 5)])
        assert np.array_equal(features(tmp_path, "msrvtt:validate", file), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "[", ("not valid JSON", "line 1")),
        (lambda d: d.pop("videos") and None, ("no 'videos'",)),
        (lambda d: d["videos"][2].pop("split") and None, ("videos[2] has no 'split'",)),
        (lambda d: d["videos"][2].update(video_id="clip2"), ("videos[2]: video_id 'clip2'",)),
        (lambda d: d["videos"][2].update(video_id="video1"), ("videos[2]: video1 is there already",)),
        (lambda d: d["sentences"][7].update(caption=3), ("sentences[7]: caption 3 is not a text",)),
        (lambda d: d.update(sentences={}), ("sentences is not a list",)),
    ],
)
def test_malformed_msrvtt(tmp_path, change, words):
    make_msrvtt(tmp_path, 4, 2)
    change_json(tmp_path / "videodatainfo.json", change)
    refused(tmp_path, "msrvtt:train", "videodatainfo.json", *words)


def test_trecvid(tmp_path, capsys):
    make_msrvtt(tmp_path, 4, 2)
    make_trecvid(tmp_path, 11)
    (tmp_path / "trecvid/notes.jpeg").write_bytes(b"x")
    (tmp_path / "trecvid/5:1.jpeg").write_bytes(b"x")
    dataset = load(tmp_path, "trecvid2018")
    assert [item.image_id for item in dataset.items] == list(range(11))  # by number, not by name
    assert dataset.items[5].path == str(tmp_path / "trecvid/5:1.jpeg")
    assert dataset.num_captions == 0
    said = capsys.readouterr().err
    assert "1 images left out, they are not called ID:N.jpeg: notes.jpeg" in said
    assert "1 videos have several frames, the first is used: 5 (2)" in said
    append(tmp_path, "[trecvid2018:none]\nimage_dir = features\n[tv]\ndataset_class = TRECVID2018Dataset\n")
    refused(tmp_path, "trecvid2018:none", "no frames ID:N.jpeg in", "features")
    refused(tmp_path, "tv", "--dataset tv: set image_dir in", "datasets.conf")


# ---------------------------------------------------------------- VIST


def test_vist(tmp_path):
    make_vist(tmp_path, 3, 2)
    dataset = load(tmp_path, "vist:train")
    assert [item.image_id for item in dataset.items] == ["40000", "40001", "40002"]
    story = dataset.items[1]
    assert story.captions == [" ".join(text.lower() for text in sentences(1))]
    assert [photo.key for photo in story.photos] == ["70001", "70013", "70025", "70037", "70049"]
    assert [photo.path for photo in story.photos][1:3] == [
        str(tmp_path / "images/train/70013.jpg"),
        str(tmp_path / "images/train/70025.png"),
    ]
    assert len(dataset.photos()) == 15
    for file in ("pooled.lmdb", "pooled.npy"):
        expected = [np.mean([feature_vector(n + 12 * i) for i in range(5)], 0) for n in range(3)]
        assert np.allclose(features(tmp_path, "vist:train", file), expected, atol=1e-6)
    joined = load(tmp_path, "vist:train+vist:val")
    source = FeatureFiles(joined, "pooled.lmdb")
    source.check(joined.items)
    assert source.get(joined.items).shape == (5, 16)


def test_a_story_goes_on_without_photos_that_have_no_features(tmp_path, capsys):
    from toy_layouts import write_records

    make_vist(tmp_path, 2, 1)
    write_records(tmp_path, {str(70_000 + 12 * i): 12 * i for i in (0, 2, 3, 4)}, ["some.npy"])
    write_records(tmp_path, {str(70_001 + 12 * i): 1 + 12 * i for i in range(5)}, ["other.npy"])
    with pytest.raises(UserError, match="some.npy has no record for '70001'"):
        features(tmp_path, "vist:train", "some.npy")
    records = {str(70_000 + 12 * i): 12 * i for i in (0, 2, 3, 4)} | {"70001": 1}
    write_records(tmp_path, records, ["some.npy"])
    found = features(tmp_path, "vist:train", "some.npy")
    assert (
        "has no record for 5 photos of stories, which go on without them: 70012, 70013, 70025"
        in capsys.readouterr().err
    )
    assert np.allclose(found[0], np.mean([feature_vector(12 * i) for i in (0, 2, 3, 4)], 0), atol=1e-6)
    assert np.allclose(found[1], feature_vector(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "[]", "no 'annotations'"),
        (lambda d: d["annotations"].insert(4, {}), "annotations[4] is not a list of one object"),
        (lambda d: d["annotations"].insert(4, []), "annotations[4] is not a list of one object"),
        (lambda d: d["annotations"][4][0].pop("text") and None, "annotations[4][0] has no 'text'"),
        (lambda d: d["annotations"][4][0].update(story_id=None), "annotations[4][0]: story_id None is neither"),
        (lambda d: d["annotations"][4][0].update(photo_flickr_id=""), "annotations[4][0]: photo_flickr_id is empty"),
    ],
)
def test_malformed_vist(tmp_path, change, words):
    make_vist(tmp_path, 2, 1)
    change_json(tmp_path / "train.story-in-sequence.json", change)
    refused(tmp_path, "vist:train", "train.story-in-sequence.json", words)


# ---------------------------------------------------------------- PicSOM


def test_picsom(tmp_path):
    make_picsom(tmp_path, 8, 4)
    train = load(tmp_path, "picsom:toy:train")
    assert [item.key for item in train.items] == [f"toy_{n:05}" for n in range(8)]
    assert train.items[2].captions == sentences(2)
    assert train.items[2].path == str(tmp_path / "images/toy_00002.jpg")
    assert [item.image_id for item in load(tmp_path, "picsom:toy:val").items] == [f"toy_{n:05}" for n in range(8, 12)]
    everything = load(tmp_path, "picsom:toy")
    assert len(everything) == 24  # the frames too
    assert everything.items[12].captions == []
    expected = np.stack([feature_vector(n) for n in range(8)])
    (tmp_path / "features/list.txt").write_text("pooled.bin\npooled.bin # once more\n")
    for file in ("pooled.lmdb", "pooled.bin"):
        assert np.array_equal(features(tmp_path, "picsom:toy:train", file), expected)
    assert np.array_equal(features(tmp_path, "picsom:toy:train", "list.txt"), np.hstack([expected, expected]))
    append(tmp_path, "[picsom:toy:train:unmapped]\nlabel_map =\n")
    for file in ("pooled.lmdb", "pooled.bin", "list.txt"):
        with pytest.raises(UserError, match="has no record for 'toy_00000' .and 1 other"):
            features(tmp_path, "picsom:toy:train:unmapped", file)


def test_a_picsom_database_is_found_below_picsom_root(tmp_path):
    root = tmp_path / "databases/toy"
    root.mkdir(parents=True)
    make_picsom(root, 4, 2)
    conf = tmp_path / "datasets.conf"
    conf.write_text(
        "[picsom]\ndataset_class = PicSOMDataset\npicsom_root = .\n[picsom:toy]\nsubset = val\n[picsom:odd]\n"
        "[bare]\ndataset_class = PicSOMDataset\n"
    )
    assert len(load(tmp_path, "picsom:toy")) == 2
    refused(tmp_path, "picsom:odd", "no labels.txt in", "databases/odd")
    refused(tmp_path, "bare", "--dataset bare: set root_dir")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("labels.txt", "#0 <a>\n1 <b>\n", ("labels.txt, line 2", "'1 <b>' is not of the form '#INDEX <LABEL>'")),
        ("labels.txt", "#0 <a>\n#1 <a>\n", ("labels.txt, line 2", "label <a> is there already")),
        ("labels.txt", "#0 <a>\n\n#0 <b>\n", ("labels.txt, line 3", "index #0 is there already")),
        ("labels.txt", b"#0 <a>\n#1 <\xff>\n", ("labels.txt, line 2 is not UTF-8 text",)),
        ("classes/train_b", "toy_00001 toy_00002\n", ("classes/train_b, line 1", "several words")),
        ("classes/train", "# METACLASSFILE\n\ntrain_c\n", ("classes/train, line 3", "no such class", "train_c")),
        ("classes/train", "# METACLASSFILE\ntrain\n", ("classes/train, line 2", "class train lists itself")),
        ("textdumps/gt.txt", "toy_00001 x\n y\n", ("gt.txt, line 2", "LABEL text # text")),
        ("label-map.txt", "toy_00001 x\ntoy_00002\n", ("label-map.txt, line 2", "maps to nothing")),
    ],
)
def test_malformed_picsom(tmp_path, file, text, words):
    make_picsom(tmp_path, 4, 2)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path, "picsom:toy:train", *words)


def test_picsom_objects_that_are_not_there_are_named(tmp_path, capsys):
    make_picsom(tmp_path, 4, 2)
    append(tmp_path, "[picsom:toy:none]\nsubset = nowhere\n")
    refused(tmp_path, "picsom:toy:none", "subset: no such class file", "classes/nowhere")
    with open(tmp_path / "classes/val", "a") as file:
        file.write("ghost\n")
    with open(tmp_path / "textdumps/gt.txt", "a") as file:
        file.write("phantom a text # another\ntoy_00004  # again\n")
    assert load(tmp_path, "picsom:toy:val").items[0].captions == [*sentences(4), "again"]
    said = capsys.readouterr().err
    assert "classes/val: 1 of its 3 objects are not in" in said and "ghost" in said
    assert "2 captions left out, their objects are not listed: phantom, phantom" in said
    assert "1 blank captions left out" in said


# ---------------------------------------------------------------- Visual Genome's regions


def test_regions(tmp_path):
    pytest.importorskip("pyarrow")
    make_regions(tmp_path, 2, 1, feather=True)
    nested, flat, feather = (load(tmp_path, f"visualgenome:regions{name}") for name in ("", ":flat", ":feather"))
    assert nested.items == flat.items == feather.items
    assert len(flat) == 24
    item = flat.items[3]
    assert (item.image_id, item.key) == (11, "2300000:11")
    assert item.captions == [sentences(1)[1]]
    assert (item.path, item.box) == (str(tmp_path / "images/2300000.jpg"), (100, 0, 100, 100))
    assert [item.image_id // 40 for item in load(tmp_path, "visualgenome:regions:val").items] == [2] * 8
    whole = load(tmp_path, "visualgenome:regions:whole")
    assert [(item.image_id, item.key, len(item.captions)) for item in whole.items] == [
        (2_300_000 + n, f"{2_300_000 + n}.jpg", 8) for n in range(3)
    ]
    assert np.array_equal(features(tmp_path, "visualgenome:regions:val", "pooled.lmdb")[2], feature_vector(9))
    assert np.array_equal(features(tmp_path, "visualgenome:regions:whole", "pooled.lmdb")[2], feature_vector(8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "{}", "is not a list of regions"),
        (lambda d: d.insert(1, 5), "[1] has no 'regions'"),
        (lambda d: d[1].update(id=None), "[1]: id 'None' is neither number nor text"),
        (lambda d: d[1]["regions"][3].pop("phrase") and None, "[1].regions[3] has no 'phrase'"),
        (lambda d: d[1]["regions"][3].update(width="9"), "[1].regions[3]: width '9' is not a number"),
        (lambda d: d[1]["regions"][3].update(region_id=1), "[1].regions[3]: region_id 1 is there already"),
        (lambda d: [d[0]["regions"][0], 7], "[1] is not an object but '7'"),
        (lambda d: [{**d[0]["regions"][0], "x": None}], "[0]: x None is not a number"),
        (lambda d: [{**d[0]["regions"][0], "x": float("nan")}], "[0]: x nan is not a number"),
    ],
)
def test_malformed_regions(tmp_path, change, words):
    make_regions(tmp_path, 2, 1)
    change_json(tmp_path / "region_descriptions.json", change)
    refused(tmp_path, "visualgenome:regions", "region_descriptions.json", words)


def test_malformed_subsets_of_regions(tmp_path):
    make_regions(tmp_path, 2, 1)
    append(
        tmp_path,
        "[visualgenome:regions:none]\nsubset = splits.json:nowhere\n[visualgenome:regions:odd]\nsubset = splits.json\n"
        "[visualgenome:regions:maybe]\ncrop = maybe\n",
    )
    refused(tmp_path, "visualgenome:regions:none", "splits.json has no split 'nowhere'; it has: train, val")
    refused(tmp_path, "visualgenome:regions:odd", "datasets.conf", "must be FILE:SPLIT")
    refused(tmp_path, "visualgenome:regions:maybe", "datasets.conf", "crop = maybe: must be yes or no")
    change_json(tmp_path / "splits.json", lambda d: d["train"].insert(1, [2]))
    refused(tmp_path, "visualgenome:regions:train", "splits.json: train[1]: '[2]' is neither number nor text")
    (tmp_path / "splits.json").write_text("[1]")
    refused(tmp_path, "visualgenome:regions:train", "splits.json is not an object")


def test_malformed_feather(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather

    make_regions(tmp_path, 2, 1, feather=True)
    path = tmp_path / "regions.feather"
    name, table = "visualgenome:regions:feather", feather.read_table(path)
    feather.write_feather(table.drop_columns(["y"]), str(path))
    refused(tmp_path, name, "regions.feather has no column 'y'")
    rows = table.to_pylist()
    rows[5]["phrase"] = None
    feather.write_feather(pyarrow.Table.from_pylist(rows), str(path))
    refused(tmp_path, name, "regions.feather: row 5: phrase None is not a text")
    rows[5]["phrase"] = "a box"
    floats = pyarrow.Table.from_pylist([row | {"image_id": float(row["image_id"])} for row in rows])
    feather.write_feather(floats, str(path))  # as pandas stores whole numbers where one had been missing
    assert load(tmp_path, name).items[0].key == "2300000:0"
    path.write_bytes(path.read_bytes()[:-100])
    refused(tmp_path, name, "cannot read", "regions.feather")
    path.unlink()
    refused(tmp_path, name, "no such file", "regions.feather")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(tmp_path, name, "need the package pyarrow: pip install pyarrow, or give the regions as .json")


# ---------------------------------------------------------------- lists of images


def test_a_list_of_images_of_a_folder(tmp_path):
    (tmp_path / "list.txt").write_text("# the best\nb.png\n\nsub/a.png\n")
    append(tmp_path, "[few]\ndataset_class = GenericDataset\nimage_dir = photos\nsubset = list.txt\n")
    assert [(item.image_id, item.key, item.path) for item in load(tmp_path, "few").items] == [
        ("b.png", "b.png", str(tmp_path / "photos/b.png")),
        ("sub/a.png", "a.png", str(tmp_path / "photos/sub/a.png")),
    ]
    for text, words in (
        ("a.png\nb.png\na.png\n", "list.txt, line 3: 'a.png' is on line 1 already"),
        ("a.png\n/etc/b.png\n", "list.txt, line 2: '/etc/b.png' is not the name of an image"),
        ("# nothing\n", "no images"),
    ):
        (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(tmp_path, "few", words)
    (tmp_path / "list.txt").write_bytes(b"a.png\n\xff.png\n")  # names of files may be any bytes
    assert [item.image_id for item in load(tmp_path, "few").items] == ["a.png", "\udcff.png"]
    (tmp_path / "list.txt").unlink()
    refused(tmp_path, "few", "no such file", "list.txt")
