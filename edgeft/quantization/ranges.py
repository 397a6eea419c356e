"""The calibration table: every activation's range by name, to be written, read, compared and applied.

One line of JSON per tensor, so that a table diffs well in git. A tensor is called by the path of the module and the op
that made it (``features.3.conv.1:add``), and the network's input ``input``; a number tells equal names apart.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgeft.errors import ConfigError, QuantizationError
from edgeft.quantization import contract
from edgeft.quantization.capture import module_path
from edgeft.quantization.fake_quant import ActivationFakeQuant
from edgeft.types import QuantModel

_SCHEMA = 1
_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """The values that one activation's int8 numbers reach: from `min` (-128) to `max` (127).

    `scale` and `zero_point` are the contract's for the two.
    """

    min: float
    max: float
    scale: float
    zero_point: int


RangeTable = Mapping[str, TensorRange]
"""Ranges by tensor, in graph order."""


def range_table(model: QuantModel | GraphModule) -> RangeTable:
    """Return the ranges of a Q/DQ program, or of a calibrated fake-quant graph.

    Raises:
        QuantizationError: The graph was not calibrated.
    """
    found: list[tuple[str, Any, Any]]
    if isinstance(model, QuantModel):
        found = [(name, node.args[1], node.args[2]) for name, node in _named(model.program, _is_quantize)]
    else:
        found = [(name, *site.calculate_qparams()) for name, site in named_sites(model)]
    return {name: _tensor_range(float(scale), int(zero_point)) for name, scale, zero_point in found}


def write_ranges(table: RangeTable, path: Path) -> None:
    """Write a table as JSON, one line per tensor."""
    lines = [json.dumps({"tensor": name, **asdict(entry)}) for name, entry in table.items()]
    body = ",\n  ".join(lines)
    path.write_text(f'{{"schema": {_SCHEMA}, "ranges": [\n  {body}\n]}}\n', encoding="utf-8")


def read_ranges(path: Path) -> RangeTable:
    """Read a table that `write_ranges` wrote.

    Raises:
        ConfigError: The file is missing or not such a table, or a range cannot be one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != _SCHEMA:
            raise ValueError(f"schema is {document['schema']!r}, allowed is {_SCHEMA}")
        entries = [dict(entry) for entry in document["ranges"]]
        table = {str(entry.pop("tensor")): TensorRange(**entry) for entry in entries}
        for name, entry in table.items():
            _check_entry(name, entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a table of ranges: {error}", "write one with quantization.write_ranges"
        ) from error
    if len(table) != len(entries):
        raise ConfigError(f"{path} names a tensor twice", "keep one line per tensor")
    return table


def diff_ranges(before: RangeTable, after: RangeTable) -> str:
    """Describe what differs between two tables, one line per tensor, the largest change of scale first.

    Returns:
        Lines of text; empty where the tables are equal.
    """
    changed = [name for name in before if name in after and before[name] != after[name]]
    changed.sort(key=lambda name: -abs(math.log(after[name].scale / before[name].scale)))
    lines = [
        f"{name}: [{old.min:.6g}, {old.max:.6g}] -> [{new.min:.6g}, {new.max:.6g}], "
        f"scale x{new.scale / old.scale:.4g}, zero point {old.zero_point} -> {new.zero_point}"
        for name, old, new in ((name, before[name], after[name]) for name in changed)
    ]
    lines += [f"{name}: only in the first table" for name in before if name not in after]
    lines += [f"{name}: only in the second table" for name in after if name not in before]
    return "\n".join(lines)


def apply_ranges(graph: GraphModule, table: RangeTable) -> None:
    """Give a prepared graph the ranges of a table instead of calibrating it, in place.

    Args:
        graph: From `prepare`, of the network that the table was made for.
        table: From `read_ranges` or `range_table`.

    Raises:
        QuantizationError: The graph's tensors are not the table's.
    """
    sites = dict(named_sites(graph))
    missing, unknown = [n for n in sites if n not in table], [n for n in table if n not in sites]
    if missing or unknown:
        raise QuantizationError(
            f"the table of ranges belongs to another network: it lacks {_some(missing)} of the graph's tensors, and "
            f"{_some(unknown)} of its own are not in the graph",
            "use a table of the same network, rewritten in the same ways, or calibrate",
        )
    for name, site in sites.items():
        if site.observes and not site.fixed:
            site.low.fill_(-table[name].max if site.symmetric else table[name].min)
            site.high.fill_(table[name].max)
    for name, site in sites.items():
        scale, zero_point = site.calculate_qparams()
        entry = table[name]
        # A learned scale need not be a float32 range's 255th part: the last bit may differ.
        if int(zero_point) != entry.zero_point or not math.isclose(float(scale), entry.scale, rel_tol=2**-22):
            raise QuantizationError(
                f"{name!r}: the table says scale {entry.scale} and zero point {entry.zero_point}, the graph "
                f"makes {float(scale)} and {int(zero_point)} of it",
                "tensors that share a range need the same range in the table; fixed ranges cannot be changed",
            )


def named_sites(graph: GraphModule) -> Iterator[tuple[str, ActivationFakeQuant]]:
    """Yield the activation quantizers of a prepared graph with their tensors' names, in graph order."""
    for name, node in _named(graph, lambda node: _site(graph, node) is not None):
        site = _site(graph, node)
        if site is not None:
            yield name, site


def _some(names: list[str]) -> str:
    return f"{len(names)} ({names[0]!r}, ...)" if names else "none"


def _named(graph: GraphModule, wanted: Callable[[Node], bool]) -> Iterator[tuple[str, Node]]:
    """Yield the wanted quantizing nodes with the names of what they quantize; equal names are numbered from the second.

    A fake-quant graph and the program that is made of it give the same names.
    """
    met: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if not wanted(node):
            continue
        maker = node.all_input_nodes[0]
        while _is_rounding(graph, maker):
            maker = maker.all_input_nodes[0]
        name = _name(maker)
        met[name] += 1
        yield (name if met[name] == 1 else f"{name}#{met[name]}"), node


def _name(maker: Node) -> str:
    """Return module path and op; the graph's own names would change with every export."""
    if maker.op != "call_function":
        return "input" if maker.op == "placeholder" else str(maker.target)
    op, path = str(maker.target).split(".")[1].rstrip("_"), module_path(maker)
    return op if path == maker.name else f"{path}:{op}"


def _is_quantize(node: Node) -> bool:
    """Return whether `node` quantizes an activation; weights, even of one scale per tensor, leave out -128."""
    return bool(node.target is _QUANTIZE and node.args[3] == contract.ACTIVATION_MIN)


def _is_rounding(graph: GraphModule, node: Node) -> bool:
    return node.target in (_QUANTIZE, _DEQUANTIZE) or _site(graph, node) is not None


def _site(graph: GraphModule, node: Node) -> ActivationFakeQuant | None:
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ActivationFakeQuant) else None


def _tensor_range(scale: float, zero_point: int) -> TensorRange:
    """Return the range of a grid, its ends so that the contract makes the very same scale of them.

    In float32 the ends' difference, divided by 255, can miss the scale by its last bit: the ends are moved by a few
    bits until it does not. For a scale that no range has (learned ones; about one in 250) they stay as they are.
    """
    scale = float(np.float32(scale))
    low = np.float32((contract.ACTIVATION_MIN - zero_point) * scale)
    high = np.float32((contract.ACTIVATION_MAX - zero_point) * scale)
    # The longer end's bits decide; where its steps meet ties, one bit of the shorter end breaks them.
    for short, long in itertools.product((0, 1), (0, 1, -1, 2, -2)):
        ends = (
            (_moved(low, short), _moved(high, long))
            if high > -low
            else (_moved(low, long), _moved(high, short))
        )
        made, zero = contract.activation_qparams(*(torch.tensor(float(end)) for end in ends))
        if float(made) == scale and int(zero) == zero_point:
            low, high = ends
            break
    return TensorRange(
        min=_shortest(low), max=_shortest(high), scale=_shortest(np.float32(scale)), zero_point=zero_point
    )


def _moved(value: np.float32, ulps: int) -> np.float32:
    """Return the float32 number that is `ulps` numbers further from zero."""
    for _ in range(abs(ulps)):
        value = np.nextafter(value, np.float32(math.copysign(math.inf, value) if ulps > 0 else 0.0))
    return value


def _shortest(value: np.float32) -> float:
    """Return the shortest decimal that is read back as the same float32 number."""
    return float(str(value))


def _check_entry(name: str, entry: TensorRange) -> None:
    """Raise `ValueError` for numbers that are no range."""
    numbers = (entry.min, entry.max, entry.scale)
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"{name!r} has a value that is not a finite number")
    if not entry.min <= 0.0 <= entry.max or entry.scale <= 0.0:
        raise ValueError(f"{name!r}: the range must contain 0 and the scale must be positive")
    if not math.isclose((entry.max - entry.min) / 255, entry.scale, rel_tol=1e-5):
        raise ValueError(f"{name!r}: scale is {entry.scale}, (max - min) / 255 is another number")
