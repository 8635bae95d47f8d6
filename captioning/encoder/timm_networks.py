"""Networks of timm as encoders. The package is imported only where one is named."""

import sys

from torch import Tensor, nn

from captioning.encoder.encoder import block_names
from captioning.encoder.names import near, no_tokens
from captioning.encoder.tokens import tokens_to_map, tokens_to_regions
from captioning.encoder.transforms import ImageTransform
from captioning.encoder.weights import load_weights, read_weights
from captioning.errors import UserError, one_line


class Timm(nn.Module):
    """A timm model as an encoder. kind: "pooled", "conv" or "tokens"."""

    def __init__(self, model: nn.Module, kind: str, name: str):
        super().__init__()
        self.name = name
        self.model, self.kind = model, kind
        self.tokens: bool | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.model.forward_features(pixels)
        if self.kind == "pooled":
            return self.model.forward_head(x)  # num_classes=0: what the classifier would read
        if self.tokens is None:  # the first run tells; torch.fx, which traces later ones, could not
            if not isinstance(x, Tensor):
                raise UserError(f"{self.name}-{self.kind}: {self.name} gives several maps at once: name it alone")
            self.tokens = x.ndim == 3
        if self.kind == "tokens" and not self.tokens:
            raise no_tokens(self.name)
        if self.tokens:
            return tokens_to_map(x, prefix_tokens(self.model)) if self.kind == "conv" else tokens_to_regions(x)
        return x.permute(0, 3, 1, 2) if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC") else x


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens of a model, of its classes and the like, come before those of the image."""
    own = 0 if getattr(model, "cls_token", None) is None else 1  # VOLO, for one, does not give their number
    return getattr(model, "num_prefix_tokens", own)


def build_timm(base: str, kind: str, weights: str | None, pretrained: bool, changes: dict):
    """What build_encoder makes an ImageEncoder of: the network up to the classifier, its transform, the names in its
    state dict in order, the names of its blocks. Arguments as there.
    """
    try:
        import timm
    except ImportError:
        raise UserError(f"{base} needs the package timm: pip install timm") from None
    name = base.removeprefix("timm:")
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{near(name, timm.list_models())}")
    try:
        # a transformer's positions are for one size; timm interpolates those of its own weights
        fixed = "size" in changes and timm.get_pretrained_cfg(name).fixed_input_size
        options = {"img_size": changes["size"]} if fixed else {}
        model = timm.create_model(name, pretrained=pretrained and weights is None, num_classes=0, **options)
    except Exception as error:  # timm and its hub raise errors of many kinds
        raise UserError(
            f"cannot get the weights of {base} ({one_line(error)}): name a copy with --weights FILE"
        ) from error
    data = timm.data.resolve_model_data_config(model)
    interpolation = data["interpolation"] if data["interpolation"] in ImageTransform.FILTERS else "bicubic"
    size, mean, std = data["input_size"][-1], list(data["mean"]), list(data["std"])
    transform = {"size": size, "interpolation": interpolation, "mean": mean, "std": std} | changes
    if weights is not None:
        load_weights(model, suited(read_weights(weights), model), weights)
    network = Timm(model.eval(), kind, base)
    return network, transform, list(network.state_dict()), [f"model.{name}" for name in block_names(model)]


def suited(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state` as timm would load it where it does not fit as it is: positions interpolated for images of another size.

    What fits neither way is left for `load_weights` to complain about.
    """
    own = model.state_dict()
    if all(key in state and state[key].shape == value.shape for key, value in own.items()):
        return state
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if change is None:
        return state
    try:
        return change(dict(state), model)
    except Exception:  # noqa: BLE001 - weights of another network
        return state
