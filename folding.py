"""Batch norms of an encoder's frozen parts, folded into the convolutions before them: the same output, sooner."""

import copy

import torch
from torch import Tensor, nn


def fold_batch_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `network` (eval mode) in which each batch norm that directly follows a convolution is part of it.

    Modules with weights that train are shared with `network`, not copied, and never folded: the copy follows their
    training, and gradients through it arrive in `network`. The pairs are found by running `example` (B,3,H,W) through.
    Where there are none, or the copy's output differs by more than 1e-4 of the largest value, `network` is returned.
    """
    trained = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    with torch.no_grad():
        pairs, expected = norms_after_convolutions(network, example)
        pairs = [
            (conv, norm)
            for conv, norm in pairs
            if not {network.get_submodule(conv), network.get_submodule(norm)} & set(trained)
        ]
        if not pairs:
            return network
        folded = copy.deepcopy(network, {id(module): module for module in trained})
        for conv_name, norm_name in pairs:
            conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
            weight, bias = nn.utils.fusion.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight = nn.Parameter(weight, requires_grad=False)
            conv.bias = nn.Parameter(bias, requires_grad=False)
            folded.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))  # timm's norms hold their activation
        folded = folded.to(memory_format=torch.channels_last)
        error = (folded(example) - expected).abs().max()
    return folded if error <= 1e-4 * expected.abs().max() else network


def norms_after_convolutions(network: nn.Module, example: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of each convolution and the batch norm that reads its output, and the output for `example`."""
    latest: list = [None, None]  # the convolution that ran last, and its output
    pairs: list[tuple[str, str]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def note_output(module, inputs, output, name=name):
                latest[:] = name, output

            hooks.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.BatchNorm2d):

            def note_pair(module, inputs, name=name):
                if inputs[0] is latest[1]:
                    pairs.append((latest[0], name))

            hooks.append(module.register_forward_pre_hook(note_pair))
    output = network(example)
    for hook in hooks:
        hook.remove()
    return pairs, output
