"""datasets.conf: inheritance, joining, paths, lookup places, and what is said of a broken file."""

import os

import pytest

from captioning.datasets import config as dataset_config
from captioning.datasets.config import get_datasets
from captioning.datasets.factory import DATASET_CLASSES
from captioning.errors import UserError

CONF = """
[coco]
dataset_class = CocoDataset
root_dir = /data/coco
features_path = features
year = 2014

[coco:train2014]
image_dir = images/train%(year)s
caption_path = annotations/captions_train2014.json

[coco:train2014:late]
year = 2017
caption_path = /elsewhere/late.json
subset = some

[here]
dataset_class = CocoDataset
root_dir = %(here)s/sub
image_dir = 100%%

[near]
dataset_class = CocoDataset
root_dir = sub
image_dir = images

[rootless]
dataset_class = GenericDataset
image_dir = photos
"""


@pytest.fixture
def conf(tmp_path):
    folder = tmp_path / "50% off"
    folder.mkdir()
    path = folder / "my.conf"
    path.write_text(CONF)
    return path


def one(spec, conf):
    (params,) = get_datasets(spec, str(conf))
    return params


def test_a_child_inherits_over_two_levels(conf):
    train, late = get_datasets("coco:train2014 + coco:train2014:late", str(conf))
    assert (train.name, train.dataset_class, train.root_dir) == ("coco:train2014", "CocoDataset", "/data/coco")
    assert train.image_dir == "/data/coco/images/train2014"
    assert train.caption_path == "/data/coco/annotations/captions_train2014.json"
    assert train.features_path == "/data/coco/features"
    assert train.subset is None
    assert train.extra == {"year": "2014"}
    assert train.config_path == str(conf)
    assert late.image_dir == "/data/coco/images/train2017"  # the parent's value, filled in with the grandchild's
    assert late.caption_path == "/elsewhere/late.json"
    assert late.features_path == "/data/coco/features"
    assert late.subset == "some"


def test_here_and_relative_roots_are_the_folder_of_the_file(conf, monkeypatch):
    folder = str(conf.parent)
    assert one("here", conf).root_dir == folder + "/sub"
    assert one("here", conf).image_dir == folder + "/sub/100%"
    assert one("near", conf).image_dir == folder + "/sub/images"
    assert one("rootless", conf).image_dir == folder + "/photos"
    monkeypatch.chdir(conf.parent)
    assert one("near", "my.conf").root_dir == folder + "/sub"


def test_generic_always_exists(conf):
    assert one("generic", conf).dataset_class == "GenericDataset"
    assert get_datasets("generic", None)[0].image_dir is None


def test_default_section_lies_below_all(tmp_path):
    path = tmp_path / "d.conf"
    path.write_text("[a:b]\nimage_dir = x\n[DEFAULT]\ndataset_class = D\nroot_dir = /r\n[a]\nroot_dir = /a\n")
    assert one("a:b", path).image_dir == "/a/x"
    assert one("a:b", path).dataset_class == "D"


def test_lookup_places(tmp_path, monkeypatch):
    home, code, work = (tmp_path / name for name in ("home", "code", "work"))
    user = home / ".config/image_captioning"
    for folder in (user, code / "datasets", work / "datasets"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(dataset_config, "CODE_DIR", code)
    monkeypatch.chdir(work)
    places = [work / "datasets/datasets.conf", user / "datasets.conf", code / "datasets/datasets.conf"]
    for number, place in enumerate(places):
        place.write_text(f"[x]\ndataset_class = C{number}\n")
    for number, place in enumerate(places):
        assert get_datasets("x", None)[0].dataset_class == f"C{number}"
        assert get_datasets("x", "datasets/datasets.conf")[0].dataset_class == f"C{number}"
        place.unlink()
    with pytest.raises(UserError, match="no such file") as error:
        get_datasets("x", None)
    assert str(user) in str(error.value)
    assert get_datasets("generic", None)[0].dataset_class == "GenericDataset"
    with pytest.raises(UserError, match="typo.conf"):
        get_datasets("generic", "typo.conf")


def test_paths_are_looked_for_beside_the_file_then_in_the_working_directory(tmp_path, monkeypatch, capsys):
    conf, work = tmp_path / "conf", tmp_path / "work"
    for place in (conf / "both", work / "both", work / "there", work / "data/images", conf / "data"):
        place.mkdir(parents=True)
    monkeypatch.chdir(work)
    text = "[a]\ndataset_class = C\nimage_dir = there\nfeatures_path = both\ncaption_path = nowhere.json\n"
    (conf / "d.conf").write_text(text + "[b]\ndataset_class = C\nroot_dir = data\nimage_dir = images\nsubset = x\n")
    a = one("a", conf / "d.conf")
    assert a.image_dir == str(work / "there")
    assert a.caption_path == str(conf / "nowhere.json")  # where it is nowhere, the file's folder is named
    assert a.features_path == str(conf / "both")
    assert capsys.readouterr().err.count(f"both is there twice: {conf / 'both'} is used, {work / 'both'} is not") == 1
    b = one("b", conf / "d.conf")
    assert b.root_dir == str(conf / "data") and b.image_dir == str(work / "data/images")
    assert (
        b.path("x") == str(conf / "data/x")
        and b.path("/x") == "/x"
        and b.path("~no.such.user/x").endswith("~no.such.user/x")
    )
    monkeypatch.chdir(conf)
    assert one("a", "d.conf").image_dir == str(conf / "there")


NINE = "".join(f"k{n} = {f'%(k{n + 1})s' * 8}\n" for n in range(9))
CHAIN = "".join(f"k{n} = %(k{n + 1})s\n" for n in range(60))


@pytest.mark.parametrize(
    ("text", "spec", "words"),
    [
        (f"[a]\n{NINE}k9 = x\n", "a", ["[a]: k", "has more than 5,000 characters"]),  # 8 ** 9 of them
        (f"[a]\n{CHAIN}k60 = x\n", "a", ["others, these to others, more than 50 deep"]),
        ("[a]\nx = %(y)s\ny = %(x)s\n", "a", ["refers to itself"]),
        ("[a]\nroot_dir = a\0b\n", "a", ["line 2 has a NUL character"]),
        ("[a]\nx = " + "-" * 9000, "a", ["line 2 has more than 5,000 characters"]),
        ("[a]\nx" + " " * 4000 + "y\n", "a", ["line 2 has more than 200 blanks in a row"]),
        (b"#" * 2**21, "a", ["has more than 1,048,576 bytes"]),
        ("[a]\nx = 1\n", "-" * 9000, ["unknown dataset '---"]),
        (CONF, "cocoa", ["unknown dataset 'cocoa'", "coco:train2014", "rootless", "generic", "my.conf"]),
        (CONF, "coco:val", ["unknown dataset 'coco:val'"]),
        (CONF, "coco:train2014+", ["empty name"]),
        ("[a]\nroot_dir = /\n", "a", ["[a] sets no dataset_class"]),
        ("x = 1\n[a]\n", "a", ["line 1", "before the first [section]"]),
        ("[a]\nx = 1\n[a]\n", "a", ["line 3", "[a] is there twice"]),
        ("[a]\nx = 1\nx = 2\n", "a", ["line 3", "'x' is set twice"]),
        ("[a]\ndataset_class = C\nnonsense\n", "a", ["line 3", "nonsense"]),
        ("[a]\ndataset_class = C\nroot_dir = 100%\n", "a", ["[a]", "write %%"]),
        ("[a]\ndataset_class = C\nroot_dir = %(nowhere)s\n", "a", ["'nowhere', which is not set"]),
        ("[a]\ndataset_class = %(dataset_class)s\n", "a", ["refers to itself"]),
        (b"[a]\nroot_dir = \xff\n", "a", ["not UTF-8"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path, text, spec, words):
    path = tmp_path / "my.conf"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        get_datasets(spec, str(path))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_what_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "not a plain file"),
        ("/dev/zero", "not a plain file"),
        (tmp_path / ("x" * 300), "no such file"),
        ("a\0b", "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            get_datasets("a", str(path))


def test_the_template_that_comes_with_the_code_parses_and_its_examples_work(tmp_path):
    template = dataset_config.CODE_DIR / dataset_config.DEFAULT_FILE
    assert get_datasets("generic", str(template))
    path = tmp_path / "filled.conf"
    lines = template.read_text().splitlines()
    begin = lines.index("# [coco]")
    keep = [line[2:] for line in lines[begin:] if line.startswith("# [") or " = " in line]
    path.write_text("\n".join(keep))
    train, val = get_datasets("coco:train2014+coco:val2014", str(path))
    assert train.image_dir == "/path/to/coco/images/train2014_256x256"
    assert val.caption_path == "/path/to/coco/annotations/captions_val2014.json"
    assert one("holiday", path).dataset_class == "GenericDataset"
    sections = [line[1:-1] for line in keep if line.startswith("[")]
    assert {"vist:train", "msrvtt:validate", "trecvid2018", "picsom:COCO:train2014"} <= set(sections)
    for section in set(sections) - {"visualgenome"}:  # which only says what its children share
        assert one(section, path).dataset_class in DATASET_CLASSES
    assert one("visualgenome:regions:val", path).subset == "splits.json:val"
    assert one("msrvtt:validate", path).path("x.txt") == "/path/to/msrvtt/x.txt"
