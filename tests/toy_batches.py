"""Batches of random images with random captions, for a decoder of toy_decoders."""

from dataclasses import replace

import torch
from toy_decoders import REGION, R

from captioning.datasets.base import ImageItem
from captioning.text.tokens import END, PAD, SPECIALS, START
from data_loader import Batch
from vocabulary import Vocabulary

IMAGES, CAPTIONS = 8, 2
VOCABULARY = Vocabulary([*SPECIALS, *(f"word{n}" for n in range(9))])


def batch_of(step: int) -> Batch:
    """IMAGES random images with CAPTIONS random captions each, of one to six words."""
    random = torch.Generator().manual_seed(step)
    lengths = torch.randint(3, 9, (IMAGES * CAPTIONS,), generator=random)
    captions = torch.randint(4, len(VOCABULARY), (len(lengths), 8), generator=random)
    captions[:, 0] = START
    captions[torch.arange(len(lengths)), lengths - 1] = END
    captions[torch.arange(8) >= lengths.unsqueeze(1)] = PAD
    return Batch(
        [ImageItem(n, str(n), None) for n in range(IMAGES)],
        inputs=[torch.randn(IMAGES, 4, generator=random) + 1, torch.randn(IMAGES, R, REGION, generator=random)],
        captions=captions,
        lengths=lengths,
        row_image=torch.arange(IMAGES).repeat_interleave(CAPTIONS),
    )


def part_of(batch: Batch, first: int, last: int) -> Batch:
    """The images `first` to `last` of a batch, with their captions."""
    rows = slice(first * CAPTIONS, last * CAPTIONS)
    return replace(
        batch,
        items=batch.items[first:last],
        inputs=[x[first:last] for x in batch.inputs],
        captions=batch.captions[rows],
        lengths=batch.lengths[rows],
        row_image=batch.row_image[rows] - first,
    )
