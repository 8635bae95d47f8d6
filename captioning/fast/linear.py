"""Linear layers and dropout at the speed that the processor has: the same numbers as torch.nn's, sooner.

On x86 torch hands float32 products to MKL, and convolutions to oneDNN. Where MKL does not know the processor (AMD's),
the products of oneDNN take three quarters of the time, so on the CPU they are called by hand. Elsewhere, in other
precisions, where torch was built without oneDNN, and with the switch off, everything here is torch's own.

Shapes: m rows, k inputs, n outputs.
"""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioning.fast import switch

CACHED = 256  # shapes: with so many a step takes as long as with 1,024, with 32 some 5% longer


def find_onednn():
    """oneDNN's linear layer over dense tensors, and its reordering of weights, as torch.compile uses them; or None."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        layer = torch.ops.mkldnn._linear_pointwise.default
        reorder = torch.ops.mkldnn._reorder_linear_weight.default
        x = torch.arange(6, dtype=torch.float32, device="cpu").view(2, 3)
        if all(torch.equal(layer(x, w, None, "none", [], ""), x @ x.t()) for w in (x, reorder(x, 2))):
            return layer, reorder
    except (AttributeError, RuntimeError, TypeError):  # not there, or with other arguments: neither is public
        pass
    return None


def limit_caches() -> None:
    """Keep oneDNN, and torch's layer over it, from holding the code of more than CACHED shapes each.

    Each batch has another number of rows. By default 1,024 shapes are held, half a megabyte each, so that the memory of
    a training run grows for hundreds of steps. Whoever sets the variables has the say.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(CACHED))


if switch.enabled:
    limit_caches()  # they are read when oneDNN is first used
onednn = find_onednn()


def _suits(x: Tensor) -> bool:
    return onednn is not None and x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.enabled


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (m, k) @ weight (n, k), perhaps `packed`, transposed + bias (n,) -> (m, n). No gradient flows through it."""
    if weight.layout == torch.strided:
        if not x.shape[0] or not weight.numel() or not _suits(x) or not _suits(weight):
            return F.linear(x, weight, bias)
        if x.shape[1] != weight.shape[1] or bias is not None and (len(bias), bias.dtype) != (len(weight), x.dtype):
            return F.linear(x, weight, bias)  # which broadcasts it, or tells what does not fit
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()  # of a part of a larger matrix oneDNN is a thousand times slower
    if bias is not None:
        bias = bias.contiguous()  # oneDNN reads on without looking at its stride
    return onednn[0](x, weight, bias, "none", [], "")


def packed(weight: Tensor) -> Tensor:
    """weight (n, k) for `product` with few rows at a time, again and again: in the order that oneDNN works in."""
    return onednn[1](weight.detach(), 64) if weight.numel() and _suits(weight) else weight


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad (m, n) transposed @ x (m, k) -> (n, k): the gradient of a weight that x was multiplied by."""
    return torch.mm(grad.t(), x)  # here MKL is the faster one


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wants = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if wants[0] else None,
            weight_gradient(grad, x) if wants[1] else None,
            grad.sum(0) if wants[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear: x (..., k), weight (n, k), bias (n,) -> (..., n)."""
    if not switch.enabled or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") or not x.shape[-1]:
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    out = _Linear.apply(flat, weight, bias) if torch.is_grad_enabled() else product(flat, weight, bias)
    return out.view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class PackedLinear(nn.Module):
    """A linear layer for few rows at a time, again and again, from its weight as it is now. No gradient flows."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = packed(layer.weight.detach()), None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """torch.nn.functional.dropout, whose mask on a CPU is drawn 64 bits at a time: sixteen bits decide about a number.

    torch draws a mask number by number, which takes longer than the layer behind it. The probability is rounded to a
    multiple of 2^-16, and the numbers that stay are divided by the share that this leaves.
    """
    dropped = round(p * 65536)
    if not switch.enabled or not training or not 0 < dropped < 65536 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
    return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


class Dropout(nn.Dropout):
    """nn.Dropout by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
