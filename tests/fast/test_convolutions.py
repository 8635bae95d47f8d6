"""Convolutions with activation and sum in one, held to the network's own modules."""

import pickle

import pytest
import timm
import torch
from torch import nn

from captioning.encoder.factory import build_encoder
from captioning.fast.convolutions import NOTHING, FusedConvolution, fuse_convolutions

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def fused_parts(network: nn.Module) -> list:
    return [module for module in network.modules() if isinstance(module, FusedConvolution)]


def check(network: nn.Module, example: torch.Tensor, convolutions: int, activations: int, sums: int) -> nn.Module:
    """`network` fused, whose output must be its own; counts of what went into one operation."""
    network = network.eval().requires_grad_(False)
    fused = fuse_convolutions(network, example)
    parts = fused_parts(fused)
    assert len(parts) == convolutions
    assert sum(part.activation is not NOTHING for part in parts) == activations
    calls = [node for node in fused.graph.nodes if str(node.target).startswith("fused_")]
    assert sum(len(node.args) == 2 for node in calls) == sums
    assert {part.packed_for for part in parts} == {len(example)}
    for count in (1, 3, 4, 5):
        batch = torch.randn(count, *example.shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(fused(batch), network(batch), rtol=1e-5, atol=1e-5)
    return fused


class Block(nn.Module):
    def __init__(self, activation: nn.Module, order: str = "conv first"):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1, bias=False)
        self.act, self.order, self.idle = activation, order, nn.Dropout(0.5)

    def forward(self, x):
        a, b = self.idle(self.a(x)), self.b(x)
        return self.act(a + b if self.order == "conv first" else b.add(a) * 2)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_activation_after_a_convolution(activation):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), activation(), nn.Conv2d(16, 4, 1), nn.Flatten())
    check(network, torch.randn(4, 3, 21, 18), convolutions=2, activations=1, sums=0)


def test_a_sum_of_two_convolutions():
    torch.manual_seed(0)
    check(Block(nn.ReLU(inplace=True)), torch.randn(1, 3, 9, 9), convolutions=2, activations=1, sums=1)
    # oneDNN joins only a ReLU to a sum: the other stays behind it
    check(Block(nn.Hardswish()), torch.randn(1, 3, 9, 9), convolutions=2, activations=0, sums=1)
    check(Block(nn.ReLU(), "method"), torch.randn(1, 3, 9, 9), convolutions=2, activations=0, sums=0)


def test_what_has_two_readers_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.relu(y) * y + (x + x)

    check(Twice(), torch.randn(1, 3, 8, 8), convolutions=1, activations=0, sums=0)


def test_a_sum_with_itself_or_by_broadcasting_stays():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            a = self.a(x)
            return (a + a) + self.b(x).mean((2, 3), keepdim=True) + 1

    check(Sums(), torch.randn(1, 3, 8, 8), convolutions=2, activations=0, sums=0)


def test_other_kinds_of_convolution_stay():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    kinds = [Scaled(3, 3, 1), nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1)]
    check(nn.Sequential(nn.Conv2d(3, 3, 1), *kinds), torch.randn(1, 3, 8, 8), convolutions=1, activations=0, sums=0)
    alone = nn.Sequential(*kinds).eval()
    assert fuse_convolutions(alone, torch.randn(1, 3, 8, 8)) is alone


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (31, 35)])
@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 2), (5, 1), (1, 2), (3, 3)])
def test_uneven_padding_becomes_zeros_in_the_kernel(size, kernel, stride):
    torch.manual_seed(0)
    same = timm.layers.Conv2dSame(3, 6, kernel, stride=stride, groups=3)
    network = nn.Sequential(same, nn.ReLU6())
    check(network, torch.randn(1, 3, *size), convolutions=1, activations=1, sums=0)


@pytest.mark.parametrize(
    "name", ["timm:tf_efficientnet_lite0", "timm:mobilenetv3_small_050", "resnet18", "densenet121", "mobilenet_v2"]
)
def test_real_networks(name, plainly):
    torch.manual_seed(0)
    extractor = build_encoder(f"{name}-conv", pretrained=False, transform={"size": 96})
    pixels = torch.randint(0, 256, (5, 3, 96, 96), dtype=torch.uint8)
    found = extractor(pixels)
    assert len(fused_parts(extractor.fast.network)) > 15
    expected = plainly(extractor, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_made_anew_for_images_of_another_size(plainly):
    torch.manual_seed(0)
    extractor = build_encoder("timm:tf_efficientnet_lite0-conv", pretrained=False)
    for size in (64, 96, 75, 64):  # uneven padding depends on it
        pixels = torch.randint(0, 256, (2, 3, size, size + 32), dtype=torch.uint8)
        expected = plainly(extractor, pixels)
        torch.testing.assert_close(extractor(pixels), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    again = pickle.loads(pickle.dumps(extractor))  # oneDNN's own copies of the weights do not travel
    assert again(pixels).equal(extractor(pixels))


def test_trained_parts_stay_the_networks_own(plainly):
    torch.manual_seed(0)
    extractor = build_encoder("resnet18-conv", pretrained=False, transform={"size": 64})
    extractor.unfreeze(last=3)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    extractor(pixels).square().mean().backward()
    network = extractor.network
    assert len(fused_parts(extractor.fast.network)) == 1 + 4 + 5 + 3  # conv1, layer1, layer2, layer3.0
    got = {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
    network.zero_grad()
    plainly(extractor, pixels).square().mean().backward()
    for name, gradient in got.items():
        expected = network.get_parameter(name).grad
        assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def test_mixed_precision_runs_the_plain_network():
    extractor = build_encoder("resnet18", pretrained=False, transform={"size": 64})
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    whole = extractor(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        half = extractor(pixels)
        assert not fused_parts(extractor.fast.network)
    assert (half - whole).abs().max() < 0.05 * whole.abs().max()
    assert extractor(pixels).equal(whole) and fused_parts(extractor.fast.network)


def test_networks_that_cannot_be_traced_are_given_back(monkeypatch):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    network = Branches().eval().requires_grad_(False)
    assert fuse_convolutions(network, torch.ones(1, 3, 4, 4)) is network
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval().requires_grad_(False)
    monkeypatch.setattr(FusedConvolution, "forward", lambda self, x, other=None: x + 1)  # a wrong result is noticed
    assert fuse_convolutions(plain, torch.ones(1, 3, 4, 4)) is plain


@pytest.mark.parametrize("blocks", [1, 3])
def test_what_validation_makes_can_be_trained(blocks, fast):
    """A run may go on with a validation, before its process has trained anything."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    gradients = []
    for validated in (False, True):
        encoder = build_encoder("efficientnet_lite0", pretrained=False, transform={"size": 64})
        encoder.load_state_dict({name: torch.full_like(x, 0.01) for name, x in encoder.state_dict().items()})
        encoder.unfreeze(last=blocks)
        if validated:
            with torch.inference_mode():
                encoder(pixels)
        encoder(pixels).sum().backward()
        gradients.append(next(p.grad for p in encoder.parameters() if p.requires_grad))
    assert torch.equal(*gradients)
