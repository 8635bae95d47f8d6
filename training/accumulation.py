"""Gradient accumulation: a batch is computed in parts, one after another, and their gradients add up to the batch's.

The memory that a step takes is that of a part. The step is that of the whole batch, as far as images do not depend on
each other: batch norm normalises the images of a part by themselves, and random numbers are drawn in another order.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from captioning.batches.pixels import StoryPixels
from captioning.devices import largest, summed
from captioning.errors import UserError
from model import Captioner
from training.losses import Mean, Objective, StepLoss


def split(batch, parts: int) -> list:
    """The batch in `parts` batches of about as many images each, in order; fewer where it has fewer images.

    Raises UserError for a batch of paragraphs, whose rows are sentences.
    """
    if batch.sentences is not None:
        raise UserError("--accumulate is for captions of one sentence, not for paragraphs")
    images = len(batch.items)
    bounds = [round(images * n / parts) for n in range(parts + 1)]
    return [_part(batch, *pair) for pair in zip(bounds, bounds[1:]) if pair[0] < pair[1]]


def _part(batch, first: int, last: int):
    """The images `first` to `last` of a batch with their captions."""
    rows = (batch.row_image >= first) & (batch.row_image < last)
    pixels = batch.pixels
    if isinstance(pixels, StoryPixels):
        photos = (pixels.owner >= first) & (pixels.owner < last)
        pixels = StoryPixels(pixels.photos[photos], pixels.owner[photos] - first)
    elif pixels is not None:
        pixels = pixels[first:last]
    return replace(
        batch,
        items=batch.items[first:last],
        pixels=pixels,
        inputs=[None if x is None else x[first:last] for x in batch.inputs],
        captions=batch.captions[rows],
        lengths=batch.lengths[rows],
        row_image=batch.row_image[rows] - first,
    )


def backward(objective: Objective, captioner: Captioner, batch, step: int, parts: int) -> StepLoss:
    """Add the gradients of the batch's loss, computed in `parts` parts, to those of the weights; gives the whole loss.

    With several processes the gradients are this process's share, to be summed over all; all must call it. They
    compute equally many parts: one whose batch has fewer images, as where some are broken, repeats its last part, which
    then weighs nothing. Batch norm would wait for it otherwise.
    """
    counts, several = objective.counts(batch), split(batch, parts)
    several += [replace(several[-1], counted=False)] * (largest(len(several)) - len(several))
    whole = summed(torch.tensor(counts if batch.counted else [0] * len(counts), dtype=torch.float64))
    done = []
    for part in several:
        captioner.model.count_images(part.counted)
        loss = replace(objective(captioner, part, step), captions=len(part.lengths))
        loss = loss if part.counted else loss.without_weight()
        shares = [mean.count / max(1.0, float(whole[min(n, len(counts) - 1)])) for n, mean in enumerate(loss.parts)]
        sum(mean.value * share for mean, share in zip(loss.parts, shares)).backward()
        done.append(replace(loss, parts=[Mean(mean.value.detach(), mean.count) for mean in loss.parts]))
    return joined(done)


def joined(losses: Sequence[StepLoss]) -> StepLoss:
    """The loss of a batch from those of its parts; without gradients."""
    tokens, captions = sum(loss.tokens for loss in losses), sum(loss.captions for loss in losses)
    others = {name: mean_of([loss.others[name] for loss in losses]) for name in losses[0].others}
    return StepLoss(
        [mean_of(parts) for parts in zip(*(loss.parts for loss in losses))],
        mean_of([Mean(loss.reported, loss.tokens) for loss in losses]).value,
        tokens,
        sum(loss.reward * loss.captions for loss in losses) / max(1, captions),
        captions,
        others,
    )


def mean_of(means: Sequence[Mean]) -> Mean:
    """The mean over all the tokens, sentences or rows that several means count."""
    count = sum(mean.count for mean in means)
    return Mean(sum(mean.value * mean.count for mean in means) / max(1, count), count)
