"""What the page shows of a classifier's answers: metrics with intervals, confusions, classes, samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeft.reporting import plots
from edgeft.reporting.rows import percent

MAX_CLASSES = 30
"""Of more classes, the page shows those with the most mistakes; report.json has them all."""

Part = Mapping[str, Any]

_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top 5",
    "roc_auc": "ROC area",
    "calibration_error": "calibration error",
}


def summary(report: Part) -> dict[str, Any] | None:
    """Return ``headings`` and ``rows`` of the metrics table, or None for a report without metrics.

    Every target has a row for its float file and one for its final file; a cell is the formatted value and its
    interval. Metrics that no file has (top 5 of three classes) have no column; the users' own come last.
    """
    files = [
        (target, *file)
        for target in report["targets"]
        for file in (
            (
                target["baseline"]["scheme"],
                target.get("baseline_metrics"),
                target.get("baseline_user_metrics"),
            ),
            (target["artifact"]["scheme"], target.get("metrics"), target.get("user_metrics")),
        )
        if file[1] or file[2]
    ]
    if not files:
        return None
    shown = [key for key in _METRICS if any(metrics and metrics[key] for _, _, metrics, _ in files)]
    own = list(dict.fromkeys(key for *_, values in files for key in values or {}))
    rows = [
        {
            "target": target["target"],
            "scheme": scheme,
            "cells": [_estimate(metrics and metrics[key]) for key in shown]
            + [{"value": _number((values or {}).get(key)), "interval": ""} for key in own],
        }
        for target, scheme, metrics, values in files
    ]
    return {"headings": [_METRICS[key] for key in shown] + own, "rows": rows}


def sections(report: Part) -> list[dict[str, Any]]:
    """Return what the page shows of each target that has metrics or a gallery, below the table."""
    return [
        {
            "target": target["target"],
            "scheme": target["artifact"]["scheme"],
            "gallery": target.get("gallery"),
            **_of_metrics(target.get("metrics"), target.get("baseline_metrics"), f"edgeft-quality-{index}"),
        }
        for index, target in enumerate(report["targets"])
        if target.get("metrics") or target.get("gallery")
    ]


def shown_classes(confusion: Sequence[Sequence[int]]) -> list[int]:
    """Return which classes a confusion matrix (K, K) is drawn for: all, or the `MAX_CLASSES` of most mistakes."""
    classes = range(len(confusion))
    mistakes = [sum(confusion[k]) + sum(row[k] for row in confusion) - 2 * confusion[k][k] for k in classes]
    return sorted(sorted(classes, key=lambda k: -mistakes[k])[:MAX_CLASSES])


def _of_metrics(metrics: Part | None, base: Part | None, unique: str) -> dict[str, Any]:
    if metrics is None:
        return {"confusion": None, "classes": [], "of_classes": 0, "reliability": ""}
    shown = shown_classes(metrics["confusion"])
    return {
        "confusion": _confusion(metrics, shown),
        "classes": [
            _class(metrics["per_class"][k], base["per_class"][k] if base is not None else None) for k in shown
        ],
        "of_classes": len(metrics["per_class"]),
        "reliability": plots.reliability(metrics, base, unique=unique),
    }


def _confusion(metrics: Part, shown: Sequence[int]) -> dict[str, Any]:
    """Return the heat map: a cell's shade is its share of the row's samples, in tenths of the full colour."""
    names = [metrics["per_class"][k]["name"] for k in shown]
    complete = len(shown) == len(metrics["per_class"])
    return {
        "names": names,
        "complete": complete,
        "rows": [
            {
                "name": name,
                "cells": list(_cells(metrics["confusion"][k], k, shown)),
                "elsewhere": sum(metrics["confusion"][k]) - sum(metrics["confusion"][k][j] for j in shown),
                "samples": sum(metrics["confusion"][k]),
            }
            for k, name in zip(shown, names, strict=True)
        ],
    }


def _cells(row: Sequence[int], label: int, shown: Sequence[int]) -> Iterator[dict[str, Any]]:
    total = sum(row) or 1
    for prediction in shown:
        share = row[prediction] / total
        yield {
            "count": row[prediction],
            "share": percent(share),
            "right": prediction == label,
            # Even a single mistake is to be seen.
            "shade": round(100 * share) if not row[prediction] else max(12, round(100 * share)),
        }


def _class(final: Part, base: Part | None) -> dict[str, Any]:
    figures = {
        key: {"value": "-", "interval": "not defined"} if key in final["undefined"] else _estimate(final[key])
        for key in ("precision", "recall", "f1")
    }
    known = base is not None and "f1" not in base["undefined"]
    return {
        "name": final["name"],
        "support": final["support"],
        **figures,
        "float_f1": percent(base["f1"]["value"]) if base is not None and known else "-",
    }


def _estimate(estimate: Part | None) -> dict[str, str]:
    """Format a figure and its interval in percent."""
    if not estimate:
        return {"value": "-", "interval": ""}
    return {
        "value": percent(estimate["value"]),
        "interval": f"{100 * estimate['low']:.1f}\N{EN DASH}{100 * estimate['high']:.1f}",
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
