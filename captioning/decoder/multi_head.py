"""Multi-head attention (Vaswani et al. 2017, section 3.2.2), and the tokens of a batch laid out for it.

Shapes: M tokens of a batch, G groups that attend together, S places in a group, K queries, L keys, H width,
h heads, d = H / h numbers of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Places:
    """Where each of M tokens stands in groups of equally many places: linear layers then compute no padding."""

    index: Tensor  # (M,) group * places + place
    groups: int
    places: int

    @classmethod
    def of(cls, group: Tensor, groups: int) -> "Places":
        """Tokens of a group in the order of `group` (M,), which says of each token its group."""
        order = group.argsort(stable=True)
        counts = group.bincount(minlength=groups)
        begins = counts.cumsum(0) - counts
        place = torch.empty_like(group)
        place[order] = torch.arange(len(group), device=group.device) - begins[group[order]]
        places = int(counts.max())
        return cls(group * places + place, groups, places)

    def spread(self, x: Tensor) -> Tensor:
        """(M, H) -> (G, S, H), zero where no token is."""
        return _Spread.apply(x, self.index, self.groups * self.places).view(self.groups, self.places, -1)

    def gather(self, x: Tensor) -> Tensor:
        """(G, S, H) -> (M, H)."""
        return _Gather.apply(x.reshape(self.groups * self.places, -1), self.index)


class _Spread(torch.autograd.Function):
    """Rows (M, H) to the places `index` of (size, H); no two have the same place."""

    @staticmethod
    def forward(ctx, x, index, size):
        ctx.save_for_backward(index)
        return x.new_zeros(size, x.shape[1]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return _Gather.apply(grad, index), None, None


class _Gather(torch.autograd.Function):
    """The rows (M, H) at the places `index` of (size, H)."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.size = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return _Spread.apply(grad.contiguous(), index, ctx.size), None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(G, S, H) -> (G, h, S, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(G, h, S, d) -> (G, S, H)."""
    return x.transpose(1, 2).flatten(2)


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d)), (G, h, K, L), of queries (G, h, K, d) and keys (G, h, L, d).

    mask: (G, L), True where a key is; None: everywhere.
    """
    scores = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(3)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention; shapes as in `attention_weights`. causal: query k sees the first k + 1 keys alone.

    dropout: the probability with which a weight is dropped. Returns (G, h, K, d).
    """
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal=causal)


def xavier(*layers: nn.Linear) -> None:
    """Begin `layers` as a Transformer's: weights of Glorot and Bengio 2010, biases of zero."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
