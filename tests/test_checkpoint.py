"""Model files: what goes in comes out, and nothing that is damaged or dangerous is believed."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from captioning import checkpoint
from captioning.errors import UserError

CONTENTS = {
    "state": {"a.weight": torch.arange(12.0).view(3, 4), "a.half": torch.ones(5).half(), "steps": torch.tensor(7)},
    "config": {"hidden_size": 512, "attention": None, "dropout": 0.5, "features": [{"name": "x", "shape": (3, 7, 7)}]},
    "vocabulary": {"words": ["<pad>", "hund", "größe"], "lowercase": True},
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "best.model"
    checkpoint.save(CONTENTS, path)
    return path


def test_what_goes_in_comes_out(model_file):
    contents = checkpoint.load(str(model_file))
    assert {"format", "versions", *CONTENTS} == set(contents)
    assert same(CONTENTS, {name: contents[name] for name in CONTENTS})
    assert contents["format"] == checkpoint.FORMAT
    assert contents["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert os.listdir(model_file.parent) == ["best.model"]


def test_a_folder_is_made(tmp_path):
    checkpoint.save(CONTENTS, tmp_path / "models" / "run" / "ep1.model")
    assert same(CONTENTS["state"], checkpoint.load(tmp_path / "models" / "run" / "ep1.model")["state"])


def test_a_failed_save_leaves_the_old_file(model_file, monkeypatch):
    before = model_file.read_bytes()

    def full_disk(contents, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="best.model: No space left on device"):
        checkpoint.save({"state": {}}, model_file)
    assert model_file.read_bytes() == before
    assert os.listdir(model_file.parent) == ["best.model"]


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.zeros(3), object(), {"deep": [np.int64(3)]}], ids=lambda v: type(v).__name__
)
def test_what_could_not_be_read_again_is_not_written(model_file, value):
    before = model_file.read_bytes()
    with pytest.raises(TypeError, match="extra"):
        checkpoint.save({**CONTENTS, "extra": value}, model_file)
    assert model_file.read_bytes() == before


def test_every_damaged_byte_is_found_or_does_no_harm(model_file):
    """Flip one byte at a time: the file is refused by name, or its contents are the same."""
    whole = model_file.read_bytes()
    original = checkpoint.load(model_file)
    random = np.random.default_rng(0)
    tail = len(whole) - 1200  # the zip directory, where damage is the most varied
    places = [*random.choice(tail, 150, replace=False), *range(tail, len(whole), 9)]
    found = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        model_file.write_bytes(damaged)
        try:
            contents = checkpoint.load(model_file)
        except UserError as error:
            found += 1
            assert str(model_file) in str(error)
        else:
            assert same(original, contents), place
    assert found > len(places) / 4


def test_a_flipped_weight_is_found(model_file):
    data = bytearray(model_file.read_bytes())
    place = data.index(np.arange(12, dtype="<f4").tobytes()) + 17
    data[place] ^= 1
    model_file.write_bytes(data)
    with pytest.raises(UserError, match=r"best\.model is damaged \(.*data"):
        checkpoint.load(model_file)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(model_file, share):
    data = model_file.read_bytes()
    model_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"best\.model is damaged"):
        checkpoint.load(model_file)


def test_garbage(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" + os.urandom(5000))
    with pytest.raises(UserError, match=r"photo\.jpg"):
        checkpoint.load(path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, form):
    path, mark = tmp_path / "evil.model", tmp_path / "it_ran"
    if form == "zip":
        torch.save({"format": 1, "state": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"format": 1, "state": Bomb(mark)}))
    with pytest.raises(UserError, match=r"evil\.model"):
        checkpoint.load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "contents",
    [{"weight": torch.zeros(2)}, [1, 2], torch.zeros(3), {"format": "safetensors"}, {"format": None}],
    ids=str,
)
def test_a_file_of_another_program(tmp_path, contents):
    path = tmp_path / "other.pth"
    torch.save(contents, path)
    with pytest.raises(UserError, match=r"other\.pth is not a model file of this toolkit"):
        checkpoint.load(path)


def test_any_other_zip_archive(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match=r"photos\.zip"):
        checkpoint.load(path)


def test_a_newer_format(tmp_path):
    path = tmp_path / "new.model"
    torch.save({"format": checkpoint.FORMAT + 1}, path)
    with pytest.raises(UserError, match=r"new\.model has format 2, newer"):
        checkpoint.load(path)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"no such model file: .*nowhere\.model"):
        checkpoint.load(tmp_path / "nowhere.model")
    with pytest.raises(UserError, match=r"is a folder.*best\.model"):
        checkpoint.load(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save(CONTENTS, tmp_path / "file" / "best.model")


def test_a_file_of_another_machine_with_compressed_members(model_file):
    """Zipped anew by a person: torch cannot read it, and says so in one line."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    model_file.write_bytes(buffer.getvalue())
    try:
        assert same(CONTENTS["state"], checkpoint.load(model_file)["state"])
    except UserError as error:
        assert str(model_file) in str(error)


def test_no_flipped_bit_of_the_directory_is_accepted_with_other_weights(tmp_path):
    """The directory of members is no part of any checksum: torch leaves such tensors uninitialised."""
    path = tmp_path / "x.model"
    weights = {"w": torch.randn(7, 5), "b": torch.randn(3), "n": torch.tensor(3)}
    checkpoint.save({"state": weights}, path)
    good, refused = path.read_bytes(), 0
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    for place in range(8 * start, 8 * len(good)):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            state = checkpoint.load(path)["state"]
        except UserError:
            refused += 1
            continue
        assert all(torch.equal(state[name], weights[name]) for name in weights), f"bit {place - 8 * start}"
    assert refused > 2000


@pytest.mark.slow
def test_no_flipped_bit_anywhere_is_accepted_with_other_weights(tmp_path):
    path = tmp_path / "x.model"
    weights = {f"layer{i}": torch.randn(40, 30) for i in range(8)}
    checkpoint.save({"state": weights, "vocabulary": {"words": [f"word{i}" for i in range(500)]}}, path)
    good, random = path.read_bytes(), np.random.default_rng(0)
    original = checkpoint.load(path)
    for place in random.choice(8 * len(good), 1500, replace=False):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert same(original, checkpoint.load(path)), f"bit {place}"
        except UserError as error:
            assert str(path) in str(error)
