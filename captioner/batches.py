"""Captions batch by batch: of the images of a loader, and of images whose features the caller has."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from captioning.batches.arrays import tensors_for
from captioning.decoder.search import BEAMS, Search
from captioning.devices import autocast
from captioning.errors import UserError
from captioning.fast.threads import map_on_cores


def caption_loader(captioner, loader: Iterable, search: Search | None, amp: str = "off") -> Iterator[tuple]:
    """(batch, memory, captions of its images, None without `search`) in turn.

    captioner: a Captioner; loader: gives data_loader.Batch objects; amp: "bf16" for mixed precision.
    """

    def work(batch):
        with autocast(captioner.device, amp):
            memory = captioner.encode(*batch_inputs(captioner, batch))
            return batch, memory, None if search is None else captioner.caption(memory, search, decoder)

    with autocast(captioner.device, amp):
        decoder = None if search is None else captioner.ready_decoder()
    alone = search is None or search.sample or captioner.device.type != "cpu"  # samples depend on the order of draws
    yield from map(work, loader) if alone else map_on_cores(work, loader)


def batch_inputs(captioner, batch) -> tuple[Tensor | None, list[Tensor | None]]:
    """Pixels and inputs of a data_loader.Batch, on the model's device, as `CaptionModel.encode` takes them.

    The model's inputs come first in the batch; those of other models may follow.
    """
    own = [batch.pixels, *batch.inputs[: len(captioner.config.specs)]]
    pixels, *inputs = [None if x is None else x.to(captioner.device, non_blocking=True) for x in own]
    return pixels, inputs


def caption_features(
    captioner, features=None, persist_features=None, search: Search | None = None, batch_size: int = 32
) -> list[list]:
    """Captions of B images from their features, `search.n_best` model.Caption objects each, best first.

    features: for the one name of the model's `--features` an array, a tensor, or nested lists of numbers; for several
    names a list or tuple of such, in the order of the names. A vector feature is (B, D), a map (B, D, h, w) or its
    regions row by row (B, R, D); a single image may leave B out. Where images have different numbers of regions, a list
    with an array (R, D) for each will do. persist_features: the same for `--persist_features`.
    Both may stand in for encoders that run within the model. search: None for beam 3. batch_size: images at a time.
    Raises UserError where a feature that the model needs is not given, or one has another shape or is not finite.
    """
    config = captioner.config
    inputs = tensors_for("features", features, config.features)
    inputs += tensors_for("persist_features", persist_features, config.persist_features)
    counts = {len(values) for values in inputs}
    if len(counts) > 1:
        raise UserError(f"features of different numbers of images: {', '.join(map(str, sorted(counts)))}")
    captions, decoder = [], captioner.ready_decoder()
    for start in range(0, counts.pop(), batch_size):
        batch = [values[start : start + batch_size].to(captioner.device) for values in inputs]
        captions += captioner.caption(captioner.encode(None, batch), search or Search(BEAMS), decoder)
    return captions
