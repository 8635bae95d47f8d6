"""Tar shards as a dataset: against webdataset's own reader, with damage of all kinds, and the index beside them."""

import gzip
import json
import re
import tarfile
from pathlib import Path

import pytest
from toy_shards import make_shards, make_tar, picture, write_section

from captioning.datasets import shard_index
from captioning.datasets.factory import open_dataset
from captioning.datasets.names import short_names
from captioning.errors import UserError, note_once
from captioning.images.archives import archive_of, read_member
from captioning.images.image_file import open_image
from data_loader import LoaderSettings, get_eval_loader

pytest.importorskip("webdataset")


@pytest.fixture
def opened(tmp_path):
    """open(urls) gives the dataset of shards in tmp_path."""

    def call(urls: str = "a.tar"):
        return open_dataset("shards", write_section(tmp_path, urls))

    return call


def captions(dataset) -> dict:
    return {item.image_id: list(item.captions) for item in dataset.items}


def as_json(value) -> bytes:
    return json.dumps(value).encode()


def test_what_a_sample_says(tmp_path, opened):
    about = {"image_id": 42, "key": "COCO_42.jpg", "captions": ["One.", " ", "Two."], "width": 3}
    make_tar(
        tmp_path / "a.tar",
        {
            "text.JPG": picture(0, "JPEG"),
            "text.txt": "\ufeffA café.\n\n  A dog,\u2028asleep \r\n".encode(),
            "sub/table.json": as_json(about),
            "sub/table.png": picture(1),
            "./one.webp": picture(2, "WEBP"),
            "./one.json": as_json({"caption": "From the web.", "key": "one", "url": "x"}),
            "./one.txt": b"not this one",
            "list.png": picture(3),
            "list.json": as_json(["a", "b"]),
            "bare.png": picture(4),
            "bare.json": as_json({"caption": None, "width": 3}),
            "only.txt": b"no picture",
            "mask.seg.png": picture(5),
            "._list.png": b"of a Mac",
        },
    )
    dataset = opened()
    assert captions(dataset) == {
        "text": ["A café.", "A dog,\u2028asleep"],
        42: ["One.", "Two."],
        "one": ["From the web."],
        "list": ["a", "b"],
        "bare": [],
    }
    assert [item.key for item in dataset.items] == ["text.JPG", "COCO_42.jpg", "one", "list.png", "bare.png"]
    for number, item in enumerate(dataset.items):
        assert read_member(item.path) == picture(number, ("JPEG", "PNG", "WEBP", "PNG", "PNG")[number])
        assert archive_of(item.path) == str(tmp_path / "a.tar")
    assert open_image(dataset.items[1].path).size == (16, 16)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_webdataset(tmp_path, opened, form):
    """Also long names, names with other letters, headers for all members, and shards that were put together."""
    import webdataset

    long = "folder/" * 12 + "x" * 60  # a name of 147 characters
    members = {f"{long}-{n}.png": picture(n) for n in range(3)} | {"mä.png": picture(3), "mä.cls": b"1"}
    make_tar(tmp_path / "a.tar", members, form, **({"pax_headers": {"comment": "x"}} if form == 2 else {}))
    make_tar(tmp_path / "c.tar", {"c.png": picture(4)}, form)
    (tmp_path / "b.tar").write_bytes(b"".join((tmp_path / name).read_bytes() for name in ("c.tar", "a.tar")))
    urls = str(tmp_path / "{a,c}.tar")
    theirs = [(one["__key__"], one["png"]) for one in webdataset.WebDataset(urls, shardshuffle=False)]
    dataset = opened("{a,c}.tar")
    assert [(item.image_id, read_member(item.path)) for item in dataset.items] == theirs
    assert not dataset.damaged and len(theirs) == 5
    both = opened("b.tar")
    assert len(both) == 5 and not both.damaged


def test_shards_that_share_ids(tmp_path, opened, capsys):
    for name in "ab":
        make_tar(tmp_path / f"{name}.tar", {"1.png": picture(1), "1.txt": name.encode(), f"{name}.png": picture(2)})
    dataset = opened("{a,b}.tar")
    assert captions(dataset) == {"1": ["a"], "a": [], "b/1": ["b"], "b": []}
    assert [item.key for item in dataset.items] == ["1.png", "a.png", "b/1.png", "b.png"]
    assert "ids of several samples" in capsys.readouterr().err


# ---- damage ----


def three(tmp_path) -> bytearray:
    """A shard of three samples: blocks of 512 bytes, for each sample a header, a picture, a header, a caption."""
    members = {}
    for number in range(3):
        members |= {f"{number}.png": picture(number), f"{number}.txt": b"photo %d" % number}
    return bytearray(make_tar(tmp_path / "whole.tar", members).read_bytes())


def place_of(content: bytes, name: str) -> int:
    return bytes(content).index(name.encode() + b"\0")


@pytest.mark.parametrize(
    "damage, left, told",
    [
        ("cut in a picture", {"0": ["photo 0"], "1": ["photo 1"]}, "it is cut off in 2.png"),
        ("cut in a header", {"0": ["photo 0"], "1": ["photo 1"]}, "it is cut off, or damaged, at byte"),
        ("cut between", {"0": ["photo 0"], "1": ["photo 1"], "2": []}, "it is cut off, or damaged, at byte"),
        ("header", {"0": ["photo 0"], "1": [], "2": ["photo 2"]}, "damaged from byte"),
        ("first header", {"0": [], "1": ["photo 1"], "2": ["photo 2"]}, ""),
        ("noise at the end", {"0": ["photo 0"], "1": ["photo 1"], "2": ["photo 2"]}, "it is cut off, or damaged"),
    ],
)
def test_damaged_shards(tmp_path, opened, capsys, damage, left, told):
    content = three(tmp_path)
    if damage == "cut in a picture":
        del content[place_of(content, "2.png") + 600 :]
    elif damage == "cut in a header":
        del content[place_of(content, "2.png") + 100 :]
    elif damage == "cut between":
        del content[place_of(content, "2.txt") :]
    elif damage == "header":
        content[place_of(content, "1.txt") + 150] ^= 7
    elif damage == "noise at the end":
        content[-300:] = b"x" * 300
    else:  # the picture's own block begins the file then: webdataset itself would stop
        content[place_of(content, "0.txt") + 150] ^= 7
    (tmp_path / "a.tar").write_bytes(content)
    dataset = opened()
    assert captions(dataset) == left
    line = f"a.tar: {told}"
    assert len(dataset.damaged) == 1 and line in dataset.damaged[0]
    assert capsys.readouterr().err.count("warning: ") == 1
    loader = get_eval_loader(dataset, settings=LoaderSettings(4, num_workers=0), transform=lambda image, seed: tensor())
    assert loader.bad_items == dataset.damaged and len(loader.items) == len(left)
    assert captions(opened()) == left and opened().damaged == dataset.damaged  # the index knows of it


def tensor():
    import torch

    return torch.zeros(3, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    "size, kind",
    [(-512, tarfile.REGTYPE), (-2048, tarfile.REGTYPE), (-512, tarfile.GNUTYPE_LONGNAME), (10**15, tarfile.XHDTYPE)],
)
def test_a_size_that_makes_no_sense_ends_the_shard(tmp_path, opened, size, kind):
    content = three(tmp_path)
    place = place_of(content, "1.png")
    info = tarfile.TarInfo.frombuf(bytes(content[place : place + 512]), "utf-8", "strict")
    info.size, info.type = size, kind
    content[place : place + 512] = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(content)
    assert captions(opened()) == {"0": ["photo 0"]}
    assert re.search(rf"damaged,? at byte {place:,}", opened().damaged[0])


def test_a_shard_of_zeros_is_named(tmp_path, opened):
    """As a power failure leaves a file whose length reached the disk and whose content did not."""
    make_tar(tmp_path / "a.tar", {"1.png": picture(1)})
    (tmp_path / "b.tar").write_bytes(bytes(20_480))
    assert opened("{a,b}.tar").damaged == [f"{tmp_path}/b.tar: there is nothing in it"]


def test_broken_members_are_named_and_passed_over(tmp_path, opened, capsys):
    names = {"0.json": b'{"captions": [1]}', "1.json": b"{", "2.json": b"\xff", "3.json": b'{"image_id": 1.5}'}
    names |= {"4.txt": b"x" * (2**20 + 1), "5.txt": b"\xff\xfe", "6.json": as_json({"image_id": ""})}
    names |= {"7.json": as_json({"key": "two\nlines"})}
    members = {}
    for number, (name, content) in enumerate(names.items()):
        members |= {f"{number}.png": picture(number), name: content}
    members |= {"../out.png": picture(0), "/etc/out.png": picture(0), "two\nlines.png": picture(0)}
    members |= {"8.png": b"no picture", "8.txt": b"lost"}
    make_tar(tmp_path / "a.tar", members)
    dataset = opened()
    assert captions(dataset) == {**{str(number): [] for number in range(8)}, "8": ["lost"]}
    assert [line.split(" ")[1] for line in dataset.damaged[:3]] == [
        "'../out.png'",
        "'/etc/out.png'",
        "'two\\nlines.png'",
    ]
    assert [line.partition(".tar: ")[2].split(" ")[0] for line in dataset.damaged[3:]] == list(names)
    capsys.readouterr()
    loader = get_eval_loader(
        dataset, settings=LoaderSettings(10, num_workers=0), transform=lambda image, seed: tensor()
    )
    (batch,) = loader
    assert [item.image_id for item in batch.items] == [str(number) for number in range(8)]
    assert loader.bad_items[-1].startswith(f"cannot read image {tmp_path}/a.tar/8.png: not a JPEG")
    assert capsys.readouterr().err == f"warning: {loader.bad_items[-1]}\n"


def test_links_are_named(tmp_path, opened):
    """What they lead to may be in no shard."""
    make_tar(tmp_path / "a.tar", {"1.png": picture(1)})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind in (("1.txt", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.png"
            tar.addfile(info)
    dataset = opened()
    assert captions(dataset) == {"1": []}
    assert [line.partition(".tar: ")[2] for line in dataset.damaged] == [
        "1.txt is left out: it is a link",
        "2.png is left out: it is a link",
    ]


def test_what_is_said_of_images_and_of_shards(tmp_path, opened):
    make_tar(tmp_path / "a.tar", {"1.png": picture(1), "1.json": b"{", "2.png": b"nothing"})
    dataset = opened()
    loader = get_eval_loader(dataset, settings=LoaderSettings(9, num_workers=0), transform=lambda image, seed: tensor())
    assert len(list(loader)) == 1 and len(loader.bad_items) == 2
    assert (
        dataset.bad_line(loader.bad_items, "images lost") == "1 images lost, 1 places in shards are damaged or left out"
    )
    assert dataset.bad_line(dataset.damaged * 2, "images lost") == "1 places in shards are damaged or left out"
    assert dataset.bad_line(["a", "b"], "images lost") == "2 images lost"
    assert dataset.bad_line([], "images lost") == ""


def test_a_shard_that_is_cut_while_it_is_in_use(tmp_path, opened):
    make_shards(tmp_path, [2])
    dataset = opened("s-0.tar")
    (tmp_path / "s-0.tar").write_bytes((tmp_path / "s-0.tar").read_bytes()[:1000])
    with pytest.raises(UserError, match="s-0.tar/000001.png: the tar file is cut off there"):
        open_image(dataset.items[1].path)
    (tmp_path / "s-0.tar").unlink()
    with pytest.raises(UserError, match="s-0.tar/000001.png: No such file"):
        open_image(dataset.items[1].path)


# ---- the index ----


def test_the_index_is_used_until_the_shard_changes(tmp_path, opened, monkeypatch, capsys):
    urls = make_shards(tmp_path, [2, 1])
    first = captions(opened(urls))
    read, real = [], shard_index.read_shard
    monkeypatch.setattr(shard_index, "own_cores", lambda: 1)
    monkeypatch.setattr(shard_index, "read_shard", lambda path: read.append(Path(path).name) or real(path))
    assert captions(opened(urls)) == first and not read
    make_tar(tmp_path / "s-1.tar", {"9.png": picture(9), "9.txt": b"another"})
    changed = {**{key: first[key] for key in ("000000", "000001")}, "9": ["another"]}
    assert captions(opened(urls)) == changed and read == ["s-1.tar"]
    index = tmp_path / "s-0.tar.index"
    sound = index.read_text()
    content = json.loads(sound)
    wrong = [sound[:50], "[]", "[" * 10_000, json.dumps(content | {"form": 0}), json.dumps(content | {"bare": [1]})]
    for row in (
        ["000000"],
        [1.5, "k", "n", 0, 1, []],
        ["i", "k", "n", "0", 1, []],
        ["i", "k", "n", 0, 1, "text"],
        ["i", "k", "../n", 0, 1, []],
    ):
        wrong.append(json.dumps(content | {"samples": [row]}))
    for text in wrong:
        read.clear()
        index.write_text(text)
        assert captions(opened(urls)) == changed and read == ["s-0.tar"], text[:80]
        assert json.loads(index.read_text()) == content
    index.unlink()
    (tmp_path / "s-1.tar.index").unlink()
    for number in (0, 1):
        (tmp_path / f"s-{number}.tar.index").mkdir()  # where nothing can be written
    note_once.cache_clear()
    capsys.readouterr()
    assert captions(opened(urls)) == changed == captions(opened(urls))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "2 shards are read at every start, since their indexes cannot be kept" in said
    (tmp_path / ".s-0.tar.index.abcd1234.tmp").write_text("of a killed process")
    opened(urls)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_several_processes_read_the_shards(tmp_path, opened, monkeypatch, capsys):
    monkeypatch.setattr(shard_index, "own_cores", lambda: 2)
    urls = make_shards(tmp_path, [1, 2, 3, 2, 1])
    assert captions(opened(urls)) == {f"{number:06d}": [f"photo {number}"] for number in range(9)}
    assert capsys.readouterr() == ("", "")


# ---- mistakes ----


def test_mistakes_of_the_section(tmp_path, opened, monkeypatch):
    make_shards(tmp_path, [1])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "s-0.tar").read_bytes()))
    (tmp_path / "packed.tar").write_bytes((tmp_path / "a.tar.gz").read_bytes())
    (tmp_path / "empty.tar").write_bytes(b"")
    make_tar(tmp_path / "none.tar", {"a.txt": b"a"})
    mistakes = {
        "": "set urls in .*datasets.conf",
        "s-{0..2}.tar": "2 of 3 shards are missing: .*s-1.tar, .*s-2.tar",
        "s-{0..": "urls = s-{0..",
        "http://a/s-{0..1}.tar": "only files can be read",
        "pipe:cat s-0.tar": "only files can be read",
        "a.tar.gz": "a.tar.gz does not end in .tar",
        "packed.tar": "packed.tar is no tar file: .*gunzip",
        "empty.tar": "empty.tar is no tar file: empty file",
        "none.tar": "there are no pictures in none.tar",
        "s-{0..99999999}.tar": "more than 100,000 shards",
        "s-{0..999}{0..999}.tar": "more than 100,000 shards",
    }
    for urls, message in mistakes.items():
        with pytest.raises(UserError, match=message) as caught:
            opened(urls)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(shard_index, "is_installed", lambda module: False)
    with pytest.raises(UserError, match="needs a package: pip install webdataset"):
        opened("s-0.tar")


def test_shards_without_a_section(tmp_path):
    """--dataset names the shards themselves, also with braces, and beside captions of another kind."""
    for number in range(3):
        sample = {f"{number}.png": picture(number), f"{number}.txt": b"A dog.\n"}
        make_tar(tmp_path / f"s-{number}.tar", sample)
    pattern = f"{tmp_path}/s-{{0..2}}.tar"
    assert captions(open_dataset(pattern)) == {str(number): ["A dog."] for number in range(3)}
    assert len(open_dataset(f"{tmp_path}/s-0.tar::{tmp_path}/s-2.tar")) == 2
    picture_file = tmp_path / "own" / "x.png"
    picture_file.parent.mkdir()
    picture_file.write_bytes(picture(0))
    picture_file.with_suffix(".txt").write_text("A cat.")
    assert len(open_dataset(f"{pattern}+{picture_file.parent}")) == 4
    assert short_names(f"{pattern}+{tmp_path}/s-1.tar") == "s-0..2+s-1"
    with pytest.raises(UserError, match=r"^--validate .*s-\{2\.\.3\}\.tar: 1 of 2 shards are missing: .*s-3\.tar"):
        open_dataset(f"{tmp_path}/s-{{2..3}}.tar", option="--validate")
    with pytest.raises(UserError, match="--images .* has its images in it"):
        open_dataset(pattern, images=str(tmp_path))
