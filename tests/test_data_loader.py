"""Datasets, the sampler, and batches: what is in them, that they resume exactly, and what is said of bad input."""

import contextlib
import json
import os
import signal
import time
from array import array
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import file_inputs

from captioning.batches.inputs import Input, Pixels
from captioning.batches.sampler import GroupedBatchSampler
from captioning.config import FeatureSpec
from captioning.datasets.factory import open_dataset
from captioning.datasets.folder import GenericDataset
from captioning.errors import UserError, run
from captioning.features.writer import FeatureWriter
from data_loader import Batch, LoaderSettings, get_eval_loader, get_loader

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat", "runs", "sleeps", "on", "the", "red", "mat"]
COUNTS = [5, 1, 7, 0, 5, 5, 3, 12, 5, 5, 2]


class WordIds:
    """Stands for a Vocabulary."""

    calls = 0

    def __len__(self):
        return len(WORDS)

    def encode(self, text):
        self.calls += 1
        return [WORDS.index(word) if word in WORDS else 3 for word in text.lower().split()]

    def encode_all(self, texts, num_workers=1):
        for ids in map(self.encode, texts):
            yield array("i", ids), array("q", [len(ids)])


def shades(image, seed):
    """A transform: a 3x2x2 tensor of the image's grey, its last value the seed's low byte."""
    out = torch.full((3, 2, 2), image.getpixel((0, 0))[0], dtype=torch.uint8)
    out[2, 1, 1] = 255 if seed is None else seed % 251
    return out


def caption(image, number):
    return " ".join(np.random.default_rng([image, number]).choice(WORDS[4:], 3 + (image + number) % 5))


@pytest.fixture
def coco(tmp_path):
    """Configuration of [c:one], [c:two] (11 images with COUNTS captions; 3 with one each), images and features."""
    (tmp_path / "images").mkdir()
    (tmp_path / "features").mkdir()
    for name, start, counts in (("one", 0, COUNTS), ("two", 100, [1, 1, 1])):
        images = [{"id": start + i, "file_name": f"{start + i}.png"} for i in range(len(counts))]
        annotations = [
            {"image_id": start + i, "caption": caption(start + i, c)} for i, n in enumerate(counts) for c in range(n)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        for image in images:
            Image.new("RGB", (4, 4), (image["id"],) * 3).save(tmp_path / "images" / image["file_name"])
    keys = [f"{i}.png" for i in (*range(len(COUNTS)), 100, 101, 102)]
    for suffix, shape in (("npy", (2,)), ("lmdb", (4, 2, 3))):
        with FeatureWriter(tmp_path / f"features/f.{suffix}", shape, "float16" if suffix == "lmdb" else "float32") as w:
            for key in keys:
                w.write(key, int(key[:-4]) + np.arange(np.prod(shape)).reshape(shape) / 64)
    conf = tmp_path / "d.conf"
    conf.write_text(
        "[c]\ndataset_class = CocoDataset\nroot_dir = %(here)s\nimage_dir = images\nfeatures_path = features\n"
        "[c:one]\ncaption_path = one.json\n[c:two]\ncaption_path = two.json\n[bare]\ndataset_class = CocoDataset\n"
        "caption_path = one.json\n[odd]\ndataset_class = OddDataset\n[photos]\ndataset_class = GenericDataset\n"
        "image_dir = images\n"
    )
    return tmp_path


def dataset(coco, spec="c:one"):
    return open_dataset(spec, str(coco / "d.conf"))


def rewrite(coco, change, name="one"):
    path = coco / f"{name}.json"
    data = json.loads(path.read_text())
    data = change(data) or data
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def sentences(batch):
    """(image id, words) of every row."""
    return [
        (batch.items[image].image_id, " ".join(WORDS[i] for i in row[1 : n - 1]))
        for row, n, image in zip(batch.captions.tolist(), batch.lengths.tolist(), batch.row_image.tolist())
    ]


def same(a: Batch, b: Batch):
    tensors = [(x.captions, x.lengths, x.row_image, x.pixels, *x.inputs) for x in (a, b)]
    assert [item.image_id for item in a.items] == [item.image_id for item in b.items]
    assert a.index == b.index
    for x, y in zip(*tensors, strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


# ---------------------------------------------------------------- datasets


def test_coco_keeps_all_images_in_order_with_their_captions(coco):
    one = dataset(coco)
    assert [item.image_id for item in one.items] == list(range(11))
    assert [len(item.captions) for item in one.items] == COUNTS
    assert (one.name, len(one), one.num_captions) == ("c:one", 11, 50)
    assert one.items[2].captions == [caption(2, c) for c in range(7)]
    assert (one.items[2].key, one.items[2].path) == ("2.png", str(coco / "images/2.png"))
    assert [item.image_id for item in one.items if item.captions] == [i for i, n in enumerate(COUNTS) if n]
    assert list(one.captions())[5] == caption(1, 0)
    both = dataset(coco, "c:two+c:one")
    assert (both.name, len(both)) == ("c:two+c:one", 14)
    assert [item.part for item in both.items] == [0] * 3 + [1] * 11


def test_coco_leaves_out_captions_without_an_image_and_says_so_once(coco, capsys):
    def change(data):
        data["annotations"] += [{"image_id": 77 + i, "caption": "x"} for i in range(5)]
        data["annotations"] += [{"image_id": 3, "caption": "  "}]

    rewrite(coco, change)
    assert dataset(coco).num_captions == 50
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "5 captions left out" in said[0]
    assert "77, 78, 79, ..." in said[0]
    assert "1 blank" in said[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: "{", "not valid JSON"),
        (lambda d: [1], "no 'images'"),
        (lambda d: {"images": 3}, "images is not a list"),
        (lambda d: d["images"][4].pop("file_name") and None, "images[4] has no 'file_name'"),
        (lambda d: d["images"][4].update(id=1), "images[4]: id 1 is there already"),
        (lambda d: d["images"][4].update(id=[1]), "images[4]: id [1]"),
        (lambda d: d["images"][4].update(file_name=7), "images[4]: file_name 7"),
        (lambda d: d["annotations"][3].pop("caption") and None, "annotations[3] has no 'caption'"),
        (lambda d: d["annotations"][3].update(caption=None), "annotations[3]: caption None"),
        (lambda d: d["annotations"].insert(3, "x"), "annotations[3] is not an object"),
    ],
)
def test_malformed_captions_are_named_with_their_place(coco, change, words):
    rewrite(coco, change)
    with pytest.raises(UserError) as error:
        dataset(coco)
    assert words in str(error.value)
    assert "one.json" in str(error.value)


def test_mistakes_about_datasets(coco):
    with pytest.raises(UserError, match="unknown dataset_class 'OddDataset'; known: CocoDataset"):
        dataset(coco, "odd")
    with pytest.raises(UserError, match="no images: give files or a folder"):
        dataset(coco, "generic")
    with pytest.raises(UserError, match="set image_dir in .*d.conf"):
        get_loader(dataset(coco, "bare"), WordIds(), transform=shades)
    rewrite(coco, lambda d: d.pop("annotations") and None)
    assert len(dataset(coco)) == 11  # good for inference
    with pytest.raises(UserError, match=r"no captions \(.*one.json\), which training needs"):
        get_loader(dataset(coco), WordIds())
    with pytest.raises(UserError, match="no captions"):
        get_loader(dataset(coco, "photos"), WordIds())
    (coco / "images").rename(coco / "moved")
    assert len(dataset(coco)) == 11  # good for features
    with pytest.raises(UserError, match="no such image folder: .*images"):
        get_eval_loader(dataset(coco), transform=shades)
    (coco / "images").mkdir()
    with pytest.raises(UserError, match="none of its 11 image files is there: .*0.png"):
        get_eval_loader(dataset(coco), transform=shades)


def test_generic_dataset_of_files_and_folder(coco):
    some = GenericDataset(files=["x/one.jpg", coco / "images/3.png"])
    assert [(i.image_id, i.key) for i in some.items] == [
        ("x/one.jpg", "one.jpg"),
        (str(coco / "images/3.png"), "3.png"),
    ]
    folder = dataset(coco, "photos")
    assert len(folder) == 14
    assert (folder.items[0].image_id, folder.items[0].path) == ("0.png", str(coco / "images/0.png"))
    (coco / "images/sub").mkdir()
    Image.new("RGB", (4, 4)).save(coco / "images/sub/z.png")
    assert len(GenericDataset(image_dir=coco / "images")) == 14
    assert GenericDataset(image_dir=coco / "images", recursive=True).items[-1].image_id == "sub/z.png"
    (coco / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        GenericDataset(image_dir=str(coco / "empty"))


# ---------------------------------------------------------------- the sampler


def sampler_of(counts, *sizes, **settings):
    return GroupedBatchSampler(counts, LoaderSettings(*sizes, **settings))


@pytest.mark.parametrize("captions_per_image", [1, 2, 5, 100])
def test_an_epoch_shows_every_caption_once(captions_per_image):
    sampler = sampler_of(COUNTS, 20, captions_per_image)
    for epoch in (1, 2):
        sampler.set_position(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        shown = Counter((item, c) for batch in batches for item, captions in batch for c in captions)
        assert shown == Counter((item, c) for item, n in enumerate(COUNTS) for c in range(n))
        groups = [group for batch in batches for group in batch]
        assert max(len(captions) for _, captions in groups) <= captions_per_image
        assert len(groups) == sum(-(-n // captions_per_image) for n in COUNTS)
        full = max(2, 20 // captions_per_image)
        assert all(len(batch) == full for batch in batches[:-1])
        assert 1 < len(batches[-1]) <= full + 1


def test_a_last_batch_of_one_group_joins_the_one_before():
    sizes = [len(batch) for batch in sampler_of([5] * 9, 20, 5)]
    assert sizes == [4, 5]
    assert [len(batch) for batch in sampler_of([5] * 10, 20, 5)] == [4, 4, 2]
    assert [len(batch) for batch in sampler_of([5], 20, 5)] == [1]
    assert [len(batch) for batch in sampler_of([5] * 4, 1, 5)] == [2, 2]


def test_epochs_differ_and_are_a_function_of_seed_and_epoch():
    def epoch(number, seed=42):
        sampler = sampler_of(COUNTS, 10, 5, seed)
        sampler.set_position(number)
        return list(sampler)

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(2)
    assert epoch(1) != epoch(1, seed=43)
    # An image of seven captions is divided anew each epoch.
    divided = {str(sorted(sorted(c) for b in epoch(e) for i, c in b if i == 2)) for e in range(8)}
    assert len(divided) > 4


def test_a_position_gives_the_tail_of_the_epoch():
    sampler = sampler_of(COUNTS, 10, 3)
    sampler.set_position(5)
    whole = list(sampler)
    for start in range(len(whole) + 1):
        sampler.set_position(5, start)
        assert list(sampler) == whole[start:]
        assert len(sampler) == len(whole)


def test_a_mix_shows_each_part_so_many_times_an_epoch():
    """Parts of 12, 7 and 5 images with two captions each; 2.5 times 7 are 18 groups (17.5 rounded to even)."""
    parts = [0] * 12 + [1] * 7 + [2] * 5

    def epoch(number, start=0):
        sampler = GroupedBatchSampler([2] * 24, LoaderSettings(6, 2, mix=(1, 2.5, 0.6)), parts)
        sampler.set_position(number, start)
        assert len(sampler) == -(-(12 + 18 + 3) // 3)
        return list(sampler)

    often = Counter(item for batch in epoch(1) for item, captions in batch if sorted(captions) == [0, 1])
    assert [sum(often[i] for i in range(24) if parts[i] == part) for part in range(3)] == [12, 18, 3]
    assert {often[i] for i in range(12)} == {1} and {often[i] for i in range(12, 19)} == {2, 3}
    assert epoch(1) == epoch(1) and epoch(1, 4) == epoch(1)[4:]
    halves = [frozenset(i for b in epoch(e) for i, _ in b if parts[i] == 2) for e in range(12)]
    assert len(set(halves)) > 3 and frozenset.union(*halves) == set(range(19, 24))
    even = GroupedBatchSampler(COUNTS, LoaderSettings(10, 5, mix=(1,)), [0] * len(COUNTS))
    assert sorted(g for b in even for g in b) == sorted(g for b in sampler_of(COUNTS, 10, 5) for g in b)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_an_epoch(world_size):
    whole = list(sampler_of(COUNTS, 10, 5))
    ranks = [list(sampler_of(COUNTS, 10, 5, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    dealt = [ranks[i % world_size][i // world_size] for i in range(world_size * len(ranks[0]))]
    assert dealt == [*whole, *whole][: len(dealt)]
    assert len(dealt) - len(whole) < world_size


# ---------------------------------------------------------------- batches


def test_captions_rows_and_features_belong_together(coco):
    vocabulary = WordIds()
    images = dataset(coco)
    inputs = file_inputs(images, "f.npy", "f.lmdb", "f.npy")
    assert inputs[0].source is inputs[2].source  # one file is opened, and read, once
    loader = get_loader(images, vocabulary, inputs, LoaderSettings(batch_size=10))
    assert loader.num_captions == 50
    assert [one.source.shape for one in loader.inputs] == [(2,), (4, 2, 3), (2,)]
    shown = []
    for number, batch in enumerate(loader):
        assert batch.index == number
        assert batch.pixels is None
        ids = torch.tensor([item.image_id for item in batch.items])
        assert torch.equal(batch.inputs[0], ids[:, None] + torch.arange(2) / 64)
        assert batch.inputs[1].dtype == torch.float16
        assert batch.inputs[1].shape == (len(ids), 6, 4)
        assert batch.inputs[1].is_contiguous()
        one_map = torch.arange(24).reshape(4, 6) / 64
        assert torch.allclose(batch.inputs[1].float(), ids[:, None, None] + one_map.T)
        assert torch.equal(batch.inputs[2], batch.inputs[0])
        assert batch.captions.dtype == batch.lengths.dtype == batch.row_image.dtype == torch.int64
        assert batch.captions.shape == (len(batch.lengths), batch.lengths.max())
        assert (batch.captions[:, 0] == 1).all()
        last = batch.captions.gather(1, batch.lengths[:, None] - 1)
        assert (last == 2).all()
        assert torch.equal((batch.captions != 0).sum(1), batch.lengths)
        shown += sentences(batch)
    assert sorted(shown) == sorted((i, caption(i, c)) for i, n in enumerate(COUNTS) for c in range(n))
    assert vocabulary.calls == 50
    list(loader)
    assert vocabulary.calls == 50  # once and for all


def with_pixels(images, *names):
    """Inputs of a model that reads feature files, and photos by an encoder of its own."""
    return [*file_inputs(images, *names), Input(FeatureSpec("resnet18", (512,), False), Pixels())]


def test_pixels_are_loaded_where_an_input_needs_them(coco):
    images, settings = dataset(coco), LoaderSettings(batch_size=10, num_workers=0)
    batch = next(iter(get_eval_loader(images, file_inputs(images, "f.npy"), settings, shades)))
    assert batch.pixels is None and len(batch.inputs) == 1
    batch = next(iter(get_eval_loader(images, with_pixels(images, "f.npy"), settings, shades)))
    assert len(batch.pixels) == len(batch.inputs[0]) == 10 and batch.inputs[1] is None
    batch = next(iter(get_eval_loader(images, settings=settings, transform=shades)))
    assert len(batch.pixels) == 10 and batch.inputs == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_forks_and_resuming_change_nothing(coco, num_workers):
    """Feature files are open in this process (the check of the keys) when the workers are forked."""
    images = dataset(coco)
    inputs = with_pixels(images, "f.lmdb", "f.npy")
    reference = get_loader(images, WordIds(), inputs, LoaderSettings(10, num_workers=0), shades)
    reference.set_position(3, 0)
    whole = list(reference)
    assert len({int(batch.pixels[0, 2, 1, 1]) for batch in whole}) > 1  # seeds differ
    loader = get_loader(images, WordIds(), inputs, LoaderSettings(10, num_workers=num_workers), shades)
    for start in (0, 2):
        loader.set_position(3, start)
        got = list(loader)
        assert len(got) == len(whole) - start
        for a, b in zip(got, whole[start:]):
            same(a, b)
    for _ in loader:  # left early
        break
    loader.set_position(3, 1)
    same(next(iter(loader)), whole[1])
    loader.set_position(4, 0)
    first = next(iter(loader))
    assert not torch.equal(first.row_image, whole[0].row_image) or sentences(first) != sentences(whole[0])
    assert inputs[0].source.get(whole[0].items).equal(whole[0].inputs[0])  # here, while the workers read it too
    loader.close()


def test_evaluation_goes_through_images_in_order(coco):
    images = dataset(coco)
    loader = get_eval_loader(images, with_pixels(images, "f.npy"), LoaderSettings(4, num_workers=0), shades)
    batches = list(loader)
    assert len(loader) == 3
    assert [item.image_id for batch in batches for item in batch.items] == list(range(11))
    assert [batch.pixels[0, 0, 0, 0].item() for batch in batches] == [0, 4, 8]
    assert (batches[0].pixels[:, 2, 1, 1] == 255).all()  # no seed
    assert batches[0].captions is None
    loader = get_eval_loader(images, (), LoaderSettings(4), vocabulary=WordIds())
    rows = [row for batch in loader for row in sentences(batch)]
    assert rows == [(i, caption(i, c)) for i, n in enumerate(COUNTS) for c in range(n)]
    parts = [get_eval_loader(images, (), LoaderSettings(4, rank=r, world_size=2)) for r in (0, 1)]
    assert [[batch.items[0].image_id for batch in part] for part in parts] == [[0, 8], [4]]


def test_features_of_several_datasets_come_from_their_own_files(coco):
    (coco / "other").mkdir()
    np.save(coco / "other/f.npy", np.array([[-1.0, 0], [-2, 0], [-3, 0]], "f4"))  # in the order of the images
    with open(coco / "d.conf", "a") as file:
        file.write("[c:two:other]\nfeatures_path = other\n")
    both = dataset(coco, "c:two:other+c:one")
    batch = next(iter(get_eval_loader(both, file_inputs(both, "f.npy"))))
    assert batch.inputs[0][:, 0].tolist() == [-1, -2, -3, *range(11)]
    assert batch.inputs[0].dtype == torch.float32
    absolute = get_eval_loader(both, file_inputs(both, str(coco / "features/f.npy")))
    assert next(iter(absolute)).inputs[0][:, 0].tolist() == [100, 101, 102, *range(11)]
    np.save(coco / "other/f.npy", np.zeros((3, 5), "f4"))
    with pytest.raises(UserError, match="features of shape"):
        file_inputs(both, "f.npy")
    np.save(coco / "other/f.npy", np.zeros((4, 2), "f4"))
    with pytest.raises(UserError, match="4 rows, the dataset 3 images"):
        file_inputs(both, "f.npy")


def test_a_missing_key_or_file_stops_the_start(coco):
    with FeatureWriter(coco / "features/g.lmdb", (2,)) as writer:
        for i in (0, 1, 2, 3, 4, 6, 8, 9, 10):
            writer.write(f"{i}.png", [1, 2])
    images = dataset(coco)
    with pytest.raises(UserError, match=r"g.lmdb has no record for '5.png' \(and 1 other"):
        get_loader(images, WordIds(), file_inputs(images, "f.npy", "g.lmdb"))
    with pytest.raises(UserError, match=r"no such feature file: .*features/none.npy"):
        file_inputs(images, "none.npy")
    with pytest.raises(UserError, match=r"set features_path for \[bare\]"):
        file_inputs(dataset(coco, "bare"), "f.npy")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_missing_and_broken_images_are_dropped_named_and_counted(coco, capfd, num_workers):
    (coco / "images/4.png").unlink()
    (coco / "images/7.png").write_bytes(b"no image")
    (coco / "images/8.png").write_bytes((coco / "images/9.png").read_bytes()[:50])
    settings = LoaderSettings(10, num_workers=num_workers)
    loader = get_loader(dataset(coco), WordIds(), settings=settings, transform=shades)
    assert loader.bad_items == [f"no such image: {coco / 'images/4.png'}"]
    assert "1 of 10 image files are missing and left out" in capfd.readouterr().err
    for epoch in (1, 2):
        loader.set_position(epoch)
        shown = []
        for batch in loader:
            assert len(batch.pixels) == len(batch.items)
            assert [int(p[0, 0, 0]) for p in batch.pixels] == [item.image_id for item in batch.items]
            shown += sentences(batch)
        good = [(i, caption(i, c)) for i, n in enumerate(COUNTS) for c in range(n) if i not in (4, 7, 8)]
        assert sorted(shown) == sorted(good)
    loader.close()
    assert len(loader.bad_items) == 3
    said = capfd.readouterr().err
    assert said.count("7.png") == said.count("8.png") == 1


def test_a_batch_of_bad_images_alone_is_passed_over(coco):
    for i in (4, 5):
        (coco / f"images/{i}.png").write_bytes(b"no image")
    loader = get_eval_loader(dataset(coco), settings=LoaderSettings(2, num_workers=0), transform=shades)
    assert [batch.index for batch in loader] == [0, 1, 3, 4, 5]


def test_among_several_processes_a_stand_in_takes_its_place(coco):
    """So that no process is a batch ahead of the others: one blank image with its captions, which does not count."""
    for i in range(len(COUNTS)):
        (coco / f"images/{i}.png").write_bytes(b"no image")

    def blank(image, seed):
        return torch.full((3, 2, 2), image.getpixel((0, 0))[0], dtype=torch.uint8)

    blank.size = 2
    settings = LoaderSettings(10, num_workers=0, world_size=2, rank=1)
    loader = get_loader(dataset(coco), WordIds(), settings=settings, transform=blank)
    batches = list(loader)
    assert [batch.index for batch in batches] == list(range(len(loader)))
    for batch in batches:
        assert not batch.counted and len(batch.items) == 1 and torch.equal(batch.pixels, torch.zeros(1, 3, 2, 2))
        assert set(batch.row_image.tolist()) == {0} and len(batch.captions) > 0
    assert len(loader.bad_items) > 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_feature_file_that_breaks_later_is_one_line(coco, num_workers):
    images = dataset(coco)
    settings = LoaderSettings(num_workers=num_workers)
    loader = get_loader(images, WordIds(), file_inputs(images, "f.lmdb"), settings)
    (coco / "features/f.lmdb/data.mdb").write_bytes(b"")
    with pytest.raises(UserError, match="f.lmdb") as error:
        list(loader)
    assert "\n" not in str(error.value)
    loader.close()


class Fails:
    """A transform that does `what` in the process that loads the data, from the fifth image on."""

    size_hint = None

    def __init__(self, what):
        self.what = what

    def __call__(self, image, seed):
        if image.getpixel((0, 0))[0] >= 5:
            self.what()
        return shades(image, seed)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_room(tensor) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch>: No space left on device (28)")


def all_batches(args) -> int:
    dataset, transform = args
    settings = LoaderSettings(batch_size=4, num_workers=1)
    with contextlib.closing(get_eval_loader(dataset, settings=settings, transform=transform)) as loader:
        for _ in loader:
            time.sleep(0.01)
    return 0


def test_a_process_that_died_is_one_line_and_no_hang(coco, capfd):
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        assert run(all_batches, (dataset(coco), Fails(die))) == 2
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)  # torch's own stays otherwise
    told = capfd.readouterr().err
    assert "--num_workers 0" in told and "--shm-size" in told and told.count("\n") == 1


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_process_that_died_before_it_handed_over_a_batch_is_one_line(coco, error):
    def gone():
        raise error
        yield

    loader = get_eval_loader(dataset(coco), settings=LoaderSettings(4, num_workers=1), transform=shades)
    with contextlib.closing(loader), pytest.raises(UserError, match="--num_workers 0"):
        list(loader._received(gone()))
    loader = get_eval_loader(dataset(coco), settings=LoaderSettings(4, num_workers=0), transform=shades)
    with pytest.raises(error):
        list(loader._received(gone()))


def test_full_shared_memory_is_one_line_and_no_hang(coco, capfd, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    assert run(all_batches, (dataset(coco), shades)) == 2
    told = capfd.readouterr().err
    assert "--num_workers 0" in told and "--shm-size" in told and told.count("\n") == 1


def test_processes_that_load_data_ignore_signals(coco):
    def end_all() -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)

    assert all_batches((dataset(coco), Fails(end_all))) == 0


def memory() -> int:
    """Bytes of this process in the machine's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_epochs_without_end_take_no_more_memory_nor_files(coco):
    """Two minutes of short epochs with processes that load data."""
    words = WordIds()
    loader = get_loader(dataset(coco), words, settings=LoaderSettings(4, 2, num_workers=2), transform=shades)
    sizes, files, epoch, end = [], set(), 0, time.monotonic() + 120
    with contextlib.closing(loader):
        while time.monotonic() < end:
            for _ in range(50):
                loader.set_position(epoch)
                for batch in loader:
                    assert batch.pixels is not None
                epoch += 1
            sizes.append(memory())
            files.add(len(os.listdir("/proc/self/fd")))
    begun = len(sizes) // 4
    assert max(sizes[begun:]) <= 1.02 * sizes[begun] and len(files) == 1
