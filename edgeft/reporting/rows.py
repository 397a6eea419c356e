"""The end table of a run: the same formatted figures for the console and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

NOTHING: Final = "-"
"""Stands for a figure that a target does not have."""


def headings(report: Mapping[str, Any]) -> dict[str, str]:
    """Return column key -> heading for the rows of `table`, in order; without those that are empty for all targets."""
    schemes = {target["artifact"]["scheme"] for target in report["targets"]}
    final = schemes.pop() if len(schemes) == 1 else "final"
    if final == "float32":
        final = "final"
    found = {
        "target": "target",
        "float_accuracy": "float acc",
        "accuracy": f"{final} acc",
        "drop": "drop [95 %], points",
        "float_ms": "float ms",
        "ms": f"{final} ms",
        "ratio": "ratio [95 %]",
        "float_kb": "float KB",
        "kb": f"{final} KB",
        "ram": "RAM KB",
        "flash": "flash KB",
        "coverage": "int8 MAC ops",
        "agreement": "agrees with Q/DQ" if final == "int8" else "agrees with program",
        "verdict": "verdict",
    }
    timed = any(target["latency"] for target in report["targets"])
    estimated = any(target.get("estimate") for target in report["targets"])
    sized = any(target.get("memory") for target in report["targets"])
    known = {"float_ms": timed, "ratio": timed, "ms": timed or estimated, "ram": sized, "flash": sized}
    return {key: heading for key, heading in found.items() if known.get(key, True)}


def table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row per target, formatted; keys as in `headings`.

    Accuracies are in percent, the drop in percentage points (positive is worse), latencies are p50 in ms and
    marked where they were not measured by the clock, sizes are in units of 1000 bytes; a budget follows its figure. A
    dash stands for what a target does not have.
    """
    shown = headings(report)
    rows = [_row(target, report["verdict"]["checks"]) for target in report["targets"]]
    return [{key: row[key] for key in shown} for row in rows]


def percent(share: float) -> str:
    """Format a share 0..1, never rounding up to a full 100 %."""
    text = f"{100 * share:.1f}"
    return "99.9 %" if text == "100.0" and share < 1 else f"{text} %"


def points(value: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval(value: str, low: str, high: str) -> str:
    """Format a value with its bounds."""
    return f"{value} [{low}, {high}]"


def milliseconds(value: float) -> str:
    """Format a time in ms with three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def kilobytes(size_bytes: float) -> str:
    """Format a size in units of 1000 bytes."""
    return f"{size_bytes / 1000:,.1f}" if size_bytes < 100_000 else f"{size_bytes / 1000:,.0f}"


def amount(value: float, unit: str) -> str:
    """Format a figure in one of the units of budgets: bytes (in units of 1000), ms, ops."""
    match unit:
        case "bytes":
            return f"{kilobytes(value)} KB"
        case "ms":
            return f"{milliseconds(value)} ms"
        case _:
            return f"{value:g} {unit}"


def precision(latency: Mapping[str, Any]) -> str:
    """Name the precision that a runtime said it runs the MAC ops in, most frequent first."""
    counts: Mapping[str, int] = latency["runtime"]["mac_precision"]
    return " + ".join(sorted(counts, key=lambda key: -counts[key])) or latency["label"]


def outcome(target: str, checks: list[dict[str, Any]]) -> str:
    """Return a target's own verdict: fail if any of its checks does, else inconclusive, else pass.

    A target whose accuracy was not compared with anything has no baseline, whatever else passed.
    """
    own = [check for check in checks if check["target"] == target]
    found = {check["outcome"] for check in own}
    if found and found <= {"pass", "no baseline"} and not any(c["name"].startswith("accuracy") for c in own):
        return "no baseline"
    return next((o for o in ("fail", "inconclusive", "pass", "no baseline") if o in found), "not checked")


def over(budget: Mapping[str, Any]) -> str:
    """Format a budget behind what was found, in the same unit: ``of 256`` or, where it is missed, ``> 256``."""
    limit = budget["limit"]
    text = kilobytes(limit) if budget["unit"] == "bytes" else milliseconds(limit)
    return f"of {text}" if budget["met"] else f"> {text}"


def _row(target: Mapping[str, Any], checks: list[dict[str, Any]]) -> dict[str, str]:
    drop, ratio, base, latency = (target[k] for k in ("drop", "ratio", "baseline_latency", "latency"))
    budgets = {budget["name"]: over(budget) for budget in target.get("budgets") or ()}
    memory = target.get("memory") or {}

    def amount(key: str, budget: str) -> str:
        return f"{kilobytes(memory[key])} {budgets.get(budget, '')}".rstrip() if memory else NOTHING

    estimate = target.get("estimate")
    ms = f"{milliseconds(estimate['ms'])} (estimated)" if estimate else NOTHING
    if latency:
        ms = milliseconds(latency["p50_ms"])
    return {
        "target": target["target"],
        "float_accuracy": percent(target["baseline_accuracy"]["value"]),
        "accuracy": percent(target["accuracy"]["value"]),
        "drop": interval(*(points(drop[key]) for key in ("value", "low", "high"))),
        "float_ms": f"{milliseconds(base['p50_ms'])} ({precision(base)})" if base else NOTHING,
        "ms": f"{ms} {budgets.get('latency', '')}".rstrip(),
        "ratio": interval(*(f"{ratio[key]:.2f}" for key in ("ratio", "low", "high"))) if ratio else NOTHING,
        "float_kb": kilobytes(target["baseline"]["size_bytes"]),
        "kb": kilobytes(target["artifact"]["size_bytes"]),
        "ram": amount("ram_bytes", "ram"),
        "flash": amount("flash_bytes", "flash"),
        "coverage": percent(target["artifact"]["coverage"]["ratio"]),
        "agreement": percent(target["parity"]["agreement"]),
        "verdict": outcome(target["target"], checks),
    }
