"""What Vela writes about a compiled file: a summary, a table of layers, and warnings on its standard output."""

from __future__ import annotations

import csv
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeft import extras
from edgeft.errors import ExportError, ModelError
from edgeft.types import CompilerEstimate, LayerEstimate

_MARK: Final = b"TFL3"
_COMPILED: Final = "ethos-u"
"""The custom operator that a compiled file consists of."""
# What the generated accessors raise for offsets that lead nowhere.
_BROKEN: Final = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError)
_WARNING: Final = re.compile(r"^Warning \([^)]*\) operator: \S+, ofm: '(.*)'\nReason: ([^\n]*)", re.MULTILINE)

_Row = Mapping[str, str]


def operators(file: Path) -> dict[str, str]:
    """Return the operators of a .tflite file, name of the tensor that one makes -> ``CONV_2D_3`` (the fourth operator).

    Raises:
        ModelError: The file is no .tflite, is damaged, or is compiled already.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    schema = extras.load("ai_edge_litert.schema_py_generated", "compiling a .tflite file")
    try:
        content = file.read_bytes()
        if content[4:8] != _MARK:
            raise ValueError("it does not carry the mark TFL3")
        model = schema.Model.GetRootAs(content, 0)
        found = dict(_operators(model, schema))
    except (*_BROKEN, OSError) as error:
        raise ModelError(
            f"{file}: not a .tflite file, or a damaged one ({error})",
            "Vela takes .tflite files with int8 operators",
        ) from error
    if any(name.startswith(f"CUSTOM {_COMPILED}_") for name in found.values()):
        raise ModelError(
            f"{file}: compiled for an Ethos-U already", "give the .tflite file that it was compiled from"
        )
    return found


def _operators(model: Any, schema: Any) -> Iterator[tuple[str, str]]:
    kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    graph = model.Subgraphs(0)
    for index in range(graph.OperatorsLength()):
        op = graph.Operators(index)
        code = model.OperatorCodes(op.OpcodeIndex())
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]  # old files know the latter only
        if kind == "CUSTOM":
            kind = f"CUSTOM {code.CustomCode().decode()}"
        for place in range(op.OutputsLength()):
            yield graph.Tensors(op.Outputs(place)).Name().decode(errors="replace"), f"{kind}_{index}"


def read(
    folder: Path,
    *,
    file: Path,
    compiled: Path,
    operators: Mapping[str, str],
    log: str,
    version: str,
    settings: Mapping[str, str],
) -> CompilerEstimate:
    """Return what Vela wrote into `folder`.

    Args:
        folder: With the summary and the table of layers.
        file: What was compiled.
        compiled: The compiled file.
        operators: Those of `file`.
        log: What Vela said on its standard output.
        version: Of Vela.
        settings: What it was called with.

    Raises:
        ExportError: The reports are not in the form of a version that is known, or nothing runs on the NPU.
    """
    try:
        (summary,) = _table(folder.glob("model_summary_*.csv"))
        rows = _table(folder.glob("model_per-layer.csv"))
        reasons = dict(_WARNING.findall(log))
        layers = tuple(_layers([row for row in rows if row["Target"] == "NPU"], operators))
        left = [row for row in rows if row["Target"] != "NPU"]
        fallback_ops = tuple(_fallback(row, operators, reasons) for row in left)
        estimate = CompilerEstimate(
            tool="Vela",
            version=version,
            settings=settings,
            cycles=int(summary["cycles_total"]),
            ms=float(summary["inference_time"]) * 1e3,
            sram_bytes=_bytes(summary["sram_memory_used"]),
            dram_bytes=_bytes(summary["dram_memory_used"]),
            flash_bytes=compiled.stat().st_size,
            npu_ops=len(layers),
            file=compiled,
            fallback_ops=fallback_ops,
            layers=layers,
        )
    except (KeyError, ValueError, OSError) as error:
        raise ExportError(
            f"{file.name}: the reports of Vela {version} cannot be read: {error!r}",
            "install the version of ethos-u-vela that constraints.txt names",
        ) from error
    if (
        not estimate.cycles
    ):  # the exit code of a float model, which takes no cycles on the NPU, is success as well
        named = "; ".join(dict.fromkeys(op.partition(": ")[2] for op in fallback_ops))
        raise ExportError(
            f"{file.name}: no operator of it runs on the NPU (Vela {version}: {named})",
            "give a file with int8 weights and activations",
        )
    return estimate


def _table(files: Iterator[Path]) -> list[_Row]:
    (path,) = files
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _bytes(kibibytes: str) -> int:
    return round(float(kibibytes) * 1024)


def _fallback(row: _Row, operators: Mapping[str, str], reasons: Mapping[str, str]) -> str:
    """Return what an operator on the CPU is called, and why it is there."""
    tensor = row["Name"]
    reason = reasons.get(tensor, "no reason given").partition(" (")[0]  # the name of a tensor would follow
    return f"{operators.get(tensor) or row['Original Operator']}: {reason}"


@dataclass(slots=True)
class _Layer:
    """Rows of one operator of the file; Vela makes several of a softmax, a mean, or a fused activation."""

    operator: str
    rows: list[_Row]
    """The last of them makes the operator's own tensor."""

    def estimate(self) -> LayerEstimate:
        cycles = sum(int(row["Op Cycles"]) for row in self.rows)
        shares = [float(row["Util% (MAC)"]) / 100 * int(row["Op Cycles"]) for row in self.rows]
        return LayerEstimate(
            name=self.rows[-1]["Name"],
            op=self.rows[-1]["Original Operator"],
            cycles=cycles,
            macs=sum(int(row["MAC Count"]) for row in self.rows),
            sram_bytes=max(int(row["Staging Usage"]) for row in self.rows),
            utilisation=sum(shares) / cycles if cycles else 0.0,
        )


def _layers(rows: Sequence[_Row], operators: Mapping[str, str]) -> Iterator[LayerEstimate]:
    """Put the rows of one operator together: those for its inner tensors stand before the one that ends it."""
    layers: list[_Layer] = []
    inner: list[_Row] = []
    for row in rows:
        if inner and inner[0]["Original Operator"] != row["Original Operator"]:
            layers += [_Layer("", [each]) for each in inner]  # Vela's own, such as a transposition
            inner = []
        operator = operators.get(row["Name"], "")
        if not operator:
            inner.append(row)
        elif layers and layers[-1].operator == operator and not inner:
            layers[-1].rows.append(row)
        else:
            layers.append(_Layer(operator, [*inner, row]))
            inner = []
    layers += [_Layer("", [each]) for each in inner]
    yield from (layer.estimate() for layer in layers)
