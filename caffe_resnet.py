"""ResNet-152 as its authors trained it in Caffe (He et al. 2016), for weights converted to PyTorch's names.

Two things differ from torchvision's resnet152. In the first block of stages 3 to 5 the stride is in the first 1x1
convolution, not in the 3x3 one, and the pooling after the stem has no padding but rounds its output's size up. And the
weights of `resnet152caffe-original` expect pixels as Caffe's tools give them: blue, green, red in 0..255 minus the mean
of ImageNet (103.939, 116.779, 123.68). Those of `resnet152caffe-torchvision` were rescaled to torchvision's input.

Neither can be downloaded here: a file with the weights is named by --weights.
"""

from torch import Tensor, nn

from common import UserError

ORIGINAL, RESCALED = "resnet152caffe-original", "resnet152caffe-torchvision"
NAMES = {ORIGINAL: "resnet152", RESCALED: "resnet152"}  # -> the torchvision network that they are made of
MEAN_RGB = (123.68, 116.779, 103.939)  # grey levels
STEM = "conv1.weight"


def caffe_transform(name: str) -> dict:
    """What differs in the image transform: mean and std of red, green, blue with pixels in 0..1."""
    return {"mean": [m / 255 for m in MEAN_RGB], "std": [1 / 255] * 3} if name == ORIGINAL else {}


def as_caffe(model: nn.Module) -> nn.Module:
    """torchvision's resnet152 changed, in place, to Caffe's strides and pooling."""
    model.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return model


def caffe_weights(name: str, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights for red, green, blue: the first convolution's channels are reversed instead of the pixels'.

    Raises UserError where there are none.
    """
    if state is None:
        raise UserError(f"the weights of {name} cannot be downloaded: name a local copy with --weights FILE")
    if name == ORIGINAL and STEM in state:
        state = {**state, STEM: state[STEM].flip(1)}
    return state
