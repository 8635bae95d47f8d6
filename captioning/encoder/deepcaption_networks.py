"""Networks that DeepCaption had beside torchvision's: flattened maps, and Caffe's ResNet-152."""

import re

import torch
from torch import Tensor, nn

from captioning.encoder.weights import download_weights, initialise, load_weights, read_weights, transform_of
from captioning.errors import UserError

FLAT_NAMES = ("alexnet", "densenet201")


def build_flat(base: str, kind: str, weights: str | None, pretrained: bool, changes: dict):
    """What build_encoder makes an ImageEncoder of: the network up to the classifier, its transform, the names in its
    state dict in order, the names of its blocks. Arguments as there. Raises UserError for another network.
    """
    from torchvision import models

    base = base.removesuffix("-flat")
    if base not in FLAT_NAMES:
        raise UserError(f"unknown encoder {base}-flat: -flat exists for {' and '.join(FLAT_NAMES)}")
    entry = models.get_model_weights(base).IMAGENET1K_V1
    transform = transform_of(entry)
    if changes.get("size", transform["size"]) != transform["size"]:
        raise UserError(f"{base}-flat takes images of {transform['size']} pixels only, not {changes['size']}")
    with torch.device("meta"):  # the random weights of its classifier would take seconds
        model = models.get_model(base, weights=None).eval()
    network = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
    if pretrained or weights:
        state = modern_names(read_weights(weights) if weights else download_weights(base, entry.url))
        state = {re.sub(r"^features\.", "0.", name): value for name, value in state.items()}
        load_weights(network, state, weights or entry.url)
    else:
        initialise(network)
    blocks = [f"0.{name}" for name, part in network[0].named_children() if any(p.ndim > 1 for p in part.parameters())]
    return network, transform | changes, list(network.state_dict()), blocks


def modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's tensors in files from before 2018: `norm.1` instead of `norm1`."""
    return {re.sub(r"\b(norm|relu|conv)\.([12])\.", r"\1\2.", key): value for key, value in state.items()}


ORIGINAL, RESCALED = "resnet152caffe-original", "resnet152caffe-torchvision"
CAFFE_NAMES = {ORIGINAL: "resnet152", RESCALED: "resnet152"}  # -> the torchvision network that they are made of
MEAN_RGB = (123.68, 116.779, 103.939)  # grey levels
STEM = "conv1.weight"
# What differs in the image transform: mean and std of red, green, blue with pixels in 0..1.
CAFFE_TRANSFORMS = {ORIGINAL: {"mean": [m / 255 for m in MEAN_RGB], "std": [1 / 255] * 3}, RESCALED: {}}


def as_caffe(model: nn.Module) -> nn.Module:
    """torchvision's resnet152 changed, in place, to Caffe's strides and pooling."""
    model.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return model


def caffe_weights(name: str, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights for red, green, blue: instead of the pixels' the first convolution's channels are reversed."""
    if state is None:
        raise UserError(f"the weights of {name} cannot be downloaded: name a local copy with --weights FILE")
    if name == ORIGINAL and STEM in state:
        state = {**state, STEM: state[STEM].flip(1)}
    return state
