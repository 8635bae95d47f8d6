"""Soft attention over the regions of a map (Xu et al. 2015, Bahdanau et al. 2015).

Shapes: B images, N = B K rows, those of an image together, R regions, P projected region, H hidden, A attention.
"""

import torch
from torch import Tensor, nn

from captioning.fast.linear import Linear


class Attention(nn.Module):
    """Additive soft attention with a gated context (Xu et al. 2015, "Show, Attend and Tell", sections 3.1.2 and 4.2.1).

    score_r = v . tanh(W_k a_r + W_q h),  weights = softmax(scores),  context = beta * sum_r weights_r a_r,
    beta = sigmoid(w_b . h). The additive form is Bahdanau et al. 2015.
    """

    def __init__(self, value_size: int, hidden_size: int, attention_size: int, gated: bool = True):
        super().__init__()
        self.key = Linear(value_size, attention_size)
        self.query = Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)
        self.gate = nn.Linear(hidden_size, 1) if gated else None

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """hidden (N, H), keys (B, R, A), values (B, R, P), mask (B, R) or None -> context (N, P), weights (N, R).

        mask: True where a region is; None: all are.
        """
        query = self.query(hidden).view(keys.shape[0], -1, 1, keys.shape[2])  # (B, K, 1, A)
        scores = self.score(torch.tanh(keys.unsqueeze(1) + query)).squeeze(3)  # (B, K, R)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
        weights = scores.softmax(2)
        context = torch.bmm(weights, values).flatten(0, 1)  # (N, P)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(hidden)) * context
        return context, weights.flatten(0, 1)
