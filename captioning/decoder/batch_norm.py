"""Batch norm over the images of all processes of a run, and of a batch that has no variance.

Shapes: B images of this process, E size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d (Ioffe and Szegedy 2015) over (B, E), as if the batches of all processes were one.

    counted: whether the images of this process are images of the batch; False while it computes on a stand-in, which
    the statistics leave out. A single image has no variance: it is normalised by the running statistics.
    """

    counted = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self._by_running_statistics(x)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return self._over_processes(x)
        return self._by_running_statistics(x) if len(x) == 1 else super().forward(x)

    def _by_running_statistics(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        if torch.is_grad_enabled():  # another pass may change them before the gradients of this one are computed
            statistics = (each.clone() for each in statistics)
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)

    def _over_processes(self, x: Tensor) -> Tensor:
        wide = x.double()  # a sum of squares loses half of its digits
        own = wide if self.counted else wide[:0]
        figures = torch.cat([own.sum(0), own.square().sum(0), wide.new_tensor([len(own)])])
        sums, squares, count = _Sum.apply(figures).split([self.num_features, self.num_features, 1])
        if count < 2:
            return self._by_running_statistics(x)
        mean = sums / count
        variance = (squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        normal = (wide - mean) / (variance + self.eps).sqrt()
        return (normal.to(self.weight) * self.weight + self.bias).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone()
        torch.distributed.all_reduce(total)
        return total
