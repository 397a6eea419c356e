"""Show the record of what files cost on devices (``edgeft-cost``) on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeft.reporting import rows
from edgeft.reporting.bench_page import short_names

_WHAT = {
    "estimated": "estimated by the compiler's model of the device, measured by no clock",
    "executed": "the file is executed here: the memory is the device's, its time is not known",
}


def table(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row per file, formatted; KB in powers of 1000. Columns that no file has are left out."""
    results = record["results"]
    estimated, scored = (any(result[key] for result in results) for key in ("estimate", "accuracy"))
    with_dram = any(result["estimate"]["dram_bytes"] for result in results if result["estimate"])
    shown = []
    for name, result in zip(short_names(results), results, strict=True):
        memory, estimate, accuracy = result["memory"], result["estimate"], result["accuracy"]
        row = {"file": name, "target": result["target"]}
        if estimated:
            row["ms"] = f"{rows.milliseconds(estimate['ms'])} (estimated)" if estimate else rows.NOTHING
            row["cycles"] = f"{estimate['cycles']:,}" if estimate else rows.NOTHING
        row["RAM KB"] = rows.kilobytes(memory["ram_bytes"])
        if with_dram:
            row["DRAM KB"] = rows.kilobytes(estimate["dram_bytes"]) if estimate else rows.NOTHING
        row["flash KB"] = rows.kilobytes(memory["flash_bytes"])
        if estimated:
            row["NPU ops"] = str(estimate["npu_ops"]) if estimate else rows.NOTHING
            row["CPU ops"] = str(len(estimate["fallback_ops"])) if estimate else rows.NOTHING
        if scored:
            row["accuracy"] = rows.percent(accuracy["value"]) if accuracy else rows.NOTHING
        shown.append(row)
    return shown


def sources(record: Mapping[str, Any]) -> list[str]:
    """Return one line per file: what the figures are, and the tool, version and settings that they are of."""
    names = short_names(record["results"])
    return [
        f"{name}: {_WHAT[result['evidence']]}; {result['memory']['source']}"
        for name, result in zip(names, record["results"], strict=True)
    ]


def budgets(record: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Return for every budget of the targets whether it is met, and its figures with the layer behind them."""
    found = []
    for name, result in zip(short_names(record["results"]), record["results"], strict=True):
        for budget in result["budgets"]:
            value, limit = (rows.amount(budget[key], budget["unit"]) for key in ("value", "limit"))
            most = f", most of it: {budget['culprit']}" if budget["culprit"] else ""
            found.append((budget["met"], f"{name}: {budget['name']} {value} of {limit}{most}"))
    return found


def slowest_layers(result: Mapping[str, Any], count: int) -> list[str]:
    """Return the `count` layers of one result that cost most cycles, a line each; none where nothing is estimated."""
    estimate = result["estimate"]
    if not estimate:
        return []
    ordered = sorted(estimate["layers"], key=lambda layer: -layer["cycles"])
    return [
        f"{rows.percent(layer['cycles'] / estimate['cycles']):>7} {layer['cycles']:>11,} cycles  {layer['op']} "
        f"{layer['name']} (multipliers busy {rows.percent(layer['utilisation'])}, RAM "
        f"{rows.amount(layer['sram_bytes'], 'bytes')})"
        for layer in ordered[:count]
    ]
