"""Where the memory of a .tflite file goes, operator by operator, as the file says; and what a device needs of it.

Shapes and lifetimes stand in the file: no runtime is needed for `operators`. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import extras
from edgeft.types import CompilerEstimate, ExportedArtifact, MemoryResult, QuantLayer, RuntimeReport

# litert-torch names tensors by classes and attributes: torch.nn.modules.linear.Linear_head;
_ATTRIBUTE = re.compile(r"[\w.<>]+\.[A-Za-z0-9]+_(?P<name>\w+)")
_CLASS = re.compile(r"[\w<>]+(\.[\w<>]+)+")
_INVENTED = re.compile(r"serving_default|StatefulPartitionedCall|Identity|arith\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOperator:
    """One operator of a .tflite file: bytes alive while it runs, bytes of its weights, multiply-accumulates."""

    kind: str
    name: str
    """Of the layer, where it is known; else where the operator stands: ``after features.3``."""
    tensor: str
    """Name of its first output in the file."""
    alive_bytes: int
    weight_bytes: int
    macs: int

    @property
    def title(self) -> str:
        """Kind and name, for people."""
        return f"{self.kind} {self.name}"


def operators(path: Path, layers: Iterable[QuantLayer] = ()) -> tuple[FileOperator, ...]:
    """Return what every operator of a .tflite file costs, in the order of the file.

    A tensor is alive from the operator that writes it to the last one that reads it; the file's inputs from the
    start, its outputs to the end. What an arena needs beyond that are the planner's alignment, scratch buffers of
    kernels, and what the runtime keeps per operator.

    Args:
        path: A .tflite file of one graph.
        layers: Those of the program that it came from: operators with their integer weights get their names.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
    """
    return _File(path).operators({_key(layer.weight): layer.name for layer in layers})


def activation_bytes(path: Path) -> int:
    """Return how many bytes of activations of a .tflite file are alive at once, at most; raises as `operators`."""
    return max(operator.alive_bytes for operator in operators(path))


def executed(
    artifact: ExportedArtifact, report: RuntimeReport, layers: Sequence[QuantLayer] = ()
) -> MemoryResult:
    """Return the memory of a file that TensorFlow Lite Micro has run: its arena, and the file as flash.

    Args:
        artifact: The .tflite file.
        report: What the runtime said of it.
        layers: As in `operators`.
    """
    found = operators(artifact.path, layers)
    return MemoryResult(
        ram_bytes=report.details["arena_bytes"],
        flash_bytes=artifact.size_bytes,
        ram_layer=max(found, key=lambda each: each.alive_bytes).title,
        flash_layer=max(found, key=lambda each: each.weight_bytes).title,
        source=f"{report.runtime} {report.version}",
    )


def estimated(
    artifact: ExportedArtifact, estimate: CompilerEstimate, layers: Sequence[QuantLayer] = ()
) -> MemoryResult:
    """Return the memory that a compiler estimates; `artifact` is the .tflite file that it compiled."""
    fullest = max(estimate.layers, key=lambda each: each.sram_bytes, default=None)
    found = operators(artifact.path, layers)
    return MemoryResult(
        ram_bytes=estimate.sram_bytes,
        flash_bytes=estimate.flash_bytes,
        ram_layer=f"{fullest.op} {fullest.name}" if fullest else "",
        flash_layer=max(found, key=lambda each: each.weight_bytes).title,
        source=estimate.source,
    )


def name_layers(
    estimate: CompilerEstimate, file: Path, layers: Sequence[QuantLayer] = ()
) -> CompilerEstimate:
    """Return an estimate whose layers, which a compiler calls by their tensors, have names for people.

    Args:
        estimate: Of the compiled file.
        file: The .tflite file that was compiled.
        layers: As in `operators`.
    """
    makers = {each.tensor: each for each in operators(file, layers)}
    named = [
        replace(layer, op=makers[layer.name].kind, name=makers[layer.name].name)
        if layer.name in makers
        else layer
        for layer in estimate.layers
    ]
    return replace(estimate, layers=tuple(named))


class _File:
    """A .tflite file of one graph as a tree of objects (schema: tensorflow/lite/schema/schema.fbs)."""

    def __init__(self, path: Path) -> None:
        self.schema = extras.load("ai_edge_litert.schema_py_generated", "the memory of a .tflite file")
        self.model = self.schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        self.graph = self.model.subgraphs[0]
        kinds = {n: name for name, n in vars(self.schema.BuiltinOperator).items() if isinstance(n, int)}
        codes = [kinds[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in self.model.operatorCodes]
        self.kinds = [codes[op.opcodeIndex] for op in self.graph.operators]

    def operators(self, names: dict[bytes, str]) -> tuple[FileOperator, ...]:
        ops, alive = self.graph.operators, self._alive()
        own = [self._own_name(op, names) for op in ops]
        found = []
        for step, op in enumerate(ops):
            constants = [values for values in map(self._constant, op.inputs) if values is not None]
            found.append(
                FileOperator(
                    kind=self.kinds[step],
                    name=own[step] or self._place(step, own),
                    tensor=self._tensor_name(op.outputs[0]),
                    alive_bytes=int(alive[step]),
                    weight_bytes=sum(values.nbytes for values in constants),
                    macs=self._macs(step),
                )
            )
        return tuple(found)

    def _alive(self) -> npt.NDArray[np.int64]:
        """Return the bytes of activations alive at every operator, (operators,)."""
        ops = self.graph.operators
        born = dict.fromkeys(map(int, self.graph.inputs), 0)
        dies: dict[int, int] = {}
        for step, op in enumerate(ops):
            for index in map(int, op.outputs):
                born[index] = step
                dies.setdefault(index, step)
            for index in map(int, op.inputs):
                dies[index] = step
        dies |= dict.fromkeys(map(int, self.graph.outputs), len(ops) - 1)
        alive = np.zeros(len(ops), np.int64)
        for index, start in born.items():
            if self._constant(index) is None:
                alive[start : dies.get(index, start) + 1] += self._bytes(index)
        return alive

    def _own_name(self, op: Any, names: dict[bytes, str]) -> str:
        """Return the name of an operator's layer by its weights, else what its tensors are called, else nothing."""
        for index in map(int, op.inputs):
            values = self._constant(index)
            if values is not None and _key(values) in names:
                return names[_key(values)]
        tensors = (*map(int, op.outputs), *map(int, op.inputs[2:3]))  # the last operator's output has no name
        return next(filter(None, (_readable(self._tensor_name(i)) for i in tensors if i >= 0)), "")

    def _place(self, step: int, own: Sequence[str]) -> str:
        """Return where an operator without a name stands, by the nearest one that has a name."""
        maker = {int(out): i for i, op in enumerate(self.graph.operators) for out in op.outputs}
        before: int | None = step
        while before is not None and not own[before]:
            sources = self.graph.operators[before].inputs
            before = next((maker[int(i)] for i in sources if int(i) in maker), None)
        if before is not None:
            return f"after {own[before]}"
        after = next((name for name in own[step:] if name), "")
        return f"before {after}" if after else f"number {step}"

    def _macs(self, step: int) -> int:
        """Return multiply-accumulates by the shapes of output and weights; 0 for operators without weights."""
        op, kind = self.graph.operators[step], self.kinds[step]
        if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
            return 0
        weight = self._shape(op.inputs[1])
        moved = op.inputs[2] if kind == "TRANSPOSE_CONV" else op.outputs[0]
        depthwise = kind == "DEPTHWISE_CONV_2D"
        per_output = np.prod(weight[1:3] if depthwise else weight[1:], dtype=np.int64)
        if kind == "TRANSPOSE_CONV":  # every input meets the kernel once per output channel
            per_output = np.prod(weight[:3], dtype=np.int64)
        return int(np.prod(self._shape(moved), dtype=np.int64) * per_output)

    def _constant(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return the bytes of a constant tensor; None for a tensor that is computed, or absent."""
        if index < 0:
            return None
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)

    def _shape(self, index: int) -> list[int]:
        shape = self.graph.tensors[index].shape
        return [] if shape is None else [int(size) for size in shape]

    def _bytes(self, index: int) -> int:
        types = self.schema.TensorType
        widths = {types.INT8: 1, types.UINT8: 1, types.BOOL: 1, types.INT16: 2, types.FLOAT16: 2}
        width = {**widths, types.INT64: 8}.get(self.graph.tensors[index].type, 4)
        return int(np.prod(self._shape(index), dtype=np.int64)) * width

    def _tensor_name(self, index: int) -> str:
        return str(self.graph.tensors[index].name.decode(errors="replace"))


def _key(values: npt.NDArray[Any]) -> bytes:
    """Return what tells weights apart whatever their layout: their numbers in order of size."""
    return np.sort(values.reshape(-1).view(np.uint8)).tobytes()


def _readable(tensor: str) -> str:
    """Return the layer that a converter named a tensor after; empty where it invented the name."""
    first = tensor.split(";")[0]
    if not first or _INVENTED.match(first):
        return ""
    parts = []
    for segment in first.split("/"):
        attribute = _ATTRIBUTE.fullmatch(segment)
        if attribute is not None:
            parts.append(attribute["name"])
        elif not _CLASS.fullmatch(segment):
            parts.append(segment)
    return ".".join(parts) if _CLASS.match(first) else "/".join(parts)
