"""Regions cut from images, and stories of several photos: what the encoder sees and what becomes of bad photos."""

from array import array

import pytest
import torch
from PIL import Image
from toy_layouts import make_regions, make_vist

from captioning.batches.pixels import PhotoLoader, StoryPixels, cut, encoded, stacked
from captioning.datasets.base import ImageItem
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from data_loader import LoaderSettings, get_eval_loader, get_loader


class Corner:
    """A transform: the first pixel and the size of the image; with a seed its low byte too."""

    def __call__(self, image, seed):
        values = [*image.getpixel((0, 0)), *image.size, 0 if seed is None else seed % 251]
        return torch.tensor(values, dtype=torch.uint8)


class Words:
    def encode_all(self, texts, num_workers=1):
        for text in texts:
            yield array("i", [4] * len(text.split())), array("q", [len(text.split())])


def no_seed(photo):
    return None


def test_means_over_stories_of_different_length():
    torch.manual_seed(0)
    photos = torch.randint(0, 255, (6, 3, 4, 4), dtype=torch.uint8)
    pixels = stacked([[photos[0], photos[1]], photos[2], list(photos[3:])])
    assert isinstance(pixels, StoryPixels) and len(pixels) == 3
    assert pixels.owner.tolist() == [0, 0, 1, 2, 2, 2]

    def vectors(x):
        return x.float().flatten(1)[:, :5]

    def run(x):
        return {"vectors": vectors(x), "maps": x.float()}

    expected = [vectors(photos[:2]).mean(0), vectors(photos[2:3])[0], vectors(photos[3:]).mean(0)]
    assert torch.allclose(encoded(run, pixels)["vectors"], torch.stack(expected))
    maps = encoded(run, pixels.to("cpu"))["maps"]
    assert maps.shape == (3, 3, 4, 4)
    assert torch.allclose(maps[2], photos[3:].float().mean(0))
    assert torch.equal(encoded(run, photos)["vectors"], vectors(photos))
    weights = torch.ones(6, 5, requires_grad=True)  # a fine-tuned encoder learns through it
    pixels.mean(weights).sum().backward()
    assert torch.allclose(weights.grad[:, 0], torch.tensor([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3]))


def test_a_region_is_cut_from_its_image(tmp_path):
    image = Image.new("RGB", (40, 30))
    image.paste((9, 8, 7), (10, 20, 40, 30))

    def region(*box):
        return cut(image, ImageItem(5, "1:5", "i.jpg", box=box))

    assert region(10, 20, 6, 4).size == (6, 4)
    assert region(10, 20, 6, 4).getcolors() == [(24, (9, 8, 7))]
    assert region(-1, -1, 20, 10).size == (19, 9)  # a little beyond the image, as people draw
    assert region(9.6, 20.2, 1.2, 5).size == (1, 5)
    for box in (
        (0, 0, 50, 10),
        (0, -5, 10, 10),
        (35, 0, 10, 10),
        (5, 5, 0, 3),
        (90, 90, 1, 1),
    ):
        with pytest.raises(UserError, match=r"cannot read image i.jpg: region 5, .* is not within the image of 40x30"):
            region(*box)


def test_regions_in_batches(tmp_path, capsys):
    make_regions(tmp_path, 2, 1)
    dataset = open_dataset("visualgenome:regions:train", str(tmp_path / "datasets.conf"))
    items = list(dataset.items)
    items[3].box = (150, 0, 200, 10)
    dataset.items = items
    (tmp_path / "images/2300001.jpg").write_bytes(b"no image")
    loader = get_eval_loader(dataset, settings=LoaderSettings(6, num_workers=0), transform=Corner())
    shown = {item.image_id: row.tolist() for batch in loader for item, row in zip(batch.items, batch.pixels)}
    assert list(shown) == [0, 1, 10, 20, 21, 30, 31]  # the four scenes of the first image, two phrases each
    assert all(row[3:5] == [100, 100] for row in shown.values())
    picture = Image.open(tmp_path / "images/2300000.jpg")
    assert shown[30][:3] == list(picture.getpixel((100, 100)))
    said = capsys.readouterr().err
    assert "region 11, 200x10 at (150, 0), is not within the image of 200x200 pixels" in said
    assert "2300001.jpg: not a JPEG" in said
    assert len(loader.bad_items) == 2  # a broken image is said once, whatever its regions


def test_an_image_is_opened_once_for_regions_that_follow_one_another(tmp_path, monkeypatch):
    from captioning.batches import pixels as photo_loading

    make_regions(tmp_path, 2, 1)
    dataset = open_dataset("visualgenome:regions", str(tmp_path / "datasets.conf"))
    opened = []
    monkeypatch.setattr(
        photo_loading, "open_image", lambda path: opened.append(path) or Image.new("RGB", (200, 200), "white")
    )
    loader = PhotoLoader(Corner())
    for item in dataset.items:
        assert loader.load(item, no_seed, []) is not None
    assert len(opened) == 3


def test_stories_go_on_with_the_photos_that_are_there(tmp_path, capsys):
    make_vist(tmp_path, 4, 1)
    folder = tmp_path / "images/train"
    for name in ("70001.jpg", "70013.jpg", "70025.png"):
        (folder / name).unlink()
    (folder / "70037.jpg").write_bytes(b"no image")
    for number in range(5):
        next(folder.glob(f"{70_002 + 12 * number}.*")).unlink()
    for number in range(5):
        next(folder.glob(f"{70_003 + 12 * number}.*")).write_bytes(b"no image")
    dataset = open_dataset("vist:train", str(tmp_path / "datasets.conf"))
    assert len(dataset.items[1].photos) == 5
    loader = get_eval_loader(dataset, settings=LoaderSettings(4, num_workers=0), transform=Corner())
    (batch,) = list(loader)
    assert [item.image_id for item in batch.items] == ["40000", "40001"]
    assert batch.pixels.owner.tolist() == [0, 0, 0, 0, 0, 1]
    said = capsys.readouterr().err
    assert "8 of 20 image files are missing and left out" in said
    assert "70037.jpg: not a JPEG" in said and "(of story 40001)" in said
    assert any("no such image" in text and "70013" in text and "story 40001" in text for text in loader.bad_items)
    assert len(dataset.items[1].photos) == 5  # the dataset itself is as it was


def test_photos_of_a_story_are_augmented_each_in_its_own_way(tmp_path):
    make_vist(tmp_path, 3, 1)
    dataset = open_dataset("vist:train", str(tmp_path / "datasets.conf"))
    settings = [LoaderSettings(4, num_workers=n) for n in (0, 2)]
    loaders = [get_loader(dataset, Words(), settings=one, transform=Corner()) for one in settings]
    epochs = []
    for loader in loaders:
        loader.set_position(2)
        epochs.append([batch.pixels.photos[:, 5].tolist() for batch in loader])
        loader.close()
    assert epochs[0] == epochs[1]
    assert len(set(sum(epochs[0], []))) > 10
