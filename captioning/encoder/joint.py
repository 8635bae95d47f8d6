"""A map and ImageNet's classes of the same photos by one run of their network.

    share_layers(extractors)                     # once: the encoder of the classes takes over what is the same
    features = encode_all({"efficientnet_lite2-conv": main, "efficientnet_lite2-classes": classes}, pixels)  # by name

The encoder of the classes stays as it was trained on ImageNet while the last blocks of the other one train: of these
blocks it has copies of its own. All other layers are the same modules in both encoders, and a model file holds them
once.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.lite import LiteFeatures
from captioning.encoder.ten_crops import encode_views


class JointNetwork(nn.Module):
    """Normalised pixels (B, 3, h, w) -> the outputs of two networks, which share layers up to a block."""

    def __init__(self, main: LiteFeatures, classes: LiteFeatures):
        super().__init__()
        self.main, self.classes = main, classes

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(zip(self.main.model.steps(), self.classes.model.steps()))
        shared = next((i for i, (one, other) in enumerate(parts) if one[0] is not other[0]), len(parts))
        x = pixels
        for one, _ in parts[:shared]:
            x = run_step(one, x)
        outputs = []
        for side, network in enumerate((self.main, self.classes)):
            y = x
            for step in parts[shared:]:
                y = run_step(step[side], y)
            outputs.append(network.of_map(y))
        return outputs[0], outputs[1]


def run_step(step: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    for layer in step:
        x = layer(x)
    return x


def pairs(extractors: Iterable[nn.Module]) -> list[tuple[ImageEncoder, ImageEncoder]]:
    """(the encoder of a map or a vector, that of the classes by the same network from the same pixels)."""
    lite = [x for x in extractors if isinstance(x, ImageEncoder) and isinstance(x.network, LiteFeatures)]
    found = []
    for classes in dict.fromkeys(x for x in lite if x.network.kind == "classes"):
        own = classes.name.removesuffix("-classes"), classes.transform
        for main in lite:
            if main is not classes and (main.name.removesuffix("-conv"), main.transform) == own:
                found.append((main, classes))
                break
    return found


def share_layers(extractors: Iterable[nn.Module]) -> None:
    """Give the encoders of classes the layers of the others, of their network, that have the same weights."""
    for main, classes in pairs(extractors):
        for names in main.network.model.step_names():
            own, others = ([part(encoder, name) for name in names] for encoder in (classes, main))
            if all(map(same_values, own, others)):
                put(classes, names, others)
        main.forget()


def give_own_layers(main: ImageEncoder, classes: ImageEncoder) -> None:
    """Give `classes` copies of its own of the layers of `main` that train, before their first step."""
    for names in main.network.model.step_names():
        layers = [part(main, name) for name in names]
        if part(classes, names[0]) is layers[0] and any(p.requires_grad for x in layers for p in x.parameters()):
            put(classes, names, [copy.deepcopy(layer).requires_grad_(False) for layer in layers])
    main.forget()


def share_absent_layers(main: ImageEncoder, classes: ImageEncoder, given: set[str]) -> None:
    """Give `classes` the layers of `main` that have no tensor among the names `given` of its state."""
    for names in main.network.model.step_names():
        if not any(key.startswith(f"network.model.{name}.") for name in names for key in given):
            put(classes, names, [part(main, name) for name in names])
    main.forget()


def shared_names(main: ImageEncoder, classes: ImageEncoder) -> set[str]:
    """Names in the state dict of `classes` of the tensors that are those of `main`."""
    names = [name for step in main.network.model.step_names() for name in step]
    shared = [name for name in names if part(classes, name) is part(main, name)]
    return {f"network.model.{name}.{key}" for name in shared for key in part(main, name).state_dict()}


def part(encoder: ImageEncoder, name: str) -> nn.Module:
    return encoder.network.model.get_submodule(name)


def put(encoder: ImageEncoder, names: Iterable[str], layers: Iterable[nn.Module]) -> None:
    for name, layer in zip(names, layers):
        encoder.network.model.set_submodule(name, layer)


def same_values(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def encode_all(extractors: Mapping[str, nn.Module], pixels: Tensor) -> dict[str, Tensor]:
    """What each of `extractors` makes of pixels (B, 3, S, S), or of views (B, W, 3, S, S) of photos.

    One that stands under several names runs once, and so do the layers that two of them share.
    """
    made: dict[nn.Module, Tensor] = {}
    plain = pixels[:, 0] if pixels.dim() == 5 else pixels
    for main, classes in pairs(extractors.values()):
        if main in made or not shared_names(main, classes):
            continue
        if not main.joint or main.joint[0] is not classes:
            main.joint = classes, JointNetwork(main.network, classes.network)
        made[main], made[classes] = main.together(main.joint[1], plain)
    for extractor in extractors.values():
        if extractor not in made:
            made[extractor] = encode_views(extractor, pixels)
    return {name: made[extractor] for name, extractor in extractors.items()}
