"""Encoders whose last map is flattened instead of averaged: `alexnet-flat` and `densenet201-flat`.

DeepCaption fed its decoders 256 x 6 x 6 = 9,216 numbers of AlexNet and 1,920 x 7 x 7 = 94,080 of DenseNet-201 (before
its last ReLU), in that order of channels, rows, columns. Models trained on them need the same numbers; new models learn
from the much smaller `alexnet` and `densenet201`.
"""

import re

import torch
from torch import Tensor, nn

from common import UserError
from encoder_weights import download_weights, load_weights, read_weights

NAMES = ("alexnet", "densenet201")


def build_flat(base: str, conv: bool, weights: str | None, pretrained: bool, changes: dict):
    """What encoder.build_extractor makes an Extractor of: the network up to the classifier, its transform, the names
    in its state dict in order, the names of its blocks. Arguments as there. Raises UserError for another network.
    """
    from torchvision import models

    base = base.removesuffix("-flat")
    if base not in NAMES:
        raise UserError(f"unknown encoder {base}-flat: -flat exists for {' and '.join(NAMES)}")
    entry = models.get_model_weights(base).IMAGENET1K_V1
    preset = entry.transforms()
    transform = {
        "size": preset.crop_size[0],
        "interpolation": preset.interpolation.value,
        "mean": preset.mean,
        "std": preset.std,
    }
    if changes.get("size", transform["size"]) != transform["size"]:
        raise UserError(f"{base}-flat takes images of {transform['size']} pixels only, not {changes['size']}")
    with torch.device("meta"):  # the random weights of its classifier would take seconds
        model = models.get_model(base, weights=None).eval()
    names = [name for name, _ in list(model.named_children())[:-1]]
    network = nn.Sequential(*(getattr(model, name) for name in names), nn.Flatten()).to_empty(device="cpu")
    if pretrained or weights:
        state = modern_names(read_weights(weights) if weights else download_weights(base, entry.url))
        places = {name: str(index) for index, name in enumerate(names)}
        state = {".".join([places.get(first, first), *rest]): x for (first, *rest), x in split_names(state)}
        load_weights(network, state, weights or entry.url)
    else:
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    blocks = [f"0.{name}" for name, part in network[0].named_children() if any(p.ndim > 1 for p in part.parameters())]
    return network, transform | changes, list(network.state_dict()), blocks


def split_names(state: dict[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    return [(name.split("."), value) for name, value in state.items()]


def modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's tensors in files from before 2018: `norm.1` instead of `norm1`."""
    return {re.sub(r"\b(norm|relu|conv)\.([12])\.", r"\1\2.", key): value for key, value in state.items()}
