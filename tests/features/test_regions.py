"""Features with another number of regions for each image: their files, and what models make of them."""

import base64
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import feature_map, feature_vector, make_coco, write_config

from captioning.batches.arrays import tensors_for
from captioning.batches.features import FeatureFiles
from captioning.batches.inputs import check_file
from captioning.config import FeatureSpec, ModelConfig
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.decoder.search import Search, generate
from captioning.errors import UserError
from captioning.fast.steps import fast_decoder, ready
from captioning.features.convert import convert
from captioning.features.factory import is_feature_file, open_features
from captioning.features.writer import FeatureWriter
from captioning.rows import Packing
from captioning.text.tokens import SPECIALS
from model import Captioner, build_model, caption_features, load_captioner
from vocabulary import Vocabulary

D = 16
VOCABULARY = Vocabulary([*SPECIALS, *"abcdefg"])


def regions_of(number: int) -> np.ndarray:
    """From 2 to 5 regions, of which one knows the scene."""
    return feature_map(number, D, 3).reshape(D, 9).T[3 : 5 + number % 4].copy()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """24 training and 12 validation images of COCO's names with a folder of regions and one of vectors."""
    root = tmp_path_factory.mktemp("regions")
    make_coco(root, {"train": 24, "val": 12})
    write_config(root, ["train", "val"])
    for folder in ("att", "fc"):
        (root / "features" / folder).mkdir(parents=True)
    for number in range(1, 37):
        np.savez_compressed(root / f"features/att/{number}.npz", feat=regions_of(number))
        np.save(root / f"features/fc/{number}.npy", feature_vector(number, D))
    convert(str(root / "features/att"), root / "features/att.lmdb")
    return root


# ---- files ----


def test_a_folder_gives_padded_records(root):
    reader = open_features(root / "features/att/")
    assert reader.shape == (0, D) and len(reader) == 36 and is_feature_file("att/") and not is_feature_file("att")
    found = reader.get_many(["3", "4", "5"])
    assert found.shape == (3, 5, D)
    for row, number in zip(found, (3, 4, 5)):
        own = regions_of(number)
        assert np.array_equal(row[: len(own)], own) and not row[len(own) :].any()
    others = ["3.jpg", "../att/3", "40", "", "a\0b", "x" * 5000]
    assert reader.missing(["3", *others]) == others
    with pytest.raises(UserError, match="has no record for '40'"):
        reader.get_many(["40"])
    vectors = open_features(root / "features/fc")
    assert vectors.shape == (D,) and np.array_equal(vectors.get_many(["7"])[0], feature_vector(7, D))


def test_one_lmdb_file_has_the_same_records(root):
    folder, file = (open_features(root / f"features/{name}") for name in ("att", "att.lmdb"))
    assert file.shape == (0, D) and len(file) == 36
    keys = [str(number) for number in range(1, 37)]
    assert np.array_equal(file.get_many(keys), folder.get_many(keys))
    with pytest.raises(UserError, match="has no record"):
        file.get_many(["99"])


@pytest.mark.parametrize("kind", ["folder", "h5"])
def test_images_are_found_by_name_or_number_unless_several_have_it(tmp_path, kind):
    names = "COCO_train_000000000004.jpg", "7.jpg", "cat_12.jpg", "dog_12.jpg"
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "att").mkdir()
    for number in (4, 7, 12):
        np.savez(tmp_path / f"att/{number}.npz", feat=np.full((2, 3), number, np.float32))
    name = "att/"
    if kind == "h5":
        name = "att.h5"
        with pytest.importorskip("h5py").File(tmp_path / name, "w") as file:
            for number in (4, 7, 12):
                file[str(number)] = np.full((2, 3), number, np.float32)
    files = FeatureFiles(GenericDataset(image_dir=str(tmp_path)), str(tmp_path / name))
    items = {item.key: item for item in GenericDataset(image_dir=str(tmp_path)).items}
    with pytest.raises(UserError, match=r"no record for 'cat_12.jpg' \(and 1 other images"):
        files.check(items.values())
    found = [items[name] for name in names[:2]]
    files.check(found)
    assert files.get(found)[:, 0, 0].tolist() == [4, 7]


def test_a_folder_of_two_kinds_of_files_is_refused(tmp_path):
    np.savez(tmp_path / "1.npz", feat=np.ones((2, 4), np.float32))
    np.save(tmp_path / "1.npy", np.ones(4, np.float32))
    (tmp_path / "2.npz").mkdir()
    (tmp_path / "._1.npz").write_bytes(b"of a Mac")
    with pytest.raises(UserError, match="holds .npz and .npy files: put these into a folder of their own"):
        open_features(tmp_path)
    (tmp_path / "1.npy").unlink()
    assert list(open_features(tmp_path).keys()) == ["1"]


@pytest.mark.parametrize("damage", [bytes(8), b"\xff" * 8, b"PK\x03\x04" * 2])
def test_damage_anywhere_in_a_file_is_no_traceback(tmp_path, damage):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, feat=feature_map(1, D, 4).reshape(-1, D))
    whole, refused = buffer.getvalue(), 0
    for place in range(0, len(whole) - len(damage), 17):
        (tmp_path / "1.npz").write_bytes(whole[:place] + damage + whole[place + len(damage) :])
        try:
            open_features(tmp_path).get_many(["1"])
        except UserError:  # any other error would be a traceback
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_that_claims_to_be_larger_than_any_memory(tmp_path, suffix):
    header = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 4)}
    np.lib.format.write_array_header_1_0(header, description)
    if suffix == ".npz":
        with zipfile.ZipFile(tmp_path / "1.npz", "w") as file:
            file.writestr("feat.npy", header.getvalue())
    else:
        (tmp_path / "1.npy").write_bytes(header.getvalue())
    with pytest.raises(UserError, match=rf"1\{suffix}"):
        open_features(tmp_path)


def test_numbers_of_other_types_are_not_rounded_to_float16(tmp_path):
    for number, dtype in ((1, np.float16), (2, np.float32)):
        np.savez(tmp_path / f"{number}.npz", feat=np.ones((2, 4), dtype))
    with pytest.raises(UserError, match=r"2\.npz has numbers of the type float32, other records float16"):
        open_features(tmp_path).get_many(["1", "2"])


@pytest.mark.parametrize("bad", ["empty", "cut", "object", "other", "three", "wide", "nan", "text", "none", "huge"])
def test_files_that_are_no_regions(tmp_path, bad):
    np.savez(tmp_path / "1.npz", feat=np.ones((2, 4), np.float32))
    buffer = io.BytesIO()
    arrays = {
        "object": {"feat": np.array([None])},
        "other": {"y": np.ones((2, 4))},
        "three": {"feat": np.ones((2, 2, 4))},
        "wide": {"feat": np.ones((2, 5))},
        "nan": {"feat": np.full((2, 4), np.nan)},
        "none": {"feat": np.ones((0, 4))},
        "huge": {"feat": np.full((2, 4), 1e300)},
    }
    np.savez(buffer, **arrays.get(bad, {"feat": np.ones((2, 4))}))
    data = {"empty": b"", "text": b"hello", "cut": buffer.getvalue()[:100]}.get(bad, buffer.getvalue())
    (tmp_path / "2.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"2\.npz|'2'") as caught:
        open_features(tmp_path).get_many(["1", "2"])
    assert "\n" not in str(caught.value)


def test_a_converted_file_serves_images_by_their_names_without_extensions(tmp_path):
    make_coco(tmp_path, {"own": 2})
    write_config(tmp_path, ["own"])
    dataset = open_dataset("toy:own", str(tmp_path / "datasets.conf"))
    (tmp_path / "features/att").mkdir(parents=True)
    for number, item in enumerate(dataset.items, 1):
        np.savez(tmp_path / f"features/att/{Path(item.key).stem}.npz", feat=np.full((2, 3), number, np.float32))
    convert(str(tmp_path / "features/att"), tmp_path / "features/att.lmdb")
    for name in ("att/", "att.lmdb"):
        files = FeatureFiles(dataset, name)
        files.check(dataset.items)
        assert files.get(list(dataset.items))[:, 0, 0].tolist() == [1, 2]


def test_a_folder_without_features(tmp_path):
    with pytest.raises(UserError, match="holds no .npz or .npy files"):
        open_features(tmp_path)


def boxes_of(number: int) -> np.ndarray:
    """Boxes of the regions in a photo of 640x480."""
    corners = np.random.default_rng(number).random((len(regions_of(number)), 4)) * [320, 240, 320, 240]
    return (corners + [0, 0, 320, 240]).astype(np.float32)


def tsv_line(number: int) -> str:
    regions, boxes = regions_of(number), boxes_of(number)
    fields = [str(number), "640", "480", str(len(regions))]
    return "\t".join([*fields, *(base64.b64encode(x.astype("<f4").tobytes()).decode() for x in (boxes, regions))])


def test_a_tsv_of_bottom_up_features(root, script, tmp_path):
    (tmp_path / "a.tsv").write_text("\n".join(map(tsv_line, range(1, 9))) + "\n")
    flags = ["--convert", tmp_path / "a.tsv", "--output_file", tmp_path / "a.lmdb"]
    done = script("extract_features.py", *flags)
    assert done.status == 0 and "8 records of" in done.out, done.err
    keys = [str(number) for number in range(1, 9)]
    assert np.array_equal(
        open_features(tmp_path / "a.lmdb").get_many(keys), open_features(root / "features/att").get_many(keys)
    )
    done = script("extract_features.py", *flags)
    assert done.status == 2 and "--force replaces it" in done.err
    assert script("extract_features.py", *flags, "--force", "--dtype", "float16").status == 0
    for text in ("1\t2\t3\n", tsv_line(1).replace("\t", "\t9", 3) + "\n", ""):
        (tmp_path / "bad.tsv").write_text(text)
        done = script("extract_features.py", "--convert", tmp_path / "bad.tsv", "--output_file", tmp_path / "b.lmdb")
        assert done.status == 2 and "bad.tsv" in done.err and done.err.count("\n") == 1, done.err


def test_bad_lines_of_a_tsv_are_left_out_by_name(script, tmp_path):
    lines = [tsv_line(1), "", tsv_line(2)[:-7], tsv_line(3), tsv_line(1), "4\t640"]  # cut off, twice, cut off
    lines += [tsv_line(5).replace("\t3\t", "\t4\t"), tsv_line(6).replace("\t4\t", "\t0\t")]  # of so many boxes
    source, file = tmp_path / "train.tsv.0", tmp_path / "a.lmdb"
    source.write_text("\r\n".join(lines) + "\r\n")
    done = script("extract_features.py", "--convert", source, "--output_file", file)
    assert done.status == 1 and "Traceback" not in done.err, done.err
    for told in ("line 3: no", "'1' is there twice", "line 6: no bottom-up features: 2 fields", "line 8: no"):
        assert done.err.count(told) == 1
    assert "'5' has the shape (4, 12), other records (R, 16)" in done.err and "5 records could not be used" in done.err
    assert list(open_features(file).keys()) == ["1", "3"]


def test_a_damaged_file_of_a_folder_is_left_out_by_name(tmp_path, capsys):
    (tmp_path / "att").mkdir()
    for number in range(1, 5):
        np.savez(tmp_path / f"att/{number}.npz", feat=regions_of(number) if number < 4 else np.ones((2, D + 1)))
    (tmp_path / "att/2.npz").write_bytes(b"PK" + bytes(50))
    count, left_out = convert(str(tmp_path / "att"), tmp_path / "att.lmdb")
    assert count == 2 and ["2.npz" in left_out[0], "4.npz" in left_out[1]] == [True, True]
    assert capsys.readouterr().err.count("left out\n") == 2
    assert list(open_features(tmp_path / "att.lmdb").keys()) == ["1", "3"]


@pytest.mark.parametrize("kind", ["tsv", "folder"])
def test_an_interrupted_conversion_goes_on(root, script, monkeypatch, tmp_path, kind):
    source, file = tmp_path / "a.tsv", tmp_path / "a.lmdb"
    source.write_text("\n".join(map(tsv_line, range(1, 9))) + "\n")
    source = source if kind == "tsv" else root / "features/att"
    write, calls = FeatureWriter.write, []

    def interrupted(writer, key, numbers):
        calls.append(key)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(writer, key, numbers)

    monkeypatch.setattr(FeatureWriter, "write", interrupted)
    flags = ["--convert", source, "--output_file", file]
    done = script("extract_features.py", *flags)
    assert done.status == 130 and "has the records so far: add --resume to go on" in done.err
    done = script("extract_features.py", *flags)
    assert done.status == 2 and "--resume" in done.err and not file.exists()
    done, first = script("extract_features.py", *flags, "--resume"), calls[:3]
    assert done.status == 0 and not set(first) & set(calls[4:]), done.err
    reader, numbers = open_features(file), range(1, 9 if kind == "tsv" else 37)
    assert len(reader) == len(numbers)
    for number in numbers:
        assert np.array_equal(reader[str(number)], regions_of(number))


def test_boxes_of_tsv_and_npz_files_stand_behind_their_regions(script, tmp_path):
    (tmp_path / "a.tsv").write_text("\n".join(map(tsv_line, range(1, 5))) + "\n")
    (tmp_path / "att").mkdir()
    for number in range(1, 5):
        boxes = {"bbox": boxes_of(number), "image_w": 640, "image_h": 480}
        np.savez(tmp_path / f"att/{number}.npz", x=regions_of(number), num_bbox=len(regions_of(number)), **boxes)
    for source in ("a.tsv", "att"):
        file = tmp_path / f"{source}.lmdb"
        done = script("extract_features.py", "--convert", tmp_path / source, "--output_file", file, "--boxes")
        assert done.status == 0, done.err
        for number in range(1, 5):
            found, regions = open_features(file)[str(number)], regions_of(number)
            assert found.shape == (len(regions), D + 5) and np.array_equal(found[:, :D], regions)
            for row, (x1, y1, x2, y2) in zip(found, boxes_of(number).tolist()):
                five = [x1 / 640, y1 / 480, x2 / 640, y2 / 480, (x2 - x1) * (y2 - y1) / (640 * 480)]
                assert row[D:].tolist() == pytest.approx(five, rel=1e-5)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "--boxes needs bbox, image_w, image_h"),
        ({"bbox": np.zeros((3, 4)), "image_w": 9, "image_h": 9}, r"boxes of shape \(3, 4\) for 2 regions"),
        ({"bbox": np.zeros((2, 4)), "image_w": 0, "image_h": 9}, "an image of 0 x 9 pixels"),
        ({"bbox": np.full((2, 4), np.nan), "image_w": 9, "image_h": 9}, "no finite numbers"),
        ({"bbox": np.zeros((2, 4)), "image_w": np.zeros(2), "image_h": 9}, "array of size 1"),
    ],
)
def test_boxes_that_are_none(tmp_path, arrays, told):
    (tmp_path / "att").mkdir()
    np.savez(tmp_path / "att/1.npz", feat=np.ones((2, 4), np.float32), **arrays)
    with pytest.raises(UserError, match=told):
        convert(str(tmp_path / "att"), tmp_path / "att.lmdb", boxes=True)


def test_sources_that_are_none_or_have_no_boxes(root, script, tmp_path):
    file = tmp_path / "b.lmdb"
    for source in (root / "features/att.lmdb", root / "features/fc"):
        done = script("extract_features.py", "--convert", source, "--output_file", file, "--boxes")
        assert done.status == 2 and "neither a .tsv" in done.err and done.err.count("\n") == 1
    done = script("extract_features.py", "--convert", tmp_path / "none.tsv", "--output_file", file)
    assert done.status == 2 and done.err.endswith("none.tsv: No such file or directory\n")
    done = script("extract_features.py", "--convert", tmp_path / "none", "--output_file", file)
    assert done.status == 2 and "no such feature file or folder" in done.err
    done = script("extract_features.py", "--convert", root / "features/fc", "--output_file", "a.lmdb,b.lmdb")
    assert done.status == 2 and "one name without commas" in done.err
    done = script("extract_features.py", "--image_dir", tmp_path, "--boxes")
    assert done.status == 2 and "--boxes is for --convert" in done.err


# ---- regions in HDF5 ----


@pytest.mark.parametrize(("name", "options"), [("{}", {}), ("{}_features", {"compression": "gzip", "chunks": (2, D)})])
def test_h5_with_a_dataset_for_each_image(root, tmp_path, name, options):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(1, 9):
            file.create_dataset(name.format(number), data=regions_of(number), **options)
            if "_" in name:
                file.create_dataset(f"{number}_boxes", data=boxes_of(number))
    reader, folder = open_features(tmp_path / "a.h5"), open_features(root / "features/att")
    keys = ["3", "4", "5"]
    assert reader.shape == (0, D) and len(reader) == 8 and sorted(reader.keys()) == [str(n) for n in range(1, 9)]
    assert np.array_equal(reader.get_many(keys), folder.get_many(keys))
    assert reader.missing([*keys, "9", "3_boxes", "", "a\0b"]) == ["9", "3_boxes", "", "a\0b"]
    with pytest.raises(UserError, match="has no record for '9'"):
        reader.get_many(["9"])
    assert convert(str(tmp_path / "a.h5"), tmp_path / "a.lmdb") == (8, [])
    assert np.array_equal(open_features(tmp_path / "a.lmdb").get_many(keys[:1]), folder.get_many(keys[:1]))


H5_FAULTS = ["group", "link", "text", "vector", "wide", "wider type", "nan", "nothing", "none", "bomb", "empty"]


@pytest.mark.parametrize("bad", H5_FAULTS)
def test_h5_files_without_such_datasets(tmp_path, bad):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if bad != "empty":
            file["1"] = np.ones((2, 4), np.float16 if bad == "wider type" else np.float32)
        if bad == "group":
            file.create_group("2")
        elif bad == "link":
            file["2"] = h5py.ExternalLink("/etc/passwd", "x")
        elif bad == "text":
            file["2"] = "abc"
        elif bad == "bomb":
            data = file.create_dataset("2", (2, 4), "f4", chunks=(2, 4), compression="gzip")
            data.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**27 + 2**24), 1))
        elif bad not in ("nothing", "empty"):
            arrays = {"vector": np.ones(4), "wide": np.ones((2, 5)), "nan": np.full((2, 4), np.nan)}
            arrays |= {"none": np.ones((0, 4)), "wider type": np.ones((2, 4))}
            file["2"] = arrays[bad].astype(np.float32)
    with pytest.raises(UserError, match=r"a\.h5") as caught:
        open_features(tmp_path / "a.h5").get_many(["1", "2"])
    assert "\n" not in str(caught.value)


# ---- models ----


def model_of(**settings):
    torch.manual_seed(3)
    sizes = {} if settings.get("decoder") else {"embed_size": 6, "value_size": 7, "attention_size": 5}
    specs = [FeatureSpec("fc/", (D,), True), FeatureSpec("att/", (D, 0, 1), True)]
    model = build_model(ModelConfig(specs, hidden_size=8, **sizes, **settings), VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.eval()


MODELS = {
    "soft": {"attention": "soft"},
    "soft_gru": {"attention": "soft", "rnn_arch": "GRU"},
    "spatial": {"attention": "spatial"},
    "updown": {"attention": "updown"},
    "pooled": {},
    "transformer": {"decoder": "transformer", "num_layers": 2, "region_layers": 1, "heads": 2},
}
every_model = pytest.mark.parametrize("kind", MODELS)


def inputs_of(numbers) -> list[torch.Tensor]:
    rows = [regions_of(number) for number in numbers]
    longest = max(map(len, rows))
    regions = np.stack([np.pad(row, ((0, longest - len(row)), (0, 0))) for row in rows])
    return [torch.from_numpy(np.stack([feature_vector(n, D) for n in numbers])), torch.from_numpy(regions)]


@every_model
def test_a_padded_batch_equals_single_images(kind):
    """Logits of whole sentences, their gradients, steps, and beams with their probabilities."""
    model, numbers = model_of(**MODELS[kind]), [4, 5, 6, 7]  # of 2, 3, 4 and 5 regions
    tokens, lengths = torch.randint(4, 11, (4, 5)), torch.tensor([5, 3, 4, 5])
    tokens[:, 0] = 1
    model.zero_grad()
    logits, _, weights, row = model(None, inputs_of(numbers), tokens, lengths, torch.arange(4))
    logits.square().sum().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for n, number in enumerate(numbers):
        caption = tokens[n : n + 1], lengths[n : n + 1], torch.zeros(1).long()
        alone, _, own, _ = model(None, inputs_of([number]), *caption)
        torch.testing.assert_close(logits[row == n], alone, rtol=0, atol=1e-5)
        if own is not None:
            regions = own.shape[1]
            torch.testing.assert_close(weights[row == n][:, :regions], own, rtol=0, atol=1e-6)
            assert not weights[row == n][:, regions:].any()
        alone.square().sum().backward()
    for name, gradient in whole.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        found = generate(*searching(model, numbers), Search(beam_size=3, n_best=2, max_length=6))
        for n, number in enumerate(numbers):
            alone = generate(*searching(model, [number]), Search(beam_size=3, n_best=2, max_length=6))
            torch.testing.assert_close(found.log_prob[n], alone.log_prob[0], rtol=0, atol=1e-4)


@every_model
def test_an_image_of_zeros_alone_has_one_region(kind):
    """Beside others it has the numbers that it has by itself, and those are finite."""
    model, inputs = model_of(**MODELS[kind]), inputs_of([4, 7])
    inputs[1][0] = 0
    tokens, lengths = torch.randint(4, 11, (2, 4)), torch.tensor([4, 4])
    logits, _, _, row = model(None, inputs, tokens, lengths, torch.arange(2))
    logits.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    alone, *_ = model(None, [inputs[0][:1], inputs[1][:1, :1]], tokens[:1], lengths[:1], torch.zeros(1).long())
    torch.testing.assert_close(logits[row == 0], alone, rtol=0, atol=1e-5)
    with torch.inference_mode():
        memory = model.encode(None, inputs)
        assert torch.isfinite(generate(*ready(fast_decoder(model.decoder), memory), Search(beam_size=2)).log_prob).all()


def searching(model, numbers) -> tuple:
    return ready(fast_decoder(model.decoder), model.encode(None, inputs_of(numbers)))


@pytest.mark.parametrize("kind", ["soft", "updown", "transformer"])
def test_the_fast_paths_mask_alike(kind, fast, plainly):
    model, packing = model_of(**MODELS[kind]), Packing.of(torch.tensor([3, 3, 3]), "cpu")

    def logits():
        memory = model.encode(None, inputs_of([4, 5, 7]))
        return model.decoder(memory, torch.full((3, 3), 5), packing, torch.arange(3))[0].detach()

    torch.testing.assert_close(logits(), plainly(logits), rtol=0, atol=1e-5)


@every_model
def test_features_in_memory_may_be_a_list_of_regions(kind):
    captioner = Captioner(model_of(**MODELS[kind]), VOCABULARY)
    vectors, padded = inputs_of([4, 7])
    wanted = [one[0].tokens for one in caption_features(captioner, [vectors, padded])]
    each = [regions_of(4), torch.from_numpy(regions_of(7))]
    assert [one[0].tokens for one in caption_features(captioner, [vectors, each])] == wanted
    with pytest.raises(UserError, match=r"have shape \(2, 0, 16\)"):
        caption_features(captioner, [vectors, padded[:, :0]])
    with pytest.raises(UserError, match="no array of numbers"):
        caption_features(captioner, [vectors, [regions_of(4), regions_of(7)[:, :3]]])


def test_one_list_of_regions_is_the_one_feature():
    specs = [FeatureSpec("att/", (D, 0, 1), True)]
    each = [regions_of(4), regions_of(7)]
    for given in (each, [each], (each[0].tolist(), each[1].tolist())):
        (found,) = tensors_for("features", given, specs)
        assert torch.equal(found, inputs_of([4, 7])[1])


def test_a_file_of_vectors_is_no_file_of_regions(root):
    files = FeatureFiles(open_dataset("toy:val", str(root / "datasets.conf")), "fc/")
    with pytest.raises(UserError, match=r"shape \(16,\), but the model reads \(R, 16\) with R regions of an image"):
        check_file(FeatureSpec("att/", (D, 0, 1), True), files, strict=False)


def test_paragraphs_need_as_many_regions_for_all():
    from captioning.config import ParagraphConfig

    with pytest.raises(UserError, match="the same number of regions"):
        ModelConfig([FeatureSpec("att/", (D, 0, 1), True)], paragraphs=ParagraphConfig()).check()


# ---- scripts ----


@pytest.mark.parametrize(
    "flags",
    [
        ["--attention", "soft", "--embed_size", 16, "--features", "fc/", "--persist_features", "att/"],
        ["--decoder", "transformer", "--num_layers", 1, "--features", "fc/,att.lmdb"],
        ["--attention", "updown", "--embed_size", 16, "--features", "att.lmdb", "--teacher_forcing", "sampled"],
    ],
    ids=["soft", "transformer", "updown"],
)
def test_training_and_captioning(root, script, tmp_path, flags):
    common = ["--dataset_config_file", root / "datasets.conf", "--cpu", "--num_workers", 0]
    where = ["--model_path", tmp_path, "--model_name", "m", "--vocab_root", tmp_path, "--vocab_threshold", 1]
    small = ["--hidden_size", 24, "--batch_size", 20, "--learning_rate", 0.01, "--optimizer", "adam"]
    data = ["--dataset", "toy:train", "--validate", "toy:val", "--num_epochs", 2, "--warmup_steps", 1]
    done = script("train.py", *common, *where, *small, *data, *flags)
    assert done.status == 0, done.err
    offer = f"./extract_features.py --convert {root}/features/att/ --output_file {root}/features/att.lmdb"
    assert done.err.count(offer) == ("att/" in flags)
    model = tmp_path / "m" / "ep2.model"
    done = script("infer.py", "--model", model, "--dataset", "toy:val", *common, "--output_file", tmp_path / "o.json")
    assert done.status == 0, done.err
    about = script("model_info.py", model).out
    assert f"regions of {D}, as many as an image has (a file)" in about
    table = ["--attention_output", tmp_path / "a.npz", "--output_file", tmp_path / "p.json"]
    done = script("infer.py", "--model", model, "--dataset", "toy:val", *common, *table)
    assert done.status == 2 and "different numbers of regions" in done.err and done.err.count("\n") == 1
    captioner = load_captioner(model, photos=False)
    vectors, regions = (x.numpy() for x in inputs_of([4, 5]))
    given = {"soft": (vectors, regions), "updown": (regions,)}.get(flags[1], ([vectors, regions],))
    captions = caption_features(captioner, *given)
    assert len(captions) == 2
