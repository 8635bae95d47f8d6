"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): less memory for a network that trains, more time.

What the blocks of a network compute is not kept for the gradients: a block keeps its input, and computes the rest
again when its gradients are due.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

_divided: WeakKeyDictionary = WeakKeyDictionary()  # a graph -> its blocks, and what `divided` made of it


def recomputed(network: nn.Module, blocks: Sequence[str], images: Tensor):
    """network(images), the same numbers and gradients, with less kept. blocks: names of its parts that train."""
    if isinstance(network, fx.GraphModule):
        network = divided(network, tuple(blocks))
        parts = [part for part in network.children() if any(p.requires_grad for p in part.parameters())]
    else:
        parts = [network.get_submodule(name) for name in blocks]
    with recomputing(parts):
        return network(images)


def divided(graph: fx.GraphModule, blocks: tuple[str, ...]) -> fx.GraphModule:
    """A graph, which calls layers one by one, as a graph that calls its blocks; their layers are the same modules."""
    if _divided.get(graph, (None, None))[0] != blocks:
        _divided[graph] = blocks, _divided_anew(graph, blocks)
    return _divided[graph][1]


def _divided_anew(graph: fx.GraphModule, blocks: tuple[str, ...]) -> fx.GraphModule:
    numbers, number, latest = {}, 0, None
    for node in graph.graph.nodes:
        if node.op == "call_module":  # functions, such as sums, belong to the block before them
            block = next((name for name in blocks if f"{node.target}.".startswith(f"{name}.")), None)
            number, latest = number + (block != latest), block
        numbers[node] = number
    return split_module(graph, graph, numbers.__getitem__)


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
