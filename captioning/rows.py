"""Rows of a batch: packing their real tokens, selecting them, repeating images for their captions.

Shapes: B images, N rows, T steps, M real tokens, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from captioning.text.tokens import END, PAD, START

State = tuple[Tensor, ...]  # LSTM: (h, c), GRU: (h,); each (layers, N, H)


def first_states(state: State, n: int) -> State:
    """The decoder state of the first n rows, contiguous as cuDNN demands."""
    return tuple(part[:, :n].contiguous() for part in state)


def select_state(state: State, index: Tensor) -> State:
    """The decoder state of rows `index`."""
    return tuple(part.index_select(1, index) for part in state)


def each_row(of_images: Tensor, rows: int) -> Tensor:
    """(B, D) -> (rows, D): what belongs to an image for each of its rows, which stand together."""
    images = of_images.shape[0]
    return of_images if images == rows else of_images.repeat_interleave(rows // images, 0)


def real_regions(regions: Tensor) -> Tensor:
    """(B, R, D) -> (B, R): which regions there are. Padding is a region of nothing but zeros.

    An image of nothing but zeros has one region, of zeros: attention needs something to attend to.
    """
    there = (regions != 0).any(2)
    there[:, 0] |= ~there.any(1)
    return there


def mean_of_regions(regions: Tensor, mask: Tensor | None) -> Tensor:
    """(B, R, D) -> (B, D): the mean over the regions that are there, mask (B, R); None: all are."""
    if mask is None:
        return regions.mean(1)
    counts = mask.sum(1, keepdim=True).clamp(min=1)
    return (regions * mask.unsqueeze(2)).sum(1) / counts


@dataclass
class ImageMemory:
    """Base of what a decoder keeps of B images (or N rows): fields are tensors (B, ...), other memories, or None."""

    @property
    def device(self) -> torch.device:
        return next(x.device for x in vars(self).values() if x is not None)

    def __len__(self) -> int:
        return next(len(x) for x in vars(self).values() if x is not None)

    @property
    def rows(self) -> int:
        """len(), or what stands for it where a step is traced for export: len() would make it a constant."""
        return next(x.rows if isinstance(x, ImageMemory) else x.shape[0] for x in vars(self).values() if x is not None)

    def select(self, index: Tensor):
        """The memory of rows `index` (M,): repeats images for their captions or beams, drops finished ones."""
        return self.map(lambda x: x.index_select(0, index))

    def first_rows(self, n: int):
        return self.map(lambda x: x[:n])

    def map(self, function):
        """The memory with `function` of each tensor in its place."""
        there = {name: x for name, x in vars(self).items() if x is not None}
        changed = {name: x.map(function) if isinstance(x, ImageMemory) else function(x) for name, x in there.items()}
        return replace(self, **changed)


@dataclass
class Packing:
    """Real tokens of N rows in time-major order, longest row first (the order of `torch`'s PackedSequence)."""

    order: Tensor  # (N,) rows by falling length
    active: list[int]  # how many of them are alive at each step
    row: Tensor  # (M,) token j of the packed order stands at [row[j], time[j]] of the padded batch
    time: Tensor
    rank: Tensor  # (M,) the place of its row in `order`

    @classmethod
    def of(cls, steps: Tensor, device) -> "Packing":
        """From steps (N,), each row's number of real tokens, at least 1; on the CPU, so that none waits for a GPU."""
        steps, order = steps.sort(descending=True, stable=True)
        alive = torch.arange(int(steps[0])).unsqueeze(1) < steps.unsqueeze(0)  # (T, N)
        time, rank = alive.nonzero(as_tuple=True)
        active = alive.sum(1).tolist()
        move = {"device": device, "non_blocking": True}
        return cls(order.to(**move), active, order[rank].to(**move), time.to(**move), rank.to(**move))

    def targets(self, captions: Tensor) -> Tensor:
        """The word that follows each token (M,), of captions (N, T) that go on by one word beyond the packed tokens."""
        return captions[self.row, self.time + 1]

    def by_row(self, values: Tensor) -> list[Tensor]:
        """Packed values (M, ...) as a tensor (T, ...) for each of the N rows, in order of time."""
        return [values[self.row == row] for row in range(self.active[0])]

    def steps(self) -> list[tuple[slice, int]]:
        """Where each step stands in the packed order, and how many rows it has."""
        return [(slice(end - n, end), n) for end, n in zip(accumulate(self.active), self.active)]

    def ends(self) -> Tensor:
        """Where each row's last token is in the packed order (N,); rows as in `order`."""
        places = torch.arange(len(self.rank), device=self.rank.device)
        return torch.zeros_like(self.order).scatter_reduce(0, self.rank, places, "amax")


def pack_sentences(sentences: Sequence[Sequence[int]], device) -> tuple[Tensor, Packing]:
    """Word ids of N sentences as captions (N, T) from <start> to <end>, padded, and the packing of all but <end>."""
    rows = [torch.tensor([START, *sentence, END]) for sentence in sentences]
    captions = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(device)
    return captions, Packing.of(torch.tensor([len(row) - 1 for row in rows]), device)


def full_precision(x: Tensor) -> Tensor:
    """x in float32, in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def log_probs_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Natural log-probabilities (M,), in `full_precision`, of targets (M,) under logits (M, V)."""
    return full_precision(logits).log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
