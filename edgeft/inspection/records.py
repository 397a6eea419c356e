"""A model file as a graph that all formats share, and what is found out about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeft.types import Format, QuantCoverage


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of a model.

    A dimension is a number, or the name of a free one (``?`` where it has none). `scale` and `zero_point` are the
    tensor's own, or those of the quantizer that an input goes into first; a scale of 0 is none. `layout` is ``nchw``,
    ``nhwc`` or empty, told from which dimension is as small as channels of pictures are.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0

    @property
    def layout(self) -> str:
        """Guess the order of the dimensions of a batch of pictures."""
        if len(self.shape) != 4:
            return ""
        second, last = (dimension in (1, 3, 4) for dimension in (self.shape[1], self.shape[3]))
        return "" if second == last else "nchw" if second else "nhwc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What flows between nodes. `stored_bytes` is the size of a constant, 0 for what is computed."""

    dtype: str
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation; inputs and outputs are names of values, empty where an optional one is absent.

    `levels` is that of OpenVINO's FakeQuantize: 256 or 255 make 8-bit integers.
    """

    kind: str
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    levels: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A model file, parsed. `version` is what its format calls so, for people."""

    format: Format
    version: str
    producer: str
    files: tuple[Path, ...]
    nodes: Sequence[Node]
    values: Mapping[str, Value]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found out about a model file.

    `ops` maps kinds of operations to precisions to numbers; a precision of ``int8`` stands for 8-bit integers, signed
    or not, ``int8-weights`` for such weights that are computed with in float, ``int8-dynamic`` for activations that
    are quantized at run time. `weights` maps dtypes to bytes of constants. `coverage` counts operations that multiply
    and accumulate.
    """

    path: Path
    format: Format
    version: str
    producer: str
    files: Mapping[str, int]
    """File name -> size in bytes."""
    size_bytes: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ops: Mapping[str, Mapping[str, int]]
    weights: Mapping[str, int]
    coverage: QuantCoverage
    metadata: Mapping[str, str]
