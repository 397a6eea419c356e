"""In which precision a file asks for each operation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeft.inspection.records import Graph, Node
from edgeft.types import QuantCoverage

# Kind -> places of activation and weight among the inputs.
_MAC_OPERANDS: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "FusedConv", "Gemm", "MatMul", "LSTM", "GRU", "RNN"), (0, 1)),
    **dict.fromkeys(("Convolution", "GroupConvolution", "ConvolutionBackpropData"), (0, 1)),
    **dict.fromkeys(("GroupConvolutionBackpropData", "LSTMSequence", "GRUSequence"), (0, 1)),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "CONV_3D"), (0, 1)),
    **dict.fromkeys(("UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"), (0, 1)),
    **dict.fromkeys(("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"), (2, 1)),  # these list their output shape first
}
# Kinds that are of one precision by what they are.
_MAC_PRECISION: Final[Mapping[str, str]] = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), "int8"),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"), "int8-dynamic"),
    **dict.fromkeys(("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"), "int8-dynamic"),
    "MatMulNBits": "int4-weights",
}
_EIGHT_BITS: Final = frozenset({"int8", "uint8"})
_QUANTIZERS: Final = frozenset({"QuantizeLinear", "QUANTIZE", "FakeQuantize"})
_DEQUANTIZERS: Final = frozenset({"DequantizeLinear", "DEQUANTIZE"})
_MOVES: Final = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "RESHAPE", "TRANSPOSE"}
)
# How OpenVINO dequantizes a constant, and all three store weights in half precision.
_WIDENING: Final = frozenset({"Convert", "Multiply", "Subtract", "Cast"})


@dataclass(frozen=True, slots=True)
class _Operand:
    """The dtype that an operand is stored or quantized in, and whether the operation is handed just that."""

    dtype: str
    direct: bool


class Precisions:
    """Finds the precision of every node of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._producers = {name: node for node in graph.nodes for name in node.outputs if name}
        self._readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.inputs:
                self._readers[name].append(node)

    def ops(self) -> dict[str, dict[str, int]]:
        """Return kind -> precision -> number of operations, the most frequent kinds first."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for node in self._graph.nodes:
            found[node.kind][self._of(node)] += 1
        ordered = sorted(found, key=lambda kind: (-found[kind].total(), kind))
        return {kind: dict(sorted(found[kind].items())) for kind in ordered}

    def coverage(self) -> QuantCoverage:
        """Return how many of the operations that multiply and accumulate are in int8, and which are not."""
        macs = [node for node in self._graph.nodes if is_mac(node)]
        others = [node.name for node in macs if self._of(node) != "int8"]
        return QuantCoverage(mac_ops=len(macs), int8_mac_ops=len(macs) - len(others), float_ops=tuple(others))

    def _of(self, node: Node) -> str:
        if node.kind in _MAC_PRECISION:
            return _MAC_PRECISION[node.kind]
        if node.kind in _MAC_OPERANDS:
            places = _MAC_OPERANDS[node.kind]
            if max(places) < len(node.inputs):
                return _combined(*(self._operand(node.inputs[place]) for place in places))
        if node.kind in _QUANTIZERS | _DEQUANTIZERS:
            return self._quantized(node)
        return self._between(node)

    def _quantized(self, node: Node) -> str:
        """Return the integers that a quantizer makes, or that a dequantizer takes."""
        if node.levels:
            return "int8" if node.levels <= 256 else "int16"
        dtype = self._dtype(node.inputs[0] if node.kind in _DEQUANTIZERS else node.outputs[0])
        return "int8" if dtype in _EIGHT_BITS else dtype

    def _between(self, node: Node) -> str:
        """Return the precision of any other operation: int8 also where it stands between quantizers."""
        computed = [name for name in node.inputs if name and not self._stored(name)]
        if not computed:
            return self._dtype(node.outputs[0]) if node.outputs else "?"
        readers = [reader for name in node.outputs for reader in self._readers[name]]
        from_integers = all(self._operand(name).dtype in _EIGHT_BITS for name in computed)
        if from_integers and readers and all(reader.kind in _QUANTIZERS for reader in readers):
            return "int8"
        dtype = self._dtype(computed[0])
        return "int8" if dtype in _EIGHT_BITS else dtype

    def _operand(self, name: str) -> _Operand:
        """Follow a value back to what it was quantized or stored in."""
        own, widened = self._dtype(name), False
        while (node := self._producers.get(name)) is not None:
            if node.kind in _DEQUANTIZERS:
                return _Operand(self._dtype(node.inputs[0]), direct=False)
            if node.levels:
                return _Operand("int8" if node.levels <= 256 else "int16", direct=False)
            if self._dtype(name) in _EIGHT_BITS:
                return _Operand(self._dtype(name), direct=not widened)
            if node.kind not in _MOVES | _WIDENING:
                return _Operand(own, direct=True)
            widened = widened or node.kind in _WIDENING
            name = node.inputs[0]
        if widened and not self._stored(name):
            return _Operand(own, direct=True)
        return _Operand(self._dtype(name), direct=not widened)

    def _dtype(self, name: str) -> str:
        value = self._graph.values.get(name)
        return value.dtype if value else "?"

    def _stored(self, name: str) -> bool:
        value = self._graph.values.get(name)
        return bool(value and value.stored_bytes)


def is_mac(node: Node) -> bool:
    """Return whether an operation multiplies and accumulates."""
    return node.kind in _MAC_OPERANDS or node.kind in _MAC_PRECISION


def _combined(data: _Operand, weight: _Operand) -> str:
    """Return the precision of an operation from those of its two operands."""
    if data.dtype in _EIGHT_BITS and weight.dtype in _EIGHT_BITS:
        return "int8"
    if data.dtype in ("int16", "uint16") and weight.dtype in _EIGHT_BITS:
        return "int16 x int8"
    if data.dtype == weight.dtype:
        return data.dtype
    if weight.dtype in _EIGHT_BITS:
        return "int8-dynamic" if weight.direct else "int8-weights"
    if not weight.direct:
        return f"{weight.dtype}-weights"
    return f"{data.dtype} x {weight.dtype}"
