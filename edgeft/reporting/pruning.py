"""How a run's network was pruned: the report's record of it, and what the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeft.reporting import rows
from edgeft.types import StepRecord

_RESULTS = (
    "plan",
    "search",
    "rewrite",
    "steps",
    "val_accuracy_unpruned",
    "val_accuracy_before_recovery",
    "val_accuracy",
)
_SETTINGS = ("budget", "criterion", "allocation", "keep", "floor")
_AGAINST_UNPRUNED = "against_unpruned"


def record(stages: Sequence[StepRecord]) -> dict[str, Any] | None:
    """Return the report's record of the prune stage; None where there was none.

    Its settings and results, and in ``measured`` what the budget is of (latency, size, RAM) of the final file over that
    of the unpruned network's at the same scheme, on the budget's target.
    """
    stage = next((stage for stage in stages if stage.name == "prune"), None)
    if stage is None:
        return None
    measured = {
        other.name.removeprefix("measure-"): other.results[_AGAINST_UNPRUNED]
        for other in stages
        if _AGAINST_UNPRUNED in other.results
    }
    return {
        **{key: stage.config.get(key) for key in _SETTINGS},
        **{key: stage.results.get(key) for key in _RESULTS},
        "measured": measured,
        "seconds": stage.seconds,
    }


def section(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the page shows of the prune stage; None without one, or in reports that hold no plan of it."""
    found = report.get("prune")
    if not found or not found["plan"]:
        return None
    plan, search, rewrite = found["plan"], found["search"], found["rewrite"]
    accuracies = (
        ("unpruned", found["val_accuracy_unpruned"]),
        ("cut", found["val_accuracy_before_recovery"]),
        ("recovered", found["val_accuracy"]),
    )
    kind, share = next(iter(found["budget"].items()))
    facts = {
        "budget": f"{share:g} of the {_KINDS[kind]}",
        "criterion": found["criterion"],
        "allocation": found["allocation"],
        "multiply-accumulates": _change(plan["macs_before"], plan["macs_after"]),
        "parameters": _change(plan["params_before"], plan["params_after"]),
        "validation accuracy": ", ".join(
            f"{rows.percent(value)} {name}" for name, value in accuracies if value is not None
        ),
        f"{'RAM' if kind == 'ram' else kind} predicted and measured": _held(kind, search, found["measured"]),
        "rewritten": f"{len(rewrite['activations'])} activations became ReLU6, {len(rewrite['gates'])} "
        f"squeeze-and-excite modules were dropped ({rewrite['name']})"
        if rewrite
        else None,
        "seconds": found["seconds"],
    }
    return {
        "facts": {key: value for key, value in facts.items() if value is not None},
        "search": search,
        "candidates": [_candidate(each, search) for each in search["candidates"]] if search else [],
        "steps": found["steps"] or [],
        "layers": _layers(plan),
        "uncounted": {
            name: reason
            for name, reason in _fixed(plan).items()
            if name not in {layer["layer"] for layer in plan["layers"]}
        },
    }


_KINDS = {
    "latency": "latency at this scheme",
    "macs": "multiply-accumulates",
    "size": "file's size",
    "ram": "RAM",
}


def _change(before: int, after: int) -> str:
    return f"{before:,} to {after:,} ({rows.percent(after / before)})"


def _held(kind: str, search: Mapping[str, Any] | None, measured: Mapping[str, Any]) -> str | None:
    """Return how far the search's prediction held on the final file."""
    if not search or search["target"] not in measured:
        return None
    predicted, final = search["candidates"][search["chosen"]], measured[search["target"]]
    return (
        f"{_ratio(predicted['value'], predicted)} before training, {_ratio(final['ratio'], final)} of the final file, "
        f"both of the unpruned network's {search['scheme']} file on {search['target']}"
        + (", as its compiler estimates" if kind == "latency" and final["low"] is None else "")
    )


def _ratio(value: float, bounds: Mapping[str, Any]) -> str:
    if bounds["low"] is None:  # counted or estimated, not measured
        return f"{value:.3f}"
    return rows.interval(f"{value:.3f}", f"{bounds['low']:.3f}", f"{bounds['high']:.3f}")


def _candidate(candidate: Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    """Return one candidate with its cost as text."""
    value = candidate["value"]
    return {
        **candidate,
        "text": _ratio(value, candidate),
        "within": value <= search["budget"],
        "chosen": candidate is search["candidates"][search["chosen"]],
    }


def _layers(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every layer's widths and MACs before and after, and why it was left whole if it had to be."""
    limits = _fixed(plan)
    return [
        {
            "layer": layer["layer"],
            "outputs": layer["outputs"],
            "inputs": layer["inputs"],
            "macs": layer["macs"],
            "limit": limits.get(layer["layer"], ""),
        }
        for layer in plan["layers"]
    ]


def _fixed(plan: Mapping[str, Any]) -> Mapping[str, str]:
    """Return why layers were left whole; of reports from before plans told it, as far as their groups do."""
    found: Mapping[str, str] | None = plan.get("fixed")
    if found is not None:
        return found
    return {name: group["limit"] for group in plan["groups"] for name in group["layers"]}
