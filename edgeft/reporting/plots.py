"""Figures of the page, as inline SVG that follows the page's light or dark ink."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeft.reporting.rows import milliseconds, percent

# Mid tones with enough contrast on white and on near-black; the ink itself is replaced by the page's.
_FLOAT, _FINAL, _INK = "#8a8f98", "#2f7de1", "#010203"


def comparison(targets: Sequence[Mapping[str, Any]], *, unique: str) -> str:
    """Draw float against final: accuracy on the left, latency on the right, one row per target.

    Accuracy bars are 95 % Wilson intervals; latency bars span the 10th to the 90th percentile of all runs.

    Args:
        targets: Targets of the report whose latencies are of one kind of evidence, and so comparable.
        unique: Keeps element names apart from those of the page's other figures.

    Returns:
        An ``<svg>`` element.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": unique, "font.size": 11}
    for part in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"):
        style[part] = _INK
    with mpl.rc_context(style):
        figure = Figure(figsize=(11.5, 1.1 + 0.72 * len(targets)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for row, target in enumerate(targets):
            _accuracy(left, row, target)
            _latency(right, row, target)
        left.set_xlabel("test accuracy, % (bar: 95 % interval)")
        right.set_xlabel(f"latency, ms, {targets[0]['evidence']} (bar: p10 to p90)")
        right.set_xlim(left=0, right=right.get_xlim()[1] * 1.06)
        left.set_yticks(range(len(targets)), [target["target"] for target in targets])
        left.set_ylim(len(targets) - 0.45, -0.6)
        for axes in (left, right):
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=_FLOAT, alpha=0.25, linewidth=0.8)
            axes.set_axisbelow(True)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def _accuracy(axes: Any, row: int, target: Mapping[str, Any]) -> None:
    for key, offset, color in (("baseline_accuracy", -0.14, _FLOAT), ("accuracy", 0.14, _FINAL)):
        result = target[key]
        axes.plot([100 * result["low"], 100 * result["high"]], [row + offset] * 2, color=color, linewidth=2)
        axes.plot(100 * result["value"], row + offset, "o", color=color, markersize=7)
        axes.annotate(
            percent(result["value"]),
            (100 * result["value"], row + offset),
            xytext=(0, 5 if offset < 0 else -14),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )


def _latency(axes: Any, row: int, target: Mapping[str, Any]) -> None:
    base, final = target["baseline_latency"], target["latency"]
    axes.annotate(
        "",
        (final["p50_ms"], row),
        xytext=(base["p50_ms"], row),
        arrowprops={"arrowstyle": "-|>", "color": _FLOAT, "alpha": 0.6, "shrinkA": 5, "shrinkB": 5},
    )
    for result, color in ((base, _FLOAT), (final, _FINAL)):
        axes.plot([result["p10_ms"], result["p90_ms"]], [row, row], color=color, linewidth=2)
        axes.plot(result["p50_ms"], row, "o", color=color, markersize=7)
        axes.annotate(
            milliseconds(result["p50_ms"]),
            (result["p50_ms"], row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )


def curve(values: Sequence[float | None], *, width: int = 150, height: int = 34) -> str:
    """Return the points of a small line chart of `values`, for an SVG ``polyline``; gaps are left out."""
    present = [(index, value) for index, value in enumerate(values) if value is not None]
    low, high = min((v for _, v in present), default=0.0), max((v for _, v in present), default=0.0)
    span, steps = (high - low) or 1.0, max(1, len(values) - 1)
    return " ".join(
        f"{3 + i * (width - 6) / steps:.1f},{height - 4 - (v - low) / span * (height - 8):.1f}"
        for i, v in present
    )


def _inline(svg: str) -> str:
    """Make a standalone SVG file part of a page: no prolog, scalable, and drawn in the page's own ink."""
    element = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # Namespaces are known in HTML; without them the page holds no address at all.
    element = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", element)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1),
        count=1,
    )
