"""Additive attention step by step, without autograd, and its gradients over all steps of a batch.

tanh takes twenty times as long as the additions around it on a CPU. Here it is 1 - 2 r with
r = 1 / (1 + exp(2k) exp(2q)): the exponentials of the keys k are taken once a batch, those of the queries q once a
step, and what is left per region is a product, a sum and a reciprocal. That is exact as long as no key is beyond 20,
where tanh has reached 1 in double precision too: a query beyond 40 may then be taken for 40. With larger keys (a
training that diverges) and on a GPU, r is sigmoid(-2 (k + q)).

Shapes: N rows in a packing's order, n of them alive at a step, T steps, R regions, A attention, P projected region.
"""

import torch
from torch import Tensor

LARGEST_KEY, LARGEST_QUERY = 20.0, 40.0  # see above; the product of their exponentials stays finite


class AttentionSteps:
    """The steps forward. keys: as `reciprocals` reads them, of which `powers` tells; absent: (N, R) or None."""

    def __init__(self, keys: Tensor, values: Tensor, score: Tensor, absent: Tensor | None):
        """keys (N, R, A), values (N, R, P), score (A,)."""
        key_powers = double_exponential(keys)
        self.powers = key_powers is not None
        self.keys = key_powers if self.powers else keys
        self.values, self.absent, self.minus_score, self.scratch = values, absent, -2 * score, torch.empty_like(keys)

    def step(self, queries: Tensor, out: tuple[Tensor, Tensor]) -> None:
        """From queries (n, A) of the first n rows: attention weights (n, R) and contexts (n, P) into `out`."""
        n, A = queries.shape
        weights, contexts = out
        r = reciprocals(self.keys[:n], queries.unsqueeze(1), self.powers, self.scratch[:n])
        scores = (r.view(-1, A) @ self.minus_score).view(n, -1)  # what is missing is the same for all regions
        if self.absent is not None:
            scores.masked_fill_(self.absent[:n], -torch.inf)
        torch.softmax(scores, 1, out=weights)
        torch.bmm(weights.unsqueeze(1), self.values[:n], out=contexts.unsqueeze(1))


class AttentionGradients:
    """The steps backward, and the sums over them. keys, powers: as AttentionSteps has them; steps: T."""

    def __init__(self, keys: Tensor, values: Tensor, score: Tensor, powers: bool, steps: int):
        self.keys, self.values, self.score, self.powers = keys, values, score, powers
        N, R, P = values.shape
        # Per row and step, for the regions' gradient as one product over time at the end.
        self.weights, self.contexts = values.new_zeros(N, steps, R), values.new_zeros(N, steps, P)
        self.grad_keys, self.grad_score = torch.zeros_like(keys), torch.zeros_like(score)
        self.scratch, self.slopes = torch.empty_like(keys), torch.empty_like(keys)

    def step(self, t: int, queries: Tensor, weights: Tensor, grad_contexts: Tensor, grad_weights: Tensor) -> Tensor:
        """The gradient of the queries (n, A) of step t, from those of its contexts (n, P) and its weights (n, R)."""
        n, A = queries.shape
        self.weights[:n, t], self.contexts[:n, t] = weights, grad_contexts
        of_values = torch.bmm(grad_contexts.unsqueeze(1), self.values[:n].transpose(1, 2)).squeeze(1)
        grad = of_values + grad_weights
        grad = weights * (grad - (weights * grad).sum(1, keepdim=True))  # (n, R), of the scores
        # computed again: cheaper than keeping (N, R, A) numbers of every step
        r = reciprocals(self.keys[:n], queries.unsqueeze(1), self.powers, self.scratch[:n])
        self.grad_score.addmv_(r.view(-1, A).t(), grad.reshape(-1), alpha=-2)
        slope = torch.addcmul(r, r, r, value=-1, out=self.slopes[:n])  # a quarter of 1 - tanh^2
        self.grad_keys[:n].addcmul_(slope, grad.unsqueeze(2))
        return torch.bmm(grad.unsqueeze(1), slope).squeeze(1).mul_(self.score).mul_(4)

    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """After the last step: the gradients of keys (N, R, A), values (N, R, P) and score (A,)."""
        return (
            self.grad_keys.mul_(4 * self.score),
            torch.bmm(self.weights.transpose(1, 2), self.contexts),
            self.grad_score,
        )


def double_exponential(keys: Tensor) -> Tensor | None:
    """exp(2 keys) for `reciprocals`; None where they are too large (or NaN) for it, and where it is not the faster."""
    if keys.device.type != "cpu" or keys.dtype not in (torch.float32, torch.float64) or not keys.numel():
        return None
    low, high = keys.aminmax()
    return (2 * keys).exp_() if low >= -LARGEST_KEY and high <= LARGEST_KEY else None


def reciprocals(keys: Tensor, queries: Tensor, powers: bool, out: Tensor | None = None) -> Tensor:
    """1 / (1 + exp(2 (keys + queries))), of which tanh(keys + queries) is 1 - 2 times this.

    keys (n, R, A), queries (n, 1, A), of any shapes that fit; powers: instead of the keys come their exponentials, as
    `double_exponential` gives them.
    """
    if not powers:
        return torch.add(keys, queries, out=out).mul_(-2).sigmoid_()
    queries = queries.clamp(-LARGEST_QUERY, LARGEST_QUERY).mul_(2).exp_()
    return torch.addcmul(queries.new_ones(1), keys, queries, out=out).reciprocal_()
