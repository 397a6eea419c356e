"""The report on pruning: the table of the search, the final ratio beside the predicted one, every layer's widths."""

from typing import Any

from edgeft.reporting import pruning
from edgeft.types import StepRecord

PLAN = {
    "macs_before": 1000,
    "macs_after": 400,
    "params_before": 90,
    "params_after": 50,
    "groups": [
        {"layers": ["stem"], "width_before": 32, "width_after": 16, "limit": ""},
        {"layers": ["head"], "width_before": 6, "width_after": 6, "limit": "network output"},
    ],
    "layers": [
        {"layer": "stem", "outputs": [32, 16], "inputs": [3, 3], "macs": [900, 350]},
        {"layer": "head", "outputs": [6, 6], "inputs": [32, 16], "macs": [100, 50]},
    ],
}


def candidate(macs: float, value: float) -> dict[str, Any]:
    figures = {"latency_ms": 2 * value, "unpruned_ms": 2.0, "size_bytes": 5000}
    return {"macs": macs, "value": value, "low": value - 0.01, "high": value + 0.01, **figures}


SEARCH = {
    "kind": "latency",
    "budget": 0.5,
    "target": "cpu-onnxruntime",
    "scheme": "int8",
    "exports": 3,
    "lowest_macs": 0.1,
    "chosen": 1,
    "candidates": [candidate(0.5, 0.61), candidate(0.4, 0.49)],
}


def step(name: str, results: dict[str, Any], **config: Any) -> StepRecord:
    return StepRecord(name=name, config=config, seed=0, seconds=7.0, versions={}, results=results)


def report(**changes: Any) -> dict[str, Any]:
    accuracies = {"val_accuracy_unpruned": 0.9, "val_accuracy_before_recovery": 0.3, "val_accuracy": 0.89}
    results = {"plan": PLAN, "search": SEARCH, **accuracies, **changes}
    final = {"base": "unpruned", "head": "final", "ratio": 0.495, "low": 0.48, "high": 0.51, "pairs": 6}
    return {
        "prune": pruning.record(
            [
                step("finetune", {}),
                step("prune", results, budget={"latency": 0.5}, criterion="magnitude", allocation="global"),
                step("measure-cpu-onnxruntime", {"lsb": 0.1, "against_unpruned": final}),
                step("measure-cpu-litert", {"lsb": 0.1}),
            ]
        )
    }


def test_the_search_and_the_widths_are_shown():
    shown = pruning.section(report())
    assert shown is not None
    first, second = shown["candidates"]
    assert (first["within"], first["chosen"], first["text"]) == (False, False, "0.610 [0.600, 0.620]")
    assert (second["within"], second["chosen"]) == (True, True)
    assert shown["facts"]["budget"] == "0.5 of the latency at this scheme"
    assert shown["facts"]["multiply-accumulates"] == "1,000 to 400 (40.0 %)"
    assert shown["facts"]["validation accuracy"] == "90.0 % unpruned, 30.0 % cut, 89.0 % recovered"
    held = shown["facts"]["latency predicted and measured"]
    assert held.startswith("0.490 [0.480, 0.500] before training, 0.495 [0.480, 0.510] of the final file")
    assert [(layer["layer"], layer["outputs"], layer["limit"]) for layer in shown["layers"]] == [
        ("stem", [32, 16], ""),
        ("head", [6, 6], "network output"),
    ]
    assert "rewritten" not in shown["facts"]


def test_layers_of_no_group_say_why_they_were_left():
    fixed = {"stem": "not followed", "mixer": "attention in one kernel"}
    shown = pruning.section(report(plan={**PLAN, "fixed": fixed}))
    assert shown is not None
    assert [layer["limit"] for layer in shown["layers"]] == ["not followed", ""]
    assert shown["uncounted"] == {"mixer": "attention in one kernel"}


def test_a_size_is_counted_on_the_final_file():
    counted = candidate(0.4, 0.49) | {"low": None, "high": None}
    given = report(search=SEARCH | {"kind": "size", "candidates": [counted], "chosen": 0})
    given["prune"]["budget"] = {"size": 0.5}
    given["prune"]["measured"]["cpu-onnxruntime"] = {"ratio": 0.52, "low": None, "high": None}
    shown = pruning.section(given)
    assert shown is not None
    assert shown["facts"]["size predicted and measured"] == (
        "0.490 before training, 0.520 of the final file, both of the unpruned network's int8 file on cpu-onnxruntime"
    )


def test_a_rewrite_and_a_budget_without_a_search():
    rewrite = {"name": "edge-lite", "activations": ["a", "b"], "gates": ["c"], "folded": []}
    shown = pruning.section(report(search=None, rewrite=rewrite))
    assert shown is not None and shown["candidates"] == []
    assert shown["facts"]["rewritten"].startswith("2 activations became ReLU6, 1 squeeze-and-excite")
    assert "latency predicted and measured" not in shown["facts"]


def test_without_pruning_there_is_no_section():
    assert pruning.record([step("finetune", {})]) is None
    assert pruning.section({"prune": None}) is None
    assert pruning.section({}) is None, "a report from before this was stored"
