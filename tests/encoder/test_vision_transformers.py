"""Maps and tokens of ViTs, ConvNeXt and open_clip's networks against the packages' own, and images of other sizes."""

import sys
from collections import OrderedDict
from types import ModuleType, SimpleNamespace

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from captioning.encoder.factory import build_encoder, interpolated
from captioning.encoder.names import split_name
from captioning.encoder.timm_networks import prefix_tokens
from captioning.encoder.tokens import tokens_to_map
from captioning.errors import UserError


def pixels_for(extractor, images: int = 2) -> torch.Tensor:
    size = extractor.transform["size"]
    return torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(1)) * 255


def normalised(extractor) -> torch.Tensor:
    return (pixels_for(extractor) - extractor.mean) / extractor.std


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
@torch.no_grad()
def test_a_vits_map_and_tokens_are_those_of_timm(name):
    tokens, conv = (build_encoder(f"timm:{name}-{kind}", pretrained=False) for kind in ("tokens", "conv"))
    conv.load_state_dict(tokens.state_dict())
    expected = tokens.network.model.forward_features(normalised(tokens))  # (B, prefix + 100, D)
    prefix = expected.shape[1] - 100
    assert tokens.shape == (expected.shape[2], expected.shape[1], 1) and conv.grid == (10, 10)
    assert_close(tokens(pixels_for(tokens)).squeeze(3).transpose(1, 2), expected)
    assert_close(conv(pixels_for(conv)).flatten(2).transpose(1, 2), expected[:, prefix:])


@torch.no_grad()
def test_the_map_of_a_convnext_is_its_last_stage():
    extractor = build_encoder("timm:test_convnext-conv", pretrained=False)
    assert_close(extractor(pixels_for(extractor)), extractor.network.model.forward_features(normalised(extractor)))
    with pytest.raises(UserError, match="timm:test_convnext-tokens: timm:test_convnext has no tokens"):
        build_encoder("timm:test_convnext-tokens", pretrained=False)
    with pytest.raises(UserError, match="resnet18-tokens: resnet18 has no tokens; resnet18-conv"):
        build_encoder("resnet18-tokens", pretrained=False)


@torch.no_grad()
def test_positions_are_interpolated_for_another_size(tmp_path):
    whole = timm.create_model("test_vit", num_classes=0)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    for size, side in ((160, 10), (96, 6)):
        changes = {"size": size}
        extractor = build_encoder("timm:test_vit-conv", weights=tmp_path / "vit.pth", transform=changes)
        assert extractor.grid == (side, side)
        own = timm.create_model("test_vit", num_classes=0, img_size=size).eval()
        state = dict(whole.state_dict())
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [side, side], num_prefix_tokens=1)
        own.load_state_dict(state)
        expected = own.forward_features(normalised(extractor))[:, 1:]
        assert_close(extractor(pixels_for(extractor)).flatten(2).transpose(1, 2), expected)


def test_weights_of_another_network_are_still_refused(tmp_path):
    torch.save(timm.create_model("test_vit2", num_classes=0).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="do not fit this encoder"):
        build_encoder("timm:test_vit-conv", weights=tmp_path / "other.pth", transform={"size": 96})


def test_positions_of_torchvisions_vits():
    small, large = (VisionTransformer(size, 8, 1, 2, 16, 16, num_classes=3) for size in (32, 48))
    state = OrderedDict(small.state_dict())
    assert interpolated(state, small, 32) is state
    found = interpolated(OrderedDict(state), large, 48)["encoder.pos_embedding"]
    grid = state["encoder.pos_embedding"][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    wanted = nn.functional.interpolate(grid, size=6, mode="bicubic", align_corners=True)
    assert_close(found[:, 1:], wanted.flatten(2).transpose(1, 2))
    assert torch.equal(found[:, 0], state["encoder.pos_embedding"][:, 0])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm:crossvit_tiny_240-conv", "timm:crossvit_tiny_240 gives several maps at once: name it alone"),
        ("timm:crossvit_tiny_240-tokens", "timm:crossvit_tiny_240 gives several maps at once"),
        ("timm:pit_ti_224-conv", "gives a vector only, no tokens of places in the image: leave out -conv"),
    ],
)
def test_networks_of_timm_without_a_map(name, told):
    with pytest.raises(UserError, match=told):
        build_encoder(name, pretrained=False)


def test_tokens_before_those_of_the_image():
    assert prefix_tokens(SimpleNamespace(num_prefix_tokens=5, cls_token=torch.zeros(1))) == 5
    assert prefix_tokens(SimpleNamespace(cls_token=torch.zeros(1))) == 1
    assert prefix_tokens(SimpleNamespace(cls_token=None)) == prefix_tokens(SimpleNamespace()) == 0


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_mambaout"])
@torch.no_grad()
def test_a_change_at_the_upper_right_is_at_the_upper_right_of_the_map(name):
    """Of tokens, and of maps with the channels in front or, as mambaout and Swin have them, behind."""
    torch.manual_seed(0)
    extractor = build_encoder(f"timm:{name}-conv", pretrained=False)
    pixels = pixels_for(extractor, 1)
    size, (rows, columns) = pixels.shape[2], extractor.grid
    changed = pixels.clone()
    changed[:, :, size // 50 : size // 7, -size // 5 : -size // 50] = 0
    difference = (extractor(pixels) - extractor(changed)).abs().sum(1)[0]
    row, column = divmod(int(difference.argmax()), columns)
    assert difference.shape == (rows, columns) and row < rows / 2 <= column


def test_tokens_that_lie_in_no_square():
    with pytest.raises(UserError, match="15 tokens lie in no square grid"):
        tokens_to_map(torch.zeros(1, 16, 3), 1)


def test_names():
    assert split_name("timm:vit_tiny_patch16_224.augreg-conv") == ("timm:vit_tiny_patch16_224.augreg", "conv")
    assert split_name("open_clip:ViT-B-32/openai-tokens") == ("open_clip:ViT-B-32/openai", "tokens")
    assert split_name("resnet152") == ("resnet152", "pooled")


# ---- open_clip ----


class Visual(nn.Module):
    """What open_clip's image networks have that is used of them."""

    def __init__(self, size: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 8, 8)
        self.positional_embedding = nn.Parameter(torch.randn((size // 8) ** 2 + 1, 4))
        self.output_tokens, self.image_size = True, (size, size)
        self.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}

    def _embed(self, x):
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        return torch.cat([patches.mean(1, keepdim=True), patches], 1) + self.positional_embedding

    def forward(self, x):
        tokens = self._embed(x)
        return (tokens[:, 0], tokens[:, 1:]) if self.output_tokens else tokens[:, 0]

    def forward_intermediates(self, x, indices, normalize_intermediates, intermediates_only, output_extra_tokens=False):
        tokens, side = self._embed(x), x.shape[2] // 8
        given = {"image_intermediates": [tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))]}
        return given | ({"image_intermediates_prefix": [tokens[:, :1]]} if output_extra_tokens else {})


@pytest.fixture
def open_clip(monkeypatch):
    """A stand-in for the package. created: the arguments of every network made."""
    package, inner = ModuleType("open_clip"), ModuleType("open_clip.model")
    package.created = []

    def create_model(name, pretrained=None, force_image_size=32, pretrained_text=True):
        package.created.append((name, pretrained, force_image_size, pretrained_text))
        if pretrained == "gone":
            raise OSError("no network")
        torch.manual_seed(0)
        return SimpleNamespace(visual=Visual(force_image_size))

    def resize_pos_embed(state, model):
        own = model.visual.positional_embedding
        old = state["visual.positional_embedding"]
        if old.shape != own.shape:
            state["visual.positional_embedding"] = old.mean(0, keepdim=True).expand_as(own).clone()

    package.create_model, inner.resize_pos_embed = create_model, resize_pos_embed
    package.list_models = lambda: ["ViT-B-32", "ViT-B-32-quickgelu"]
    package.list_pretrained_tags_by_model = lambda name: ["laion", "gone", "openai"]
    package.get_pretrained_cfg = lambda name, tag: {"quick_gelu": tag == "openai", "mean": (0.1, 0.2, 0.3)}
    package.get_model_config = lambda name: {"quick_gelu": True} if name.endswith("gelu") else {}
    monkeypatch.setitem(sys.modules, "open_clip", package)
    monkeypatch.setitem(sys.modules, "open_clip.model", inner)
    return package


@torch.no_grad()
def test_vectors_maps_and_tokens_of_open_clip(open_clip):
    found = {}
    for ending in ("", "-conv", "-tokens"):
        extractor = build_encoder(f"open_clip:ViT-B-32/laion{ending}")
        found[ending] = extractor(pixels_for(extractor))
    assert open_clip.created[0] == ("ViT-B-32", "laion", 32, False)
    assert extractor.transform == {"size": 32, "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3], "std": [0.25] * 3}
    tokens = extractor.network.visual._embed(normalised(extractor))
    assert_close(found[""], tokens[:, 0])
    assert_close(found["-conv"].flatten(2).transpose(1, 2), tokens[:, 1:])
    assert_close(found["-tokens"].squeeze(3).transpose(1, 2), tokens)
    assert extractor.blocks == ["visual.conv1"]


def test_weights_of_open_clip_from_a_file_and_another_size(open_clip, tmp_path):
    state = {f"module.visual.{name}": value for name, value in Visual(32).state_dict().items()}
    torch.save(state | {"module.text.x": torch.zeros(2)}, tmp_path / "clip.pth")
    name, weights = "open_clip:ViT-B-32/openai-conv", tmp_path / "clip.pth"
    with pytest.raises(UserError, match="weights are of the network ViT-B-32-quickgelu"):
        build_encoder(name, weights=weights)
    extractor = build_encoder("open_clip:ViT-B-32-conv", weights=weights, transform={"size": 64})
    assert open_clip.created[-1] == ("ViT-B-32", None, 64, False) and extractor.grid == (8, 8)
    assert torch.equal(extractor.network.visual.conv1.weight, state["module.visual.conv1.weight"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("open_clip:ViT-B-33/laion", "open_clip has no model 'ViT-B-33'; near: ViT-B-32"),
        ("open_clip:ViT-B-32/laoin", "open_clip has no weights 'laoin' of ViT-B-32; near: laion"),
        ("open_clip:ViT-B-32", "name the weights, open_clip:ViT-B-32/laion"),
        ("open_clip:ViT-B-32/gone", r"weights of open_clip:ViT-B-32/gone \(no network\): .*--weights FILE"),
    ],
)
def test_names_that_open_clip_does_not_know(open_clip, name, told):
    with pytest.raises(UserError, match=told):
        build_encoder(name)


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="needs the package open_clip: pip install open_clip_torch"):
        build_encoder("open_clip:ViT-B-32/openai")


@pytest.mark.slow
@torch.no_grad()
def test_the_package_itself():
    package = pytest.importorskip("open_clip")
    extractor = build_encoder("open_clip:ViT-S-32-alt-tokens", pretrained=False)
    own = package.create_model("ViT-S-32-alt").visual.eval()
    own.load_state_dict(extractor.network.visual.state_dict())
    own.output_tokens, x = True, normalised(extractor)
    _, patches = own(x)
    found = extractor(pixels_for(extractor)).squeeze(3).transpose(1, 2)
    assert found.shape == (2, 50, 384)
    assert_close(found[:, 1:], patches)
