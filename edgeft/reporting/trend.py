"""The trend page: what the releases of a history reached on each target, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeft.reporting import plots, rows
from edgeft.reporting.releases import Release, ReleasedTarget

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_COLORS = {"pass": plots.FINAL, "fail": "#d6453d", "inconclusive": "#c98a1b"}
_MOST_TICKS = 10
_LABEL_CHARACTERS = 12


def page(releases: Sequence[Release]) -> str:
    """Return the HTML page of at least one release, oldest first; it needs no other file and no network."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    targets = dict.fromkeys(name for release in releases for name in release.targets)
    return environment.get_template("trend.html.j2").render(
        releases=releases,
        latest=releases[-1],
        colors=_COLORS,
        targets=[
            {
                "name": name,
                "figure": figure(releases, name, unique=f"edgeft-trend-{number}"),
                "rows": [
                    _row(release, release.targets[name])
                    for release in reversed(releases)
                    if name in release.targets
                ],
            }
            for number, name in enumerate(targets)
        ],
    )


def figure(releases: Sequence[Release], target: str, *, unique: str) -> str:
    """Draw one target's accuracy, latency ratio (RAM where no clock gives one) and size over the releases.

    Args:
        releases: All of the history, so that the figures of several targets have one axis; a release without this
            target is a gap.
        target: Its id.
        unique: Keeps element names apart from those of the page's other figures.

    Returns:
        An ``<svg>`` element.
    """
    shown = [(i, release.targets[target]) for i, release in enumerate(releases) if target in release.targets]
    with plots.draw((11.5, 2.9), unique) as drawing:
        accuracy, middle, size = drawing.figure.subplots(1, 3)
        _draw(accuracy, [(i, 100 * t.accuracy, 100 * t.low, 100 * t.high, t.outcome) for i, t in shown])
        is_ratio = _middle(middle, shown)
        kilobytes = [(i, t.size_bytes / 1000, t.outcome) for i, t in shown]
        _draw(size, [(i, value, value, value, outcome) for i, value, outcome in kilobytes])
        accuracy.set_title("accuracy, %", loc="left", fontsize=11)
        size.set_title("size, KB", loc="left", fontsize=11)
        for axes in (middle, size):
            axes.set_ylim(bottom=0, top=1.12 * axes.get_ylim()[1])
        if is_ratio and middle.get_ylim()[1] > 1:
            middle.axhline(1, linestyle="--", color=plots.FLOAT, linewidth=1)
        for axes in (accuracy, middle, size):
            _label(axes, releases)
    return drawing.svg


def _middle(axes: Any, shown: Sequence[tuple[int, ReleasedTarget]]) -> bool:
    """Draw the latency ratio, or RAM where there is none; return whether it was the ratio."""
    ratios = [
        (i, t.ratio, t.ratio_low, t.ratio_high, t.outcome)
        for i, t in shown
        if t.ratio is not None and t.ratio_low is not None and t.ratio_high is not None
    ]
    if not ratios:
        ram = [(i, t.ram_bytes / 1000, t.outcome) for i, t in shown if t.ram_bytes is not None]
        _draw(axes, [(i, value, value, value, outcome) for i, value, outcome in ram])
        axes.set_title("RAM, KB", loc="left", fontsize=11)
        return False
    _draw(axes, ratios)
    axes.set_title("latency over fastest float", loc="left", fontsize=11)
    return True


def _draw(axes: Any, points: Sequence[tuple[int, float, float, float, str]]) -> None:
    """Draw values with their intervals; each point has the colour of its outcome."""
    axes.plot([p[0] for p in points], [p[1] for p in points], color=plots.FLOAT, linewidth=1.2, alpha=0.7)
    for x, value, low, high, outcome in points:
        color = _COLORS.get(outcome, plots.FLOAT)
        axes.plot([x, x], [low, high], color=color, linewidth=1.6, alpha=0.6)
        axes.plot(x, value, "o", color=color, markersize=6)


def _label(axes: Any, releases: Sequence[Release]) -> None:
    """Name the releases below the axis, as many as have room, the last one always."""
    step = -(-len(releases) // _MOST_TICKS)
    ticks = list(range(len(releases) - 1, -1, -step))
    names = [_shortened(releases[tick].label) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_xlim(-0.6, len(releases) - 0.4)
    axes.grid(axis="y", color=plots.FLOAT, alpha=0.25, linewidth=0.8)


def _shortened(label: str) -> str:
    text = (
        label
        if len(label) <= _LABEL_CHARACTERS
        else label[: _LABEL_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
    # matplotlib takes what is between two of these for a formula.
    return text.replace("$", r"\$")


def _milliseconds(target: ReleasedTarget) -> str:
    if target.p50_ms is not None:
        return rows.milliseconds(target.p50_ms)
    if target.estimated_ms is None:
        return rows.NOTHING
    return f"{rows.milliseconds(target.estimated_ms)} (estimated)"


def _row(release: Release, target: ReleasedTarget) -> dict[str, str]:
    return {
        "release": release.label,
        "commit": release.commit[:12],
        "created": release.created[:10],
        "run": release.name,
        "accuracy [95 %]": rows.interval(*map(rows.percent, (target.accuracy, target.low, target.high))),
        "samples": f"{target.samples:,}",
        "p50 ms": _milliseconds(target),
        "ratio [95 %]": rows.NOTHING
        if target.ratio is None
        else rows.interval(*(f"{r:.2f}" for r in (target.ratio, target.ratio_low, target.ratio_high))),
        "KB": rows.kilobytes(target.size_bytes),
        "int8 MAC ops": rows.percent(target.coverage),
        "outcome": target.outcome,
    }
