"""What an ONNX file takes: raw pixels where normalisation is embedded, and channels last where the profile says so."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from edgeft.exporters.onnx_rewrite import OnnxGraph


def take_pixels(graph: OnnxGraph, *, keep_quantizer: bool) -> None:
    """Make the float input, whose values are pixels, one of uint8.

    A quantizer that has a step per pixel goes, as its integers are the pixels; what else reads the input gets floats.

    Args:
        graph: A model of one input.
        keep_quantizer: Leave that quantizer in, which OpenVINO finds the range of an integer layer's input by.
    """
    source = graph.model.graph.input[0]
    source.type.tensor_type.elem_type = TensorProto.UINT8
    users = graph.users()
    others = []
    for node in users[source.name]:
        if _is_identity(graph, node) and not keep_quantizer:
            for reader in users[node.output[0]]:
                _reconnect(reader, node.output[0], source.name)
            graph.remove(node)
        else:
            others.append(node)
    if others:
        cast = onnx.helper.make_node(
            "Cast", [source.name], ["pixels"], name="cast_pixels", to=TensorProto.FLOAT
        )
        graph.insert_before(graph.nodes[0], cast)
        for node in others:
            _reconnect(node, source.name, "pixels")


def take_channels_last(graph: OnnxGraph) -> None:
    """Make the input (N, C, H, W) one of (N, H, W, C), transposed inside."""
    source = graph.model.graph.input[0]
    readers = graph.users()[source.name]
    sizes = source.type.tensor_type.shape.dim
    channels = onnx.TensorShapeProto.Dimension()
    channels.CopyFrom(sizes[1])
    del sizes[1]
    sizes.append(channels)
    transpose = onnx.helper.make_node(
        "Transpose", [source.name], ["channels_first"], name="channels_first", perm=[0, 3, 1, 2]
    )
    graph.insert_before(graph.nodes[0], transpose)
    for node in readers:
        _reconnect(node, source.name, "channels_first")


def _is_identity(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    """Return whether a node quantizes to uint8 with steps of 1 from 0."""
    if node.op_type != "QuantizeLinear":
        return False
    scale, zero_point = (graph.value(name) for name in node.input[1:3])
    return zero_point.dtype == np.uint8 and bool((scale == 1).all() and (zero_point == 0).all())


def _reconnect(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
