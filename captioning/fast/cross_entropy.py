"""Cross-entropy of the output layer without holding all logits. Shapes: M real tokens, X inputs, V vocabulary."""

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.fast import switch
from captioning.fast.linear import product, weight_gradient

ROWS_AT_ONCE = 256  # rows of logits at a time: they stay in the processor's cache


def output_cross_entropy(
    outputs: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The mean cross-entropy, in nats per token, of logits outputs @ weight.t() + bias: outputs (M, X), weight (V, X),
    bias (V,), targets (M,).

    For training: the gradient of the logits is computed on the way, while they are at hand, and takes their place.
    """
    if not switch.enabled:
        return F.cross_entropy(F.linear(outputs, weight, bias), targets, label_smoothing=label_smoothing)
    return _OutputCrossEntropy.apply(outputs, weight, bias, targets, label_smoothing)


class _OutputCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, outputs, weight, bias, targets, smoothing):
        M, V = len(targets), len(weight)
        if M and not 0 <= targets.min() <= targets.max() < V:
            raise IndexError(f"a target is out of bounds: {targets.min()} to {targets.max()}, of {V} words")
        grad_logits = outputs.new_empty(M, V)  # times M
        losses = outputs.new_empty(M)
        for rows, chosen, grad, out in zip(*(x.split(ROWS_AT_ONCE) for x in (outputs, targets, grad_logits, losses))):
            logits = product(rows, weight, bias)
            torch.softmax(logits, 1, out=grad)
            # By the largest of each row: its probability is never too small for a logarithm. The others are taken from
            # it first, so that no digits are lost where all of them are far from zero.
            largest, chosen = logits.amax(1), chosen.unsqueeze(1)
            torch.sub(largest, logits.gather(1, chosen).squeeze(1), out=out).mul_(1 - smoothing)
            if smoothing:
                out += smoothing * (largest - logits.mean(1))
            out -= grad.amax(1).log()
            grad.scatter_add_(1, chosen, grad.new_full((len(chosen), 1), smoothing - 1))
            if smoothing:
                grad -= smoothing / V
        ctx.save_for_backward(outputs, weight, grad_logits)
        return losses.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        outputs, weight, grad_logits = ctx.saved_tensors
        share = grad_loss / len(outputs)
        grad_outputs = product(grad_logits, weight.t()).mul_(share)
        return grad_outputs, weight_gradient(grad_logits, outputs * share), grad_logits.sum(0).mul_(share), None, None
