"""Figures of the page, as inline SVG that follows the page's light or dark ink."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgeft.measure.statistics import wilson_interval
from edgeft.reporting.rows import milliseconds, percent

Metrics = Mapping[str, Any]

# Mid tones with enough contrast on white and on near-black; the ink itself is replaced by the page's.
FLOAT, FINAL, _INK = "#8a8f98", "#2f7de1", "#010203"


def comparison(targets: Sequence[Mapping[str, Any]], *, unique: str) -> str:
    """Draw float against final: accuracy on the left, latency on the right, one row per target.

    Accuracy bars are 95 % Wilson intervals; latency bars span the 10th to the 90th percentile of all runs.

    Args:
        targets: Targets of the report whose latencies are of one kind of evidence, and so comparable.
        unique: Keeps element names apart from those of the page's other figures.

    Returns:
        An ``<svg>`` element.
    """
    with draw((11.5, 1.1 + 0.72 * len(targets)), unique) as drawing:
        left, right = drawing.figure.subplots(1, 2, sharey=True)
        for row, target in enumerate(targets):
            _accuracy(left, row, target)
            _latency(right, row, target)
        left.set_xlabel("test accuracy, % (bar: 95 % interval)")
        right.set_xlabel(f"latency, ms, {targets[0]['evidence']} (bar: p10 to p90)")
        right.set_xlim(left=0, right=right.get_xlim()[1] * 1.06)
        left.set_yticks(range(len(targets)), [target["target"] for target in targets])
        left.set_ylim(len(targets) - 0.45, -0.6)
        for axes in (left, right):
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=FLOAT, alpha=0.25, linewidth=0.8)
    return drawing.svg


def reliability(final: Metrics, base: Metrics | None, *, unique: str) -> str:
    """Draw accuracy over confidence, and how many samples are so sure, for the final file and the float one.

    Args:
        final: Metrics of the final file.
        base: Those of the float file, if there are any.
        unique: Keeps element names apart from those of the page's other figures.

    Returns:
        An ``<svg>`` element.
    """
    with draw((5.2, 4.6), unique) as drawing:
        upper, lower = drawing.figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0, 100], [0, 100], "--", color=FLOAT, linewidth=1)
        for metrics, color, shift in ((base, FLOAT, -1), (final, FINAL, 1)):
            if metrics is not None:
                _reliability(upper, lower, metrics, color, shift)
        upper.set(ylabel="accuracy, % (bar: 95 % interval)", ylim=(-2, 102), xlim=(0, 100))
        lower.set(xlabel="confidence, %", ylabel="samples, %")
        for axes in (upper, lower):
            axes.grid(color=FLOAT, alpha=0.25, linewidth=0.8)
    return drawing.svg


def _reliability(upper: Any, lower: Any, metrics: Metrics, color: str, shift: int) -> None:
    bins = metrics["reliability"]
    width = 100 / len(bins)
    occupied = [bin_ for bin_ in bins if bin_["samples"]]
    confidences = [100 * bin_["confidence"] for bin_ in occupied]
    for bin_, x in zip(occupied, confidences, strict=True):
        bounds = wilson_interval(round(bin_["accuracy"] * bin_["samples"]), bin_["samples"])
        upper.plot([x, x], [100 * bound for bound in bounds], color=color, linewidth=1.2, alpha=0.55)
    upper.plot(confidences, [100 * bin_["accuracy"] for bin_ in occupied], "o-", color=color, markersize=5)
    centers = [(i + 0.5) * width + shift * width / 5 for i in range(len(bins))]
    shares = [100 * bin_["samples"] / metrics["samples"] for bin_ in bins]
    lower.bar(centers, shares, width=width * 0.38, color=color)


def training(epochs: Sequence[Mapping[str, float | None]], *, unique: str) -> str:
    """Draw losses and validation accuracy over the epochs of a training.

    Args:
        epochs: Epoch records of the report, in order.
        unique: Keeps element names apart from those of the page's other figures.

    Returns:
        An ``<svg>`` element.
    """
    numbers = range(1, len(epochs) + 1)

    def series(key: str, factor: float = 1.0) -> list[float]:
        # A value that was not finite is null in the report: matplotlib leaves a gap at NaN.
        values = [epoch.get(key) for epoch in epochs]
        return [math.nan if value is None else factor * value for value in values]

    with draw((11.5, 3.1), unique) as drawing:
        left, right = drawing.figure.subplots(1, 2)
        for key, color in (("train_loss", FLOAT), ("val_loss", FINAL)):
            left.plot(numbers, series(key), "o-", color=color, markersize=3.5)
        right.plot(numbers, series("val_accuracy", 100), "o-", color=FINAL, markersize=3.5)
        left.set(xlabel="epoch", ylabel="loss")
        right.set(xlabel="epoch", ylabel="validation accuracy, %")
        for axes in (left, right):
            axes.set_xlim(0.5, len(epochs) + 0.5)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color=FLOAT, alpha=0.25, linewidth=0.8)
    return drawing.svg


def sensitivity(
    layers: Sequence[Mapping[str, Any]], in_float: Sequence[str], *, unique: str, standalone: bool = False
) -> str:
    """Draw what quantizing each layer alone does to the outputs, and how many of the MACs it has, in graph order.

    Args:
        layers: A sensitivity table, one mapping per layer.
        in_float: Layers that are drawn in grey: they were taken back to float.
        unique: Keeps element names apart from those of the page's other figures.
        standalone: Whether the result is to be a file of its own, in black on white.

    Returns:
        An ``<svg>`` element, or an SVG file's text.
    """
    rows = range(len(layers))
    colors = [FLOAT if layer["layer"] in in_float else FINAL for layer in layers]
    # A divergence of zero has no place on a logarithmic axis.
    floor = min((layer["kl"] for layer in layers if layer["kl"]), default=1e-9) / 2
    size = (11.5, 1.0 + 0.22 * len(layers))
    with draw(size, unique, standalone=standalone) as drawing:
        left, right = drawing.figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        left.barh(rows, [max(layer["kl"], floor) for layer in layers], color=colors, height=0.7)
        left.set(xscale="log", xlabel="KL divergence of the outputs, nats, with this layer alone quantized")
        left.set_yticks(rows, [layer["layer"] for layer in layers], fontsize=9)
        left.set_ylim(len(layers) - 0.4, -0.6)
        right.barh(rows, [100 * layer["mac_share"] for layer in layers], color=colors, height=0.7)
        right.set_xlabel("share of the MACs, %")
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=FLOAT, alpha=0.25, linewidth=0.8)
    return drawing.svg


@dataclass(slots=True)
class Drawing:
    """A matplotlib figure that is being drawn, and the element that it becomes."""

    figure: Any
    svg: str = ""


@contextmanager
def draw(size: tuple[float, float], unique: str, *, standalone: bool = False) -> Iterator[Drawing]:
    """Set up a figure of `size` inches in the page's style; at the end of the block its `svg` is there."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": unique, "font.size": 11}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    for part in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"):
        style[part] = _INK
    with mpl.rc_context(style):
        drawing = Drawing(Figure(figsize=size, layout="constrained"))
        yield drawing
        buffer = io.StringIO()
        drawing.figure.savefig(
            buffer, format="svg", transparent=not standalone, metadata={"Date": None, "Creator": None}
        )
        drawing.svg = buffer.getvalue() if standalone else _inline(buffer.getvalue())


def _accuracy(axes: Any, row: int, target: Mapping[str, Any]) -> None:
    for key, offset, color in (("baseline_accuracy", -0.14, FLOAT), ("accuracy", 0.14, FINAL)):
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
        arrowprops={"arrowstyle": "-|>", "color": FLOAT, "alpha": 0.6, "shrinkA": 5, "shrinkB": 5},
    )
    for result, color in ((base, FLOAT), (final, FINAL)):
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
