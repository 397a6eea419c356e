"""What the page shows of devices that are not here: memory, budgets, and what a compiler estimates, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeft.reporting import rows

Part = Mapping[str, Any]


def memory(report: Part) -> list[dict[str, str]]:
    """Return one row per target whose memory is known; formatted."""
    return [
        {
            "target": target["target"],
            "ram": _bytes(target["memory"], "ram"),
            "ram_layer": target["memory"]["ram_layer"],
            "flash": _bytes(target["memory"], "flash"),
            "flash_layer": target["memory"]["flash_layer"],
            "source": target["memory"]["source"],
        }
        for target in report["targets"]
        if target["memory"]
    ]


def budgets(report: Part) -> list[dict[str, Any]]:
    """Return one row per budget of any target: its name, figure and limit as text, share used, whether it is met."""
    return [
        {
            "target": target["target"],
            "name": budget["name"],
            "value": rows.amount(budget["value"], budget["unit"]),
            "limit": rows.amount(budget["limit"], budget["unit"]),
            "share": budget["value"] / budget["limit"] if budget["limit"] else None,
            "met": budget["met"],
            "culprit": budget["culprit"],
        }
        for target in report["targets"]
        for budget in target["budgets"]
    ]


def estimates(report: Part) -> list[dict[str, Any]]:
    """Return the compilers' estimates, one per target that has one; each layer with its share of the cycles."""
    found = []
    for target in report["targets"]:
        estimate = target["estimate"]
        if estimate:
            layers = [{**layer, "share": _share(layer, estimate["layers"])} for layer in estimate["layers"]]
            found.append({**estimate, "target": target["target"], "layers": layers})
    return found


def _bytes(memory: Part, kind: str) -> str:
    return rows.amount(memory[f"{kind}_bytes"], "bytes")


def _share(layer: Part, layers: Sequence[Part]) -> float:
    total: int = sum(each["cycles"] for each in layers)
    return float(layer["cycles"] / total) if total else 0.0
