"""The comparison as a Markdown table."""

from __future__ import annotations

from typing import Any

_TITLES = (
    "file made by", "accuracy [95 %]", "drop, points [95 %]", "ms", "x its runtime's fastest float [95 %]",
    "int8 MAC ops", "size", "seconds",
)  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Return one table per target, float first, the others in the order they were made."""
    lines = [
        f"{report['data']}: {report['test_samples']} test samples, {report['calibration_samples']} to calibrate with, "
        f"{report['host'].get('cpu', 'host')}",
    ]
    lines += [f"\n{name} needs an environment of its own and was left out." for name in report["left_out"]]
    target = ""
    for row in report["rows"]:
        if row["target"] != target:
            target = row["target"]
            lines += ["", f"### {target}", "", _line(_TITLES), _line(["---"] * len(_TITLES))]
        lines.append(_line(_cells(row)))
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    accuracy, drop, ratio = row["accuracy"], row["drop"], row["ratio"]
    setting = f" ({row['latency_setting']})" if row["latency_setting"] else ""
    made = row["tool"] != "float"
    return [
        row["tool"],
        f"{accuracy[0]:.2%} [{accuracy[1]:.1%}, {accuracy[2]:.1%}]",
        f"{100 * drop[0]:+.2f} [{100 * drop[1]:+.2f}, {100 * drop[2]:+.2f}]" if made else "",
        f"{row['latency_ms']:.2f}{setting}",
        f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if made else "1",
        f"{row['int8_macs']} of {row['macs']}",
        f"{row['size_bytes'] / 1e3:.0f} kB, x{row['size_ratio']:.2f}",
        f"{row['seconds']:.1f}" if made else "",
    ]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
