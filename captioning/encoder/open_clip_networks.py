"""The image networks of open_clip (Radford et al. 2021, Cherti et al. 2023). The package is imported only where one is
named: open_clip:NAME/TAG, an architecture and the weights to take, as open_clip lists them.
"""

import contextlib
import logging

import torch
from torch import Tensor, nn

from captioning.encoder.encoder import block_names
from captioning.encoder.names import near, no_tokens
from captioning.encoder.tokens import tokens_to_regions
from captioning.encoder.transforms import ImageTransform
from captioning.encoder.weights import load_weights, read_weights
from captioning.errors import UserError, one_line


class OpenClip(nn.Module):
    """An image network of open_clip as an encoder.

    kind: "pooled", the image's embedding, the one that CLIP compares with texts; "conv", the last map before the
    pooling; "tokens", the class token and the map's regions.
    """

    def __init__(self, visual: nn.Module, kind: str, name: str):
        super().__init__()
        self.name = name
        self.visual, self.kind = visual, kind
        if hasattr(visual, "output_tokens"):
            visual.output_tokens = False
        self.normal = getattr(visual, "attn_pool", None) is None  # else the last norm comes after a pooling

    def forward(self, pixels: Tensor) -> Tensor:
        if self.kind == "pooled":
            return self.visual(pixels)
        options = {"normalize_intermediates": self.normal, "intermediates_only": True}
        if self.kind == "conv":
            return self.visual.forward_intermediates(pixels, 1, **options)["image_intermediates"][-1]
        try:
            given = self.visual.forward_intermediates(pixels, 1, **options, output_extra_tokens=True)
            last, prefix = (given[name][-1] for name in ("image_intermediates", "image_intermediates_prefix"))
        except (KeyError, TypeError):  # a network that has none, or knows no such question
            raise no_tokens(self.name) from None
        return tokens_to_regions(torch.cat([prefix, last.flatten(2).transpose(1, 2)], 1))


def build_open_clip(base: str, kind: str, weights: str | None, pretrained: bool, changes: dict):
    """What build_encoder makes an ImageEncoder of: the network, its transform, the names in its state dict in order,
    the names of its blocks. Arguments as there.
    """
    try:
        import open_clip
    except ImportError:
        raise UserError(f"{base} needs the package open_clip: pip install open_clip_torch") from None
    name, _, tag = base.removeprefix("open_clip:").partition("/")
    if name not in open_clip.list_models():
        raise UserError(f"open_clip has no model {name!r}{near(name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise UserError(f"open_clip has no weights {tag!r} of {name}{near(tag, tags)}; it has {len(tags)} kinds")
    of_tag = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    check_activation(name, tag, of_tag, open_clip)
    download = pretrained and weights is None
    if download and not tag:
        raise UserError(f"{base}: name the weights, {base}/{tags[0] if tags else 'TAG'}, or a file of them (--weights)")
    try:
        with silent():
            size = {"force_image_size": changes["size"]} if "size" in changes else {}
            model = open_clip.create_model(name, tag if download else None, pretrained_text=False, **size)
    except Exception as error:  # open_clip and its hub raise errors of many kinds
        raise UserError(
            f"cannot get the weights of {base} ({one_line(error)}): name a copy with --weights FILE"
        ) from error
    if weights is not None:
        load_weights(model.visual, of_images(read_weights(weights), model), weights)
    network = OpenClip(model.visual.eval(), kind, base)
    transform = transform_of({**model.visual.preprocess_cfg, **of_tag}, model.visual.image_size) | changes
    parts, place = (model.visual.trunk, "visual.trunk") if hasattr(model.visual, "trunk") else (model.visual, "visual")
    return network, transform, list(network.state_dict()), [f"{place}.{name}" for name in block_names(parts)]


def check_activation(name: str, tag: str, of_tag: dict, open_clip) -> None:
    """Raises UserError where the weights were trained with another activation than the network has.

    open_clip only warns of it, and the features are then not those of the weights.
    """
    needed = of_tag.get("quick_gelu", False)
    if tag and needed != open_clip.get_model_config(name).get("quick_gelu", False):
        other = f"{name}-quickgelu" if needed else name.removesuffix("-quickgelu")
        raise UserError(f"open_clip:{name}/{tag}: these weights are of the network {other}: open_clip:{other}/{tag}")


def transform_of(settings: dict, size: int | tuple[int, int]) -> dict:
    """The image transform that `settings`, open_clip's own, describe for images of `size` pixels."""
    interpolation = settings["interpolation"]
    return {
        "size": size if isinstance(size, int) else size[0],
        "interpolation": interpolation if interpolation in ImageTransform.FILTERS else "bicubic",
        "mean": list(settings["mean"]),
        "std": list(settings["std"]),
    }


def of_images(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of the image network among those of a file, positions interpolated for images of another size."""
    from open_clip.model import resize_pos_embed

    state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("visual.") for key in state):
        state = {f"visual.{key}": value for key, value in state.items()}
    with silent():
        resize_pos_embed(state, model)
    return {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}


@contextlib.contextmanager
def silent():
    """Keep what the package logs about weights that were not loaded, which is as it should be, from the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
