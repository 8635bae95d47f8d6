"""Captions of a dataset as word ids in flat arrays, and the padded rows of a batch."""

from array import array
from collections.abc import Sequence

import numpy as np
import torch

from captioning.batches.sampler import Group
from captioning.datasets.base import ImageItem
from captioning.text.paragraphs import split_sentences
from captioning.text.tokens import END, PAD, START, UNK


class CaptionIds:
    """The captions of all items as ids in one flat array, <start> and <end> included.

    max_sentences: captions are paragraphs, each sentence a row of its own; what goes beyond them is left out.
    """

    def __init__(self, items: Sequence[ImageItem], vocabulary, max_sentences: int | None):
        encode = vocabulary.encode
        flat, lengths, sentences = array("i"), [], []
        for item in items:
            for caption in item.captions:
                parts = [caption]
                if max_sentences is not None:
                    parts = split_sentences(caption)[:max_sentences] or parts
                sentences.append(len(parts))
                for part in parts:
                    row = [START, *encode(part), END]
                    flat.extend(row)
                    lengths.append(len(row))
        self.paragraphs = max_sentences is not None
        self.sentences = np.array(sentences, np.int64)  # of each caption
        self.first_row = np.cumsum(self.sentences) - self.sentences
        self.flat = np.frombuffer(flat, np.int32)
        self.lengths = np.array(lengths, np.int64)
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.first = np.cumsum([0, *(len(item.captions) for item in items)])  # of each item, its first caption

    @property
    def unknown_share(self) -> float:
        """Share of the words that are <unk>; 0 where there are no words."""
        words = len(self.flat) - 2 * len(self.lengths)
        return int((self.flat == UNK).sum()) / max(1, words)

    def rows(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """captions (N, T), lengths (N,), row_image (N,), and of paragraphs sentences (Q,), as a Batch has them."""
        rows = np.array([self.first[item] + c for item, captions in groups for c in captions], np.int64)
        row_image = np.repeat(np.arange(len(groups)), [len(captions) for _, captions in groups])
        sentences = {}
        if self.paragraphs:
            counts = self.sentences[rows]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows, row_image = np.repeat(self.first_row[rows], counts) + within, np.repeat(row_image, counts)
            sentences["sentences"] = torch.from_numpy(counts)
        lengths = self.lengths[rows]
        steps = np.arange(lengths.max(initial=0))
        inside = steps < lengths[:, None]  # (N, T)
        ids = np.full(inside.shape, PAD, np.int64)
        ids[inside] = self.flat[(self.begins[rows][:, None] + steps)[inside]]
        arrays = {"captions": ids, "lengths": lengths, "row_image": row_image}
        return {name: torch.from_numpy(values) for name, values in arrays.items()} | sentences
