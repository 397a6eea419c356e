"""How a run was quantized, as the page shows it; and the picture of a sensitivity table by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft.files import write_text
from edgeft.reporting import plots, rows


def sections(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the page shows of every quantize stage; none in reports from before it was stored."""
    return [_section(record) for record in report.get("quantize") or []]


def write_sensitivity(layers: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the picture of a sensitivity table as an SVG file. Returns `path`. Raises `WorkspaceError`."""
    return write_text(path, plots.sensitivity(layers, (), unique="edgeft-sensitivity", standalone=True))


def _section(record: Mapping[str, Any]) -> dict[str, Any]:
    layers, in_float = record["sensitivity"], record["float_layers"]
    kl = {layer["layer"]: layer["kl"] for layer in layers}
    samples, limit = record["val_samples"], record["max_accuracy_drop"]
    facts = {
        "scheme": record["scheme"],
        "method": record["method"] if record["asked"] == record["method"] else f"{record['method']}, by auto",
        "engine": record["engine"] if record["engine"] != "edgeft" else None,
        "edgeft's own ptq": _own(record.get("own_engine")),
        "calibration": record["calibration"],
        "largest drop allowed": f"{100 * limit:g} points" if limit is not None else None,
        "validation accuracy": _accuracies(record),
        "one validation sample": f"{100 / samples:.2f} points" if samples else None,
        "seconds": record["seconds"],
    }
    return {
        "name": record["stage"],
        "facts": {key: value for key, value in facts.items() if value is not None},
        "attempts": record["attempts"],
        "float_layers": [{"layer": name, "kl": kl.get(name)} for name in in_float],
        "layers": layers,
        "figure": plots.sensitivity(layers, in_float, unique=f"edgeft-{record['stage']}") if layers else "",
    }


def _own(compared: Mapping[str, Any] | None) -> str | None:
    if compared is None:
        return None
    return f"{rows.percent(compared['val_accuracy'])} on the validation split, same samples"


def _accuracies(record: Mapping[str, Any]) -> str | None:
    before, after = record["val_accuracy_float"], record["val_accuracy"]
    return (
        None
        if before is None or after is None
        else f"{rows.percent(before)} float, {rows.percent(after)} quantized"
    )
