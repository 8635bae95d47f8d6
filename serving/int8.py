"""Graphs of 8-bit numbers: a quarter of the size, faster on processors with instructions for them.

    small = quantised(graphs, batches)

The encoder's convolutions and products take 8-bit weights, one scale for each channel, and 8-bit activations, whose
ranges are those of the photos in `batches` (static quantisation). The step's products take 8-bit weights, and measure
the ranges of their inputs as they come (dynamic quantisation).
"""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from serving.graphs import Graphs

QUANTISED = ["Conv", "MatMul", "Gemm", "Add", "Clip", "Relu"]


class Photos(CalibrationDataReader):
    """pixels (1, 3, S, S) of the photos that ranges of activations are taken from."""

    def __init__(self, photos: Iterable[np.ndarray]):
        self.photos = iter(photos)

    def get_next(self) -> dict | None:
        pixels = next(self.photos, None)
        return None if pixels is None else {"pixels": pixels}


def quantised(graphs: Graphs, photos: Iterable[np.ndarray], reduce_range: bool = False) -> Graphs:
    """The graphs in 8 bits.

    photos: pixels (1, 3, S, S) uint8, a hundred of the kind that will be captioned. reduce_range: weights of 7 bits,
    for processors whose sums of 8-bit products overflow; the first and last convolution and what follows stay float32,
    since they lose most by it.
    """
    weights = {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": reduce_range}
    with tempfile.TemporaryDirectory() as folder:
        given, ready, made = (Path(folder) / f"{name}.onnx" for name in ("given", "ready", "made"))
        onnx.save(graphs.encoder, given)
        quant_pre_process(given, ready, skip_symbolic_shape=True)
        options = {"op_types_to_quantize": QUANTISED, "nodes_to_exclude": sensitive(ready) if reduce_range else []}
        options |= {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
        quantize_static(ready, made, Photos(photos), **weights, **options)
        encoder = onnx.load(made)
        onnx.save(graphs.step, given)
        quant_pre_process(given, ready, skip_symbolic_shape=True)
        quantize_dynamic(ready, made, **weights)
        return replace(graphs, encoder=encoder, step=onnx.load(made))


def sensitive(path: Path) -> list[str]:
    """Names of the nodes of an encoder that lose most by coarse weights: first and last convolution, and products."""
    nodes = onnx.load(path).graph.node
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    return convolutions[:1] + convolutions[-1:] + [node.name for node in nodes if node.op_type in ("MatMul", "Gemm")]
