"""Write `report.html`: one self-contained page from the report document and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeft.files import write_text
from edgeft.reporting import device, plots, pruning, quality, quantization, rows

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_ABSENT: Mapping[str, Any] = {"executed": None, "estimate": None, "memory": None, "budgets": []}
"""Keys of a target that reports from before they came do not have."""
_PICTURE = "photo.jpg # classify a picture"
_EXAMPLES = {
    "text-classification": '"a text"  # classify a text',
    "tabular-classification": "age=42,kind=b  # classify a row: column=cell,...",
}


def write_html(report: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a report, complete or not at all. Returns `path`.

    It needs no other file and no network: style and figures are inside.

    Raises:
        WorkspaceError: It cannot be written.
    """
    import jinja2

    report = {**report, "targets": [{**_ABSENT, **target} for target in report["targets"]]}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=rows.percent, ms=rows.milliseconds, points=rows.points, kb=rows.kilobytes, amount=_amount
    )
    html = environment.get_template("report.html.j2").render(
        report=report,
        rows=rows.table(report),
        headings=rows.headings(report),
        figures=_figures(report),
        precision=rows.precision,
        summary=quality.summary(report),
        quality=quality.sections(report),
        example=_EXAMPLES.get(report["recipe"].get("task", {}).get("kind"), _PICTURE),
        finetune=_finetune(report.get("finetune")),
        pruning=pruning.section(report),
        device={
            "memory": device.memory(report),
            "budgets": device.budgets(report),
            "estimates": device.estimates(report),
        },
        quantizations=quantization.sections(report),
        curves={index: list(_curves(stage["results"])) for index, stage in enumerate(report["stages"])},
    )
    return write_text(path, html)


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
    """Return evidence -> figure: latencies of different kinds are never drawn on one axis.

    Without a clock there is nothing to draw: the table has the accuracies.
    """
    kinds = dict.fromkeys(target["evidence"] for target in report["targets"] if target["latency"])
    return {
        kind: plots.comparison(
            [t for t in report["targets"] if t["evidence"] == kind], unique=f"edgeft-{kind}"
        )
        for kind in kinds
    }


def _finetune(section: Any) -> dict[str, Any] | None:
    """Return the training's facts and its figure; None where nothing was trained or the report is an old one."""
    if not section or not section["epochs"]:
        return None
    accuracies = [epoch["val_accuracy"] for epoch in section["epochs"]]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    facts = {
        "method": section["method"],
        "epochs": len(accuracies),
        "best validation accuracy": rows.percent(max(known)) if known else None,
        "best epoch": accuracies.index(max(known)) + 1 if known else None,
        "seconds": section["seconds"],
        "of these for features": section["feature_seconds"],
    }
    return {
        "facts": {key: value for key, value in facts.items() if value is not None},
        "figure": plots.training(section["epochs"], unique="edgeft-training"),
    }


def _curves(results: Any) -> Iterator[dict[str, Any]]:
    """Yield the validation accuracies among a stage's results (lists of epoch records) as small charts."""
    match results:
        case dict():
            for value in results.values():
                yield from _curves(value)
        case [{"val_accuracy": _, "epoch": _}, *_]:
            accuracies = [epoch["val_accuracy"] for epoch in results]
            known = [accuracy for accuracy in accuracies if accuracy is not None]
            if known:
                chart = {"points": plots.curve(accuracies), "epochs": len(results)}
                yield {**chart, "first": known[0], "last": known[-1], "best": max(known)}


def _amount(value: Any) -> str:
    """Format any value of a configuration for reading."""
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "-"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case list() if not any(isinstance(item, dict | list) for item in value):
            return ", ".join(_amount(item) for item in value) or "-"
        case list():
            return f"{len(value)} entries (in report.json)"
        case dict():
            return ", ".join(f"{key} {_amount(item)}" for key, item in value.items()) or "-"
        case _:
            return str(value)
