"""Features that a caller holds in memory: checks, and the tensors that a model reads."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioning.errors import UserError


def tensors_for(argument: str, given, specs: Sequence) -> list[Tensor]:
    """A tensor (B, D) or (B, R, D) for each of `specs`."""
    names = ", ".join(spec.name for spec in specs) or "none"
    is_list = isinstance(given, list | tuple)
    if given is None:
        given, is_list = [], True
    elif len(specs) == 1 and not (is_list and len(given) == 1 and _dimensions(given[0]) >= len(specs[0].shape)):
        given, is_list = [given], True  # the one array, or a list of its rows
    if not is_list or len(given) != len(specs):
        wanted = f"one array for each of the model's ({names}), not {len(given) if is_list else 1}"
        raise UserError(f"caption_features: {argument} must be {wanted}")
    return [_tensor(f"{argument} for {spec.name}", values, spec.shape) for spec, values in zip(specs, given)]


def _dimensions(values) -> int:
    """The dimensions of an array or of nested lists; 3 of images with different numbers of regions."""
    try:
        return np.ndim(values)
    except ValueError:
        return 3


def _padded(values):
    """A list of regions (R, D), R of each image, as one tensor with regions of zeros behind; anything else as it is."""
    if not isinstance(values, list | tuple):
        return values
    try:
        images = [torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x, np.float32)).float() for x in values]
    except (TypeError, ValueError):
        return values
    alike = images and all(x.ndim == 2 and x.shape[1] == images[0].shape[1] for x in images)
    return pad_sequence(images, batch_first=True) if alike else values


def _tensor(what: str, values, shape: tuple[int, ...]) -> Tensor:
    """`values` as (B, D) or (B, R, D) float32, checked against the `shape` of the model's feature."""
    varying = len(shape) == 3 and shape[1] == 0  # any number of regions
    if varying:
        values = _padded(values)
    try:
        tensor = torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values, np.float32)).float()
    except (TypeError, ValueError) as error:
        raise UserError(f"caption_features: {what} are no array of numbers ({error})") from error
    if varying:
        wanted = max(1, tensor.shape[-2]) if tensor.ndim > 1 else 1
        shape = (shape[0], wanted, 1)
    regions = (int(np.prod(shape[1:])), shape[0]) if len(shape) == 3 else None
    if tuple(tensor.shape) in (tuple(shape), regions):
        tensor = tensor.unsqueeze(0)
    if tuple(tensor.shape[1:]) not in (tuple(shape), regions) or tensor.ndim < 2 or not len(tensor):
        wanted = " or ".join(str(("B", *size)).replace("'", "") for size in (tuple(shape), regions) if size)
        raise UserError(f"caption_features: {what} have shape {tuple(tensor.shape)}, but the model reads {wanted}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"caption_features: {what} hold values that are not finite")
    return tensor.flatten(2).transpose(1, 2) if tensor.dim() == 4 else tensor
