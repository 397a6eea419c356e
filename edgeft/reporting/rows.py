"""The end table of a run: the same formatted figures for the console and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def headings(report: Mapping[str, Any]) -> dict[str, str]:
    """Return column key -> heading for the rows of `table`, in order."""
    schemes = {target["artifact"]["scheme"] for target in report["targets"]}
    final = schemes.pop() if len(schemes) == 1 else "final"
    if final == "float32":
        final = "final"
    return {
        "target": "target",
        "float_accuracy": "float acc",
        "accuracy": f"{final} acc",
        "drop": "drop [95 %], points",
        "float_ms": "float ms",
        "ms": f"{final} ms",
        "ratio": "ratio [95 %]",
        "float_kb": "float KB",
        "kb": f"{final} KB",
        "coverage": "int8 MAC ops",
        "agreement": "agrees with Q/DQ" if final == "int8" else "agrees with program",
        "verdict": "verdict",
    }


def table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row per target, formatted; keys as in `headings`.

    Accuracies are in percent, the drop in percentage points (positive is worse), latencies are p50 in ms and
    marked where they were not measured by the clock, sizes are in units of 1000 bytes.
    """
    return [_row(target, report["verdict"]["checks"]) for target in report["targets"]]


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


def kilobytes(size_bytes: int) -> str:
    """Format a size in units of 1000 bytes."""
    return f"{size_bytes / 1000:,.1f}" if size_bytes < 100_000 else f"{size_bytes / 1000:,.0f}"


def precision(latency: Mapping[str, Any]) -> str:
    """Name the precision that a runtime said it runs the MAC ops in, most frequent first."""
    counts: Mapping[str, int] = latency["runtime"]["mac_precision"]
    return " + ".join(sorted(counts, key=lambda key: -counts[key])) or latency["label"]


def outcome(target: str, checks: list[dict[str, Any]]) -> str:
    """Return a target's own verdict: fail if any of its checks does, else inconclusive, else pass."""
    found = {check["outcome"] for check in checks if check["target"] == target}
    return next((o for o in ("fail", "inconclusive", "pass", "no baseline") if o in found), "not checked")


def _row(target: Mapping[str, Any], checks: list[dict[str, Any]]) -> dict[str, str]:
    drop, ratio, base = target["drop"], target["ratio"], target["baseline_latency"]
    mark = "" if target["evidence"] in ("measured", "hardware") else f" ({target['evidence']})"
    return {
        "target": target["target"],
        "float_accuracy": percent(target["baseline_accuracy"]["value"]),
        "accuracy": percent(target["accuracy"]["value"]),
        "drop": interval(*(points(drop[key]) for key in ("value", "low", "high"))),
        "float_ms": f"{milliseconds(base['p50_ms'])}{mark} ({precision(base)})",
        "ms": f"{milliseconds(target['latency']['p50_ms'])}{mark}",
        "ratio": interval(*(f"{ratio[key]:.2f}" for key in ("ratio", "low", "high"))),
        "float_kb": kilobytes(target["baseline"]["size_bytes"]),
        "kb": kilobytes(target["artifact"]["size_bytes"]),
        "coverage": percent(target["artifact"]["coverage"]["ratio"]),
        "agreement": percent(target["parity"]["agreement"]),
        "verdict": outcome(target["target"], checks),
    }
