"""Show the record of `edgeft bench`: one table for the console, one self-contained page with figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeft.files import write_text
from edgeft.reporting import plots, rows

_TEMPLATES: Final = Path(__file__).resolve().parent / "templates"
_POINTS: Final = 20_000
"""Most dots of one file in a figure."""
_BINS: Final = 60
_WIDE: Final = 4.0
"""Longest run over the shortest, from which on a linear axis shows nothing but the longest ones."""
_STATISTICS: Final = ("p50", "p90", "p99", "mean", "min")

FloatArray = npt.NDArray[np.float64]


def table(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row per file, formatted; times in ms, MB and KB in powers of 1000.

    Columns that say the same of no file (throughput, accuracy) are left out.
    """
    shown = []
    for name, result in zip(short_names(record["results"]), record["results"], strict=True):
        latency, throughput, accuracy = result["latency"], result["throughput"], result["accuracy"]
        row = {"file": name}
        row |= {f"{key} ms": rows.milliseconds(latency[f"{key}_ms"]) for key in _STATISTICS}
        row |= {
            f"{key} ms": rows.milliseconds(float(np.median(latency[f"{key}_ms"])))
            for key in ("load", "first")
        }
        if throughput:
            row["samples/s"] = f"{throughput['samples_per_second']:,.0f}"
        if accuracy:
            row["accuracy"] = rows.percent(accuracy["value"])
        row |= {
            "peak MB": f"{latency['peak_rss_bytes'] / 1e6:.1f}",
            "size KB": rows.kilobytes(result["size_bytes"]),
            "runs": f"{latency['runs']:,}",
            "precision": _precision(result),
            "runs on": _where(result),
            "fed with": result["inputs_origin"].partition(" (floats")[0],
        }
        shown.append(row)
    return shown


def write_html(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a record, complete or not at all. Returns `path`.

    Raises:
        WorkspaceError: It cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ms=rows.milliseconds, kb=rows.kilobytes)
    html = environment.get_template("bench.html.j2").render(
        record=record,
        rows=[{k: v for k, v in row.items() if k not in ("runs on", "fed with")} for row in table(record)],
        where=[_where(result) for result in record["results"]],
        figures=[
            _figure(result["latency"], f"edgeft-bench-{i}") for i, result in enumerate(record["results"])
        ],
    )
    return write_text(path, html)


def _precision(result: Mapping[str, Any]) -> str:
    counts = result["runtime"]["mac_precision"]
    return " + ".join(sorted(counts, key=lambda key: -counts[key])) or "-"


def _where(result: Mapping[str, Any]) -> str:
    runtime, threads = result["runtime"], result["threads"]
    streams = result["throughput"]["streams"] if result["throughput"] else 1
    parts = [f"{runtime['runtime']} {runtime['version'].partition('-')[0]}", runtime["device"]]
    parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    parts += [f"{streams} streams"] if streams > 1 else []
    parts += [f"batch {result['batch']}"] if result["batch"] > 1 else []
    return ", ".join(parts)


def _figure(latency: Mapping[str, Any], unique: str) -> str:
    """Draw how often each latency occurs, and the runs in the order in which they were taken.

    Every run is in both. Where some took many times as long as others, the axes are logarithmic.
    """
    processes: list[FloatArray] = [np.asarray(process) for process in latency["samples_ms"]]
    pooled = np.concatenate(processes)
    low, high = float(pooled.min()) * 0.99, float(pooled.max()) * 1.01
    scale = "log" if high > _WIDE * low > 0 else "linear"
    edges = np.geomspace(low, high, _BINS + 1) if scale == "log" else np.linspace(low, high, _BINS + 1)
    with plots.draw((11.5, 3.1), unique) as drawing:
        drawing.figure.set_dpi(180)  # of the dots, which are drawn as a picture: thousands of shapes are slow
        left, right = drawing.figure.subplots(1, 2)
        left.hist(pooled, bins=edges, color=plots.FINAL)
        left.set(xscale=scale, yscale=scale, xlabel="latency, ms", ylabel="runs", xlim=(low, high))
        for q, style in ((50, "-"), (99, "--")):
            left.axvline(latency[f"p{q}_ms"], color=plots.FLOAT, linestyle=style, linewidth=1.2)
        start, step = 0, max(1, len(pooled) // _POINTS)
        for number, process in enumerate(processes):
            order = np.arange(0, len(process), step)
            color = plots.FINAL if number % 2 == 0 else plots.FLOAT
            right.plot(start + order, process[order], ".", color=color, markersize=2, rasterized=True)
            start += len(process)
        right.set(xlabel="run, in the order of time (shades: processes)", ylabel="latency, ms")
        right.set(yscale=scale, ylim=(low, high))
        for axis in (left.xaxis, right.yaxis) if scale == "log" else ():
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        for axes in (left, right):
            axes.grid(color=plots.FLOAT, alpha=0.25, linewidth=0.8)
    return drawing.svg


def short_names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the last two parts of every path, or the whole ones where those are not unique."""
    names = [str(result["name"]) for result in results]
    short = ["/".join(Path(name).parts[-2:]) for name in names]
    return short if len(set(short)) == len(set(names)) else names
