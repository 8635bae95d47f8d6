"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): less memory for a network that trains, more time.

What the blocks of a network compute is not kept for the gradients: a block keeps its input, and computes the rest
again when its gradients are due.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint


def recomputed(network: nn.Module, blocks: Sequence[str], images: Tensor):
    """network(images), the same numbers and gradients, with less kept.

    blocks: names of the parts of `network` to be computed twice. A graph has no such parts: there it is the whole.
    """
    if isinstance(network, fx.GraphModule):
        return checkpoint(network, images, use_reentrant=False)
    with recomputing([network.get_submodule(name) for name in blocks]):
        return network(images)


@contextlib.contextmanager
def recomputing(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it the `modules` keep their inputs only. Afterwards they are as before, so that they can be copied."""
    try:
        for module in modules:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)
