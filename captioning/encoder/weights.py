"""Weights of encoders: from files, torchvision's downloads or at random, and putting them into a network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from captioning.errors import UserError, one_line
from captioning.files import require_plain_file
from captioning.tensor_files import read_tensors


def read_weights(path) -> dict[str, Tensor]:
    """The state dict in a .pth/.pt or .safetensors file, also one wrapped as {"state_dict": ...} or {"model": ...}.

    Raises UserError where the file is damaged or holds something else.
    """
    require_plain_file(path, "--weights")
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        state = read_tensors(path)
    except UserError:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise UserError(f"cannot read weights from {path}: {one_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise UserError(f"{path} holds no state dict (a table of names and tensors)")
    return state


def download_weights(name: str, url: str) -> dict[str, Tensor]:
    """The state dict from torch.hub's cache, or else from `url`."""
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rsplit("/", 1)[-1]
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a cut transfer, a damaged copy
        raise UserError(
            f"cannot get the weights of {name} ({one_line(error)}): put {file} (from {url}) into {folder}, "
            "or name a local copy with --weights FILE"
        ) from error


def load_weights(network: nn.Module, state: dict[str, Tensor], source) -> None:
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


def initialise(network: nn.Module) -> None:
    """Give a network that lies on meta the random weights of its layers' own defaults."""
    network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, parameter in network.named_parameters():
        if not isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            nn.init.normal_(parameter, std=0.02)


def transform_of(entry) -> dict:
    """The image transform that belongs to weights of torchvision."""
    preset = entry.transforms()
    size, interpolation = preset.crop_size[0], preset.interpolation.value
    return {"size": size, "interpolation": interpolation, "mean": preset.mean, "std": preset.std}
