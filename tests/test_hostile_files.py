"""Files that want harm: none runs code, ends the process, takes much memory or time; each is one line of an error.

Every file is read in a process of its own, forked from this one, which measures what the reading took.
"""

import io
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from deepcaption_toy import OldModel, save
from PIL import Image
from running import ROOT

from captioning import checkpoint
from captioning.config import FeatureSpec, ModelConfig
from captioning.encoder.factory import build_encoder
from captioning.encoder.weights import read_weights
from captioning.errors import UserError
from captioning.features.factory import open_features
from captioning.features.writer import FeatureWriter
from captioning.files import read_json
from captioning.images.image_file import open_image
from captioning.images.listing import list_images
from captioning.scoring.calibration import Calibration
from captioning.scoring.document_frequencies import CachedWords
from captioning.tensor_files import LEGACY_START
from model import Captioner, build_model, load_captioner, save_captioner
from vocabulary import Vocabulary

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

MOST_MEMORY = 500  # MB above that of the process
MOST_SECONDS = 20
FOREVER = 2**40
MEMO = b"\x80\x02]r" + struct.pack("<I", 2**28) + b"."
DEEP = b"\x80\x02}N" + b"\x85" * 200_000 + b"K\x01s."
LAUGHS = b"\x80\x02}K\x01q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"K\x01s."
LONG = b"\x80\x04\x8e" + struct.pack("<Q", FOREVER) + b"x."
HIDDEN_OBJECT = (  # a type of numpy whose state says that its eight bytes are the address of an object
    b"\x80\x04}(X\x12\x00\x00\x00document_frequency}X\x01\x00\x00\x00a\x85K\x01sX\x07\x00\x00\x00ref_len"
    b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00V8\x89\x88\x87R(K\x03X\x01\x00\x00\x00|N("
    b"X\x02\x00\x00\x00f0t}X\x02\x00\x00\x00f0cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87RK\x00\x86sK\x08K\x01K\x00tb"
    b"B\x08\x00\x00\x00ABCDEFGH\x86Ru."
)


class Code:
    """Makes a folder when it is read by a careless reader."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def model(own: dict | None = None, **changes) -> dict:
    """The contents of a small model file of settings `own`, with changes of its config."""
    vocabulary = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "a", "dog"])
    config = ModelConfig([FeatureSpec("x.npy", (8,), True, None)], embed_size=8, hidden_size=8, **(own or {}))
    captioner = Captioner(build_model(config, vocabulary), vocabulary)
    contents = {"format": 1, "config": config.to_dict(), "vocabulary": vocabulary.to_dict()}
    contents["state"] = captioner.model.trained_state()
    contents["config"].update(changes)
    return contents


TRANSFORMER = {"decoder": "transformer", "heads": 2, "num_layers": 1, "region_layers": 1, "positions": "learned"}
OF_TRANSFORMER = ("decoder", "heads", "num_layers", "region_layers", "positions", "max_positions", "feed_forward_size")


def with_maker(name: str) -> dict:
    spec = {"name": "x", "shape": (8,), "external": False, "maker": {"extractor": name}}
    return model(features=[spec])


def with_state(name: str, value) -> dict:
    contents = model()
    contents["state"] = {**contents["state"], name: value}
    return contents


def torch_bytes(contents, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


def rezipped(data: bytes, change, method=zipfile.ZIP_STORED) -> bytes:
    """The archive `data` with change(name, content) -> content for each member, as torch writes archives."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for info in new.filelist:
            info.external_attr = 0
    return buffer.getvalue()


def other_pickle(data: bytes, change) -> bytes:
    return rezipped(data, lambda name, content: change(content) if name.endswith("data.pkl") else content)


def twice(data: bytes) -> bytes:
    """The archive with a second member of a name that differs in capitals only."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name.replace("data.pkl", "DATA.pkl"), pickle.dumps({"format": 1}))
        archive.filelist[-1].external_attr = 0
    return buffer.getvalue()


def models(mark) -> dict[str, bytes]:
    whole = torch_bytes(model())
    legacy = torch_bytes({"encoder": {}, "decoder": {}}, _use_new_zipfile_serialization=False)
    size = {"config": {**model()["config"], "hidden_size": 2**19}}
    huge_storage = b"\x80\x02((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    huge_storage += b"\x8a\x06" + struct.pack("<Q", FOREVER)[:6] + b"NtQ]."
    return {
        "empty": b"",
        "garbage": os.urandom(5000),
        "half": whole[: len(whole) // 2],
        "code": torch_bytes({**model(), "extra": Code(mark)}),
        "code, old": torch_bytes({"encoder": Code(mark), "decoder": {}}, _use_new_zipfile_serialization=False),
        "code behind torch's first bytes": LEGACY_START + pickle.dumps(1001, 2) + pickle.dumps(Code(mark), 2),
        "large network": torch_bytes({**model(), **size}),
        "many layers": torch_bytes(model(num_layers=2**19)),
        "large transformer": torch_bytes(model(TRANSFORMER, hidden_size=2**19)),
        "many transformer layers": torch_bytes(model(TRANSFORMER, num_layers=2**19)),
        "many region layers": torch_bytes(model(TRANSFORMER, region_layers=2**19)),
        "many positions": torch_bytes(model(TRANSFORMER, max_positions=2**20)),
        "no transformer": torch_bytes(model(decoder="transformer")),
        "wide maps": torch_bytes(model(features=[{"name": "x", "shape": (2**40,), "external": True, "maker": None}])),
        "expanded": torch_bytes(with_state("x", torch.zeros(1).expand(2**20, 2**12))),
        "sparse": torch_bytes(with_state("x", torch.eye(3).to_sparse())),
        "meta": torch_bytes(with_state("x", torch.zeros(2**30, device="meta"))),
        "larger than its data": other_pickle(whole, lambda data: data.replace(b"K\x30", b"M\xff\x7f")),
        "memo": other_pickle(whole, lambda data: MEMO),
        "deep": other_pickle(whole, lambda data: DEEP),
        "laughs": other_pickle(whole, lambda data: LAUGHS),
        "long": other_pickle(whole, lambda data: LONG),
        "packed": rezipped(whole, lambda name, data: data + bytes(2**22), zipfile.ZIP_DEFLATED),
        "two of a name": twice(whole),
        "claims a terabyte, old": legacy[: legacy.index(b"}q")] + huge_storage,
        "memo, old": LEGACY_START + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + MEMO,
        "cut, old": legacy[: len(legacy) // 2],
        "hub": torch_bytes(with_maker("timm:hf-hub:somebody/something")),
        "hub by address": torch_bytes(with_maker("timm:hf_hub:somebody/something")),
        "open_clip hub": torch_bytes(with_maker("open_clip:hf-hub:somebody/something")),
        "open_clip path": torch_bytes(with_maker("open_clip:ViT-B-32/../../x")),
        "folder": torch_bytes(with_maker("timm:local-dir:/tmp")),
        "address": torch_bytes(with_maker("https://somewhere.example/x.pth")),
        "path": torch_bytes(with_maker("../../x")),
        "words": torch_bytes({**model(), "vocabulary": {"words": [[]] * 9}}),
    }


def vocabularies(mark) -> dict[str, bytes]:
    return {
        "memo": MEMO,
        "deep": DEEP,
        "laughs": LAUGHS,
        "long": LONG,
        "code": pickle.dumps(Code(mark)),
        "instance": b"(ios\nsystem\n.",
        "many lists": b"\x80\x02](" + b"]" * 300_000 + b"e.",
    }


def words(mark) -> dict[str, bytes]:
    arrays = io.BytesIO()
    parts = {"ngrams": np.zeros((2**21, 4), np.int32), "counts": np.ones(3), "tokens": np.zeros(3, np.uint8)}
    np.savez_compressed(arrays, images=np.ones(()), origin=np.array("x"), **parts)
    objects = io.BytesIO()
    np.savez(objects, tokens=np.array([Code(mark)], object), images=1)
    return {
        "address.pkl": HIDDEN_OBJECT,
        "memo.pkl": MEMO,
        "laughs.p": LAUGHS,
        "code.pkl": pickle.dumps({"document_frequency": Code(mark)}),
        "bomb.npz": arrays.getvalue(),
        "code.npz": objects.getvalue(),
        "infinite.json": b'{"document_frequency": {"a": 1e999}, "ref_len": 2}',
        "long number.pkl": pickle.dumps({"document_frequency": {("a",): 10**400}, "ref_len": 1}, 2),
    }


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def features(mark) -> dict[str, bytes]:
    objects = io.BytesIO()
    np.save(objects, np.array([Code(mark)], object), allow_pickle=True)
    nan = io.BytesIO()
    np.save(nan, np.full((3, 4), np.nan, np.float16))
    bins = struct.Struct("if7Q")
    magic = struct.unpack("i", b"PSBD")[0]
    return {
        "objects.npy": objects.getvalue(),
        "cut.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 2048), }", bytes(500)),
        "huge.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }"),
        "negative.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4), }", bytes(100)),
        "header.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{",
        "not finite.npy": nan.getvalue(),
        "cut.bin": bins.pack(magic, 1.0, 64, 8192, 2048, 1, 0, 0, 0) + bytes(20),
        "huge.bin": bins.pack(magic, 1.0, 64, 2**63, 2**60, 1, 0, 0, 0) + bytes(500),
        "list.txt": b"/dev/zero\n",
        "garbage.lmdb": os.urandom(9000),
        "garbage.h5": b"\x89HDF\r\n\x1a\n" + os.urandom(5000),
    }


def images() -> dict[str, bytes]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width: int, height: int) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")

    buffer = io.BytesIO()
    Image.new("1", (11_000, 11_000)).save(buffer, "PNG")
    return {
        "bomb.png": png(60_000, 60_000),
        "cut.png": png(7000, 7000),
        "black.png": buffer.getvalue(),
        "garbage.jpg": b"\xff\xd8\xff\xe0" + os.urandom(3000),
        "svg.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }


def zips() -> dict[str, bytes]:
    found = {}
    for name, method in (("deflate", zipfile.ZIP_DEFLATED), ("bz2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive, archive.open("a.png", "w") as member:
            for _ in range(16):
                member.write(bytes(2**20))
        data = bytearray(buffer.getvalue())
        found[f"{name}.zip"] = bytes(data)
        size = struct.pack("<I", 16 * 2**20)
        found[f"{name} lies.zip"] = bytes(data).replace(size, struct.pack("<I", 1000))
    return found


JSON = {"deep.json": b"[" * 200_000, "number.json": b"9" * 9000, "minus.json": b"-" * 9000, "bytes.json": b"\xff\xfe{"}


def read_first_image(path) -> None:
    open_image(list_images(path)[0])


def read_features(path) -> None:
    reader = open_features(path)
    reader.get_many(list(reader.keys())[:3])


READERS = {
    "model": load_captioner,
    "weights": read_weights,
    "vocabulary": Vocabulary.load,
    "words": CachedWords.load,
    "features": read_features,
    "image": open_image,
    "zip": read_first_image,
    "json": lambda path: read_json(path, "captions"),
}


@pytest.fixture(scope="module")
def mark(tmp_path_factory):
    return tmp_path_factory.mktemp("mark") / "it_ran"


@pytest.fixture(scope="module")
def files(tmp_path_factory, mark):
    """(reader, path) of every file."""
    folder = tmp_path_factory.mktemp("hostile")
    made = [("model", f"{name}.model", data) for name, data in models(mark).items()]
    made += [("weights", f"{name}.pth", data) for name, data in models(mark).items() if name in WEIGHTS]
    made += [("vocabulary", f"{name}.v.pkl", data) for name, data in vocabularies(mark).items()]
    made += [("words", name, data) for name, data in words(mark).items()]
    made += [("features", name, data) for name, data in features(mark).items()]
    made += [("image", name, data) for name, data in images().items()]
    made += [("zip", name, data) for name, data in zips().items()]
    made += [("json", name, data) for name, data in JSON.items()]
    for _, name, data in made:
        (folder / name).write_bytes(data)
    found = [(kind, folder / name) for kind, name, _ in made]
    endings = {"model": ".model", "weights": ".pth", "vocabulary": ".pkl", "words": ".npz", "image": ".png"}
    for kind, ending in {**endings, "features": ".npy", "json": ".json"}.items():
        for place in ("/dev/zero", "pipe", "folder"):
            path = folder / f"{place.strip('/').replace('/', '_')}.{kind}{ending}"
            if place == "pipe":
                os.mkfifo(path)
            elif place == "folder":
                path.mkdir()
            else:
                path.symlink_to(place)
            found.append((kind, path))
    return found


WEIGHTS = ("empty", "garbage", "half", "code", "code, old", "expanded", "memo", "laughs", "packed", "memo, old")


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) // 1024


def in_a_child(kind: str, path) -> tuple[int, dict]:
    """The exit status of reading `path` in a child, and what it says: message, MB, seconds."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        told = {"error": ""}
        try:
            signal.alarm(MOST_SECONDS + 10)
            torch.set_num_threads(1)
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            before, began = memory("VmRSS"), time.monotonic()
            try:
                READERS[kind](path)
            except BaseException as error:
                told = {"error": str(error), "user": isinstance(error, UserError)}
            told |= {"megabytes": memory("VmHWM") - before, "seconds": time.monotonic() - began}
            os.write(into, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as answer:
        data = answer.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(data or b"{}")


def test_none_of_them_does_harm(files, mark):
    assert len(files) >= 60
    bad = []
    for kind, path in files:
        status, told = in_a_child(kind, path)
        fine = status == 0 and told.get("user") and "\n" not in told["error"]
        fine = fine and told["megabytes"] < MOST_MEMORY and told["seconds"] < MOST_SECONDS
        if not fine or path.name not in told["error"]:
            bad.append((kind, path.name, status, told))
    assert not bad, "\n".join(map(str, bad))
    assert not mark.exists()


def test_an_encoder_is_named_plainly():
    for name in (
        "timm:hf-hub:a/b",
        "timm:hf_hub:a/b",
        "timm:local-dir:/x",
        "/x",
        "../x",
        "timm:../x",
        "open_clip:hf-hub:a/b",
        "open_clip:local-dir:/x",
        "open_clip:ViT-B-32/../x",
        "open_clip:ViT-B-32//x",
        "open_clip:a/b/c",
        "timm:a/b",
        "a:b",
        "a b",
        "",
    ):
        with pytest.raises(UserError, match="plain name"):
            build_encoder(name, pretrained=False)


LIES = [None, True, -1, 2**70, float("nan"), "x", b"x", [], [None], {}, {"x": 1}, (), torch.zeros(2), 10**6]


def leaves(value, place=()):
    """The places of everything in nested dicts and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in list(pairs)[:6]:
        yield (*place, key)
        yield from leaves(part, (*place, key))


def replaced(value, place, new):
    """`value` with `new` at `place`."""
    if not place:
        return new
    if isinstance(value, dict):
        return {key: replaced(part, place[1:], new) if key == place[0] else part for key, part in value.items()}
    return type(value)(replaced(part, place[1:], new) if i == place[0] else part for i, part in enumerate(value))


def test_no_entry_of_another_type_is_a_traceback(tmp_path):
    """Every entry of a model file, replaced by values of other types in turn."""
    maker = {"extractor": "alexnet", "weights_sha256": None, "transform": {"size": 64, "interpolation": "bilinear"}}
    whole = model()
    whole["config"]["features"][0]["maker"] = {**maker, "feature_type": "plain"}
    whole |= {
        "epoch": 3,
        "length_penalty": 0.5,
        "calibration": Calibration(4.0, 6.0, 0.5, 0.4, 1000, 0.03).to_dict(),
        "history": ["./train.py"],
        "command": ["train.py"],
        "stats": {"a": 1.0},
    }
    whole |= {"versions": {"torch": "2"}, "kind": "captioner"}
    path = tmp_path / "x.model"
    places = [(whole, place) for place in leaves(whole)]
    places += [(model(TRANSFORMER), ("config", name)) for name in OF_TRANSFORMER]
    for contents, place in places:
        for lie in LIES:
            torch.save(replaced(contents, place, lie), path)
            try:
                assert load_captioner(path, photos=False).length_penalty < 1e6
            except UserError as error:
                assert "x.model" in str(error) and "\n" not in str(error), (place, lie)
            except Exception as error:
                raise AssertionError(f"{place} = {lie!r}") from error


def test_a_model_is_whole_or_refused(tmp_path):
    """What the others change is read as it was."""
    checkpoint.save({k: v for k, v in model().items() if k != "format"}, tmp_path / "x.model")
    captioner = load_captioner(tmp_path / "x.model", photos=False)
    save_captioner(captioner, tmp_path / "y.model")
    save(OldModel().contents, tmp_path / "old.model")
    load_captioner(tmp_path / "old.model", photos=False)
    with FeatureWriter(tmp_path / "x.npy", (4,), "float16", None) as writer:
        writer.write("a", np.full(4, 65504))
    assert open_features(tmp_path / "x.npy").get_many(["a"]).tolist() == [[65504] * 4]


@pytest.mark.parametrize("own", [{}, TRANSFORMER], ids=["lstm", "transformer"])
def test_checking_a_model_imports_no_compiler(tmp_path, own):
    """What torch does by itself with random weights of tensors on meta takes more than a second."""
    torch.save(model(own), tmp_path / "x.model")
    code = "import sys; from model import load_captioner; load_captioner(sys.argv[1], photos=False)"
    code += "; sys.exit('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.model")], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
