"""Captions from features in memory, without files and photos: what DeepCaption calls incore.

    from model import caption_features, load_captioner

    captioner = load_captioner("models/mymodel/best.model", photos=False)
    vectors = numpy.load("features.npy")                       # (B, 2048), by the model's own encoder
    for best, *_ in caption_features(captioner, vectors):
        print(best.text, best.log_prob)

Shapes: B images, D feature size, (h, w) grid of a map, R = h * w regions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common import UserError
from decoding import Search


def caption_features(
    captioner, features=None, persist_features=None, search: Search | None = None, batch_size: int = 32
) -> list[list]:
    """Captions of B images from their features, `search.n_best` model.Caption objects each, best first.

    features: for the one name of the model's `--features` an array, a tensor, or nested lists of numbers; for several
    names a list or tuple of such, in the order of the names. A vector feature is (B, D), a map (B, D, h, w) or its
    regions row by row (B, R, D); a single image may leave B out. persist_features: the same for `--persist_features`.
    Both may stand in for encoders that run within the model. search: beam 3 unless it says otherwise.
    batch_size: images decoded at a time.
    Raises UserError where a feature that the model needs is not given, or one has another shape or is not finite.
    """
    config = captioner.config
    inputs = _per_name("features", features, config.features)
    inputs += _per_name("persist_features", persist_features, config.persist_features)
    counts = {len(values) for values in inputs}
    if len(counts) > 1:
        raise UserError(f"features of different numbers of images: {', '.join(map(str, sorted(counts)))}")
    captions = []
    for start in range(0, counts.pop(), batch_size):
        batch = [values[start : start + batch_size].to(captioner.device) for values in inputs]
        captions += captioner.caption(captioner.encode(None, batch), search or Search(beam_size=3))
    return captions


def _per_name(argument: str, given, specs: Sequence) -> list[Tensor]:
    """A tensor (B, D) or (B, R, D) for each of `specs`."""
    names = ", ".join(spec.name for spec in specs) or "none"
    if given is None:
        given = []
    elif len(specs) == 1 and not _one_for_each(given, specs):
        given = [given]
    if not isinstance(given, list | tuple) or len(given) != len(specs):
        count = len(given) if isinstance(given, list | tuple) else 1
        raise UserError(
            f"caption_features: {argument} must be one array for each of the model's ({names}), not {count}"
        )
    return [_tensor(f"{argument} for {spec.name}", values, spec.shape) for spec, values in zip(specs, given)]


def _one_for_each(given, specs: Sequence) -> bool:
    """Whether a list for a single name is that of its one array, rather than the array's rows."""
    if not isinstance(given, list | tuple) or len(given) != 1:
        return False
    return np.ndim(given[0]) >= len(specs[0].shape)


def _tensor(what: str, values, shape: tuple[int, ...]) -> Tensor:
    """`values` as (B, D) or (B, R, D) float32, checked against the `shape` of the model's feature."""
    try:
        tensor = torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values, np.float32)).float()
    except (TypeError, ValueError) as error:
        raise UserError(f"caption_features: {what} are no array of numbers ({error})") from error
    regions = (int(np.prod(shape[1:])), shape[0]) if len(shape) == 3 else None
    if tuple(tensor.shape) in (tuple(shape), regions):
        tensor = tensor.unsqueeze(0)
    if tuple(tensor.shape[1:]) not in (tuple(shape), regions) or tensor.ndim < 2 or not len(tensor):
        wanted = " or ".join(str(("B", *size)).replace("'", "") for size in (tuple(shape), regions) if size)
        raise UserError(f"caption_features: {what} have shape {tuple(tensor.shape)}, but the model reads {wanted}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"caption_features: {what} hold values that are not finite")
    return tensor.flatten(2).transpose(1, 2) if tensor.dim() == 4 else tensor
