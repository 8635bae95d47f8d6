"""An encoder's frozen parts, sooner: batch norms folded into convolutions, and these fused with what follows them."""

import copy
import operator
import threading

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from captioning.fast import switch


class FastNetwork:
    """What runs in place of an encoder's network: a copy, faster on the machine and for the images at hand.

    It is made when it is first asked for, and again for images of another size. Several threads may ask. `network` is
    the latest copy, None before. A copy of this object, and a pickled one, starts without it. Making it takes as long
    as some photos do: where there are no more than these, `wanted` is False, and the network itself runs.
    """

    def __init__(self):
        self.network: nn.Module | None = None
        self.wanted = True
        self.made_for: tuple | None = None  # the size of the images, None for any
        self.making = threading.Lock()

    def of(self, network: nn.Module, images: Tensor) -> nn.Module:
        """`network` (eval mode) for normalised images (B, 3, H, W): with folded batch norms, on a CPU also with fused
        convolutions. With the switch off it is the network itself.
        """
        if not (switch.enabled and self.wanted):
            return network
        fuses = images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        fuses = fuses and not torch.compiler.is_compiling()
        made_for = images.shape[2:] if fuses else None
        with self.making:
            if self.network is None or made_for != self.made_for:
                self.network = None  # frees the memory of the one before
                with torch.inference_mode(False):  # or training could not run what validation has made
                    example = images.clone()
                    folded = fold_batch_norms(network, example)
                    self.network = fuse_convolutions(folded, example) if fuses else folded
                self.made_for = made_for
            return self.network

    def forget(self) -> None:
        """Drop the copy, because weights of the network have changed, or others train."""
        self.network = None

    def __reduce__(self):  # oneDNN's weights cannot be copied
        return FastNetwork, ()


def fold_batch_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `network` (eval mode) in which each batch norm that directly follows a convolution is part of it.

    Modules with weights that train are shared with `network`, not copied, and never folded: the copy follows their
    training, and gradients through it arrive in `network`. The pairs are found by running `example` (B,3,H,W) through.
    Where there are none, or the copy's output differs by more than 1e-4 of the largest value, `network` is returned.
    """
    trained = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    with torch.no_grad():
        pairs, expected = norms_after_convolutions(network, example)
        pairs = [pair for pair in pairs if not set(pair) & set(trained)]
        if not pairs:
            return network
        folded = copy.deepcopy(network, {id(module): module for module in trained})
        names = {module: name for name, module in network.named_modules()}
        for pair in pairs:
            conv, norm = (folded.get_submodule(names[module]) for module in pair)
            weight, bias = nn.utils.fusion.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight = nn.Parameter(weight, requires_grad=False)
            conv.bias = nn.Parameter(bias, requires_grad=False)
            folded.set_submodule(names[pair[1]], getattr(norm, "act", nn.Identity()))  # timm's hold their activation
        folded = folded.to(memory_format=torch.channels_last)
        alike = agree(folded(example), expected)
    return folded if alike else network


def agree(outputs: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> bool:
    """Whether the output, or each of several, differs by no more than 1e-4 of the largest value expected of it."""
    if isinstance(expected, tuple):
        return all(map(agree, outputs, expected))
    return bool((outputs - expected).abs().max() <= 1e-4 * expected.abs().max())


def norms_after_convolutions(network: nn.Module, example: Tensor) -> tuple[list[tuple[nn.Module, nn.Module]], object]:
    """Each convolution and the batch norm that reads its output, and the output of the network for `example`."""
    latest: list = [None, None]  # the convolution that ran last, and its output
    pairs = []

    def note_output(convolution, inputs, output):
        latest[:] = convolution, output

    def note_pair(norm, inputs):
        if inputs[0] is latest[1]:
            pairs.append((latest[0], norm))

    hooks = [m.register_forward_hook(note_output) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(note_pair) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    output = network(example)
    for hook in hooks:
        hook.remove()
    return pairs, output


# Activation -> its name, numbers and algorithm for oneDNN.
ACTIVATIONS = {
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.SiLU: ("swish", [], ""),
    F.relu: ("relu", [], ""),
}
NOTHING = ("none", [], "")
ADDITIONS = (operator.add, operator.iadd, torch.add)


def fuse_convolutions(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `network` (eval mode, batch norms folded) for pixels of the shape of `example` (B, 3, H, W).

    Only frozen parts that read nothing of a trained one are fused; the others are shared with `network`, so that the
    copy follows their training. It takes other numbers of images too, at a somewhat lower speed. Where oneDNN or the
    network do not allow it, or the copy's output differs by more than 1e-4 of the largest value, `network` is returned.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return network
    try:
        with torch.no_grad():
            traced = fx.GraphModule(network, _Tracer().trace(network))
            shapes = NodeShapes(traced, example)
            if not _fuse(traced, shapes.of):
                return network
            alike = agree(traced(example), shapes.output)
    except Exception:  # noqa: BLE001 - a network may be beyond tracing, or torch's oneDNN lack an operation, in many ways
        return network
    return traced if alike else network


class _Tracer(fx.Tracer):
    """Sees kinds of convolutions that other packages derive from torch's as single modules too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


class NodeShapes(fx.Interpreter):
    """Runs a traced network: `of[name of node]` is the shape of its output, () where that is no tensor."""

    def __init__(self, traced: fx.GraphModule, example: Tensor):
        super().__init__(traced)
        self.extra_traceback = False
        self.of: dict[str, tuple[int, ...]] = {}
        self.output = self.run(example)

    def run_node(self, node: fx.Node):
        output = super().run_node(node)
        self.of[node.name] = tuple(getattr(output, "shape", ()))
        return output


def _fuse(traced: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> int:
    """Fuse the convolutions of `traced` that can be fused, in place; returns how many."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.Identity | nn.Dropout):
            node.replace_all_uses_with(node.all_input_nodes[0])  # they give on what they read, in eval mode
            traced.graph.erase_node(node)
    trained = _trained(traced, modules)
    count = 0
    for node in list(traced.graph.nodes):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            continue
        if node.name in trained:
            continue
        shape = shapes[node.args[0].name]
        weight, padding = _without_uneven_padding(conv, shape)
        if weight is None:
            continue
        last, other = node, None
        activation, reader = NOTHING, _only_reader(node)
        if _is_sum(reader, shapes):
            other = next((x for x in reader.args if x is not node and x.name not in trained), None)
            if other is not None:
                last, reader = reader, _only_reader(reader)
        found = _activation(reader, modules)
        if found and (other is None or found[0] == "relu"):  # the only one that oneDNN joins to a sum
            last, activation = reader, found
        traced.add_submodule(f"fused_{node.name}", FusedConvolution(conv, weight, padding, shape, activation))
        with traced.graph.inserting_after(last):
            inputs = (node.args[0],) if other is None else (node.args[0], other)
            fused = traced.graph.call_module(f"fused_{node.name}", inputs)
        shapes[fused.name] = shapes[last.name]
        last.replace_all_uses_with(fused)
        count += 1
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return count


def _trained(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> set[str]:
    """Names of the nodes that depend on weights which train."""
    names: set[str] = set()
    for node in traced.graph.nodes:
        own = []
        if node.op == "call_module":
            own = modules[node.target].parameters()
        elif node.op == "get_attr":
            own = [operator.attrgetter(node.target)(traced)]
        if any(value.requires_grad for value in own) or any(x.name in names for x in node.all_input_nodes):
            names.add(node.name)
    return names


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that works on the output of `node`; None where there are several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_sum(node: fx.Node | None, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a node adds two tensors of one shape."""
    if node is None or node.op != "call_function" or node.target not in ADDITIONS or node.kwargs:
        return False
    return all(isinstance(x, fx.Node) and shapes.get(x.name) == shapes[node.name] for x in node.args)


def _activation(node: fx.Node | None, modules: dict[str, nn.Module]) -> tuple | None:
    if node is None or node.op not in ("call_module", "call_function"):
        return None
    return ACTIVATIONS.get(type(modules.get(node.target)) if node.op == "call_module" else node.target)


def _without_uneven_padding(conv: nn.Conv2d, shape: tuple[int, ...]) -> tuple[Tensor | None, list[int]]:
    """Weights and padding of a convolution, the same on both sides; (None, []) for a kind that is not known.

    TensorFlow's "same" padding, in timm's Conv2dSame, may need one more at the right and at the bottom: a copy of the
    input into a padded one. One more row and column of zeros before the kernel do the same without it.
    """
    weight, padding = conv.weight.detach(), list(conv.padding)
    if type(conv) is nn.Conv2d:
        return weight, padding
    if type(conv).__name__ != "Conv2dSame":
        return None, []
    totals = []
    for size, kernel, stride, dilation in zip(shape[2:], weight.shape[2:], conv.stride, conv.dilation):
        totals.append(max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0))
    if any(total % 2 for total in totals) and max(conv.dilation) > 1:
        return None, []
    more = [total % 2 for total in totals]
    return F.pad(weight, (more[1], 0, more[0], 0)), [total // 2 + odd for total, odd in zip(totals, more)]


class FusedConvolution(nn.Module):
    """A convolution, another tensor that is added to it, an activation."""

    def __init__(self, conv: nn.Conv2d, weight: Tensor, padding: list[int], shape: tuple, activation: tuple):
        super().__init__()
        self.settings = padding, list(conv.stride), list(conv.dilation), conv.groups
        # In an order that suits one number of images; another may want another order, and bringing these into it
        # each time can take longer than the convolution. It is quicker from the usual one.
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight.contiguous(), *self.settings, list(shape))
        self.packed_for = shape[0]
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.activation = activation

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), other as the output -> activation(conv(x) + other)."""
        run = torch.ops.mkldnn._convolution_pointwise
        weight = self.packed if len(x) == self.packed_for else self.weight
        if other is None:
            return run(x, weight, self.bias, *self.settings, *self.activation)
        after = (None, [], None) if self.activation is NOTHING else self.activation
        return run.binary(x, other, weight, self.bias, *self.settings, "add", 1.0, *after)
