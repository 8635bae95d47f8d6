"""Captions of a dataset as word ids in flat arrays, and the padded rows of a batch."""

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from captioning.batches.sampler import Group
from captioning.datasets.items import Items
from captioning.text.paragraphs import split_sentences
from captioning.text.tokens import END, PAD, START, UNK


class CaptionIds:
    """Captions as word ids in one flat array, <start> and <end> included, row after row.

    flat: the ids; bounds: where each row begins and ends in it (rows + 1,); counts: how many captions each item has.
    sentences: how many rows each caption has, where captions are paragraphs and each sentence is a row; else None.
    """

    def __init__(
        self, flat: np.ndarray, bounds: np.ndarray, counts: Sequence[int], sentences: np.ndarray | None = None
    ):
        self.flat, self.bounds, self.sentences = flat, bounds, sentences
        self.first = np.cumsum([0, *counts])  # of each item, its first caption
        self.first_row = None if sentences is None else np.cumsum(sentences) - sentences

    @classmethod
    def of(cls, items: Items, vocabulary, max_sentences: int | None = None, num_workers: int = 1) -> "CaptionIds":
        """The captions of `items`, encoded by `num_workers` processes where they are many.

        max_sentences: captions are paragraphs, each sentence a row of its own; what goes beyond them is left out.
        """
        sentences = None if max_sentences is None else array("q")
        texts = items.captions() if max_sentences is None else _sentences(items, max_sentences, sentences)
        flat, lengths = array("i"), array("q")  # each grows in its place, which leaves no holes in memory
        for ids, of_texts in vocabulary.encode_all(texts, num_workers):
            flat.frombytes(_framed(np.array(ids, np.int32), np.array(of_texts)).tobytes())
            lengths.extend(length + 2 for length in of_texts)
        flat, bounds = np.frombuffer(flat, np.int32), np.cumsum([0, *lengths])
        if flat.max(initial=0) < 2**16:
            flat = flat.astype(np.uint16)
        return cls(flat, bounds, items.caption_counts(), None if sentences is None else np.array(sentences, np.int64))

    @property
    def unknown_share(self) -> float:
        """Share of the words that are <unk>; 0 where there are no words."""
        words = len(self.flat) - 2 * (len(self.bounds) - 1)
        return int((self.flat == UNK).sum()) / max(1, words)

    def rows(self, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
        """captions (N, T), lengths (N,), row_image (N,), and of paragraphs sentences (Q,), as a Batch has them."""
        rows = np.array([self.first[item] + c for item, captions in groups for c in captions], np.int64)
        row_image = np.repeat(np.arange(len(groups)), [len(captions) for _, captions in groups])
        sentences = {}
        if self.sentences is not None:
            counts = self.sentences[rows]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows, row_image = np.repeat(self.first_row[rows], counts) + within, np.repeat(row_image, counts)
            sentences["sentences"] = torch.from_numpy(counts)
        begins = self.bounds[rows]
        lengths = self.bounds[rows + 1] - begins
        steps = np.arange(lengths.max(initial=0))
        inside = steps < lengths[:, None]  # (N, T)
        ids = np.full(inside.shape, PAD, np.int64)
        ids[inside] = self.flat[(begins[:, None] + steps)[inside]]
        arrays = {"captions": ids, "lengths": lengths, "row_image": row_image}
        return {name: torch.from_numpy(values) for name, values in arrays.items()} | sentences


def _sentences(items: Items, most: int, counts: array) -> Iterator[str]:
    """The first `most` sentences of each caption; how many each has is added to `counts`."""
    for caption in items.captions():
        parts = split_sentences(caption)[:most] or [caption]
        counts.append(len(parts))
        yield from parts


def _framed(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The ids of rows of these lengths, one after the other, with <start> before each row and <end> behind it."""
    flat = np.empty(len(ids) + 2 * len(lengths), ids.dtype)
    ends = np.cumsum(lengths + 2)
    inner = np.ones(len(flat), bool)
    for places, mark in ((ends - lengths - 2, START), (ends - 1, END)):
        flat[places], inner[places] = mark, False
    flat[inner] = ids
    return flat
