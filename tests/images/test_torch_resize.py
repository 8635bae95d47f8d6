"""torch_resize.py against Pillow's own resizing."""

import gc

import numpy as np
import pytest
from PIL import Image

from captioning.images.torch_resize import tensor_resize


def picture(width, height, seed=0):
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = random.normal(0, 20, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "size", [(640, 480), (333, 501), (1500, 700), (100, 80), (256, 300), (257, 255), (1, 7), (1500, 1500)]
)
@pytest.mark.parametrize("target", [(256, 256), (301, 256)])
def test_as_pillow_to_a_grey_level(size, target):
    image = picture(*size)
    ours, theirs = (
        np.asarray(one.convert("RGB"), int)
        for one in (tensor_resize(image, target), image.resize(target, Image.BILINEAR))
    )
    assert ours.shape == theirs.shape == (target[1], target[0], 3)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - theirs).mean() < 0.25  # 0.01 where both take the two directions in the same order


def test_the_result_outlives_its_source():
    image = picture(400, 300)
    wanted = np.asarray(tensor_resize(image, (100, 100)))[..., :3].copy()
    small = tensor_resize(image, (100, 100))
    del image
    gc.collect()
    others = [picture(400, 300, seed) for seed in range(3)]  # would lie in its memory
    assert np.array_equal(np.asarray(small)[..., :3], wanted)
    assert others


def test_what_is_left_to_pillow():
    assert tensor_resize(picture(60, 40).convert("L"), (20, 20)) is None
    assert tensor_resize(picture(600, 400), (100, 100)) is None  # resize_square() shrinks it by two first
    assert tensor_resize(picture(599, 400), (100, 100)) is not None


def test_an_rgbx_image_makes_the_same_jpeg(tmp_path):
    small = tensor_resize(picture(640, 480), (256, 256))
    small.save(tmp_path / "a.jpg", quality=95)
    small.convert("RGB").save(tmp_path / "b.jpg", quality=95)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
