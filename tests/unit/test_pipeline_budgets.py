"""Whether a budget held in the end: the final file against the unpruned network's."""

import dataclasses
import json
from pathlib import Path

import pytest

from edgeft import records, target
from edgeft.pipeline import budgets
from edgeft.pipeline.inputs import RunInputs
from edgeft.recipe import Recipe
from edgeft.stages import budgeting
from edgeft.types import ExportedArtifact, QuantCoverage, silent

ORT = "cpu-onnxruntime"


def run_of(folder: Path, *, budget: dict[str, float], final: int) -> RunInputs:
    """Return a run whose unpruned file has 1,000 bytes, and whose final one has `final`."""
    folders = {name: folder / name for name in ("prune", f"export-{ORT}")}
    for each in folders.values():
        each.mkdir()
    unpruned = ExportedArtifact(
        path=folders["prune"] / "unpruned.onnx",
        files=(folders["prune"] / "unpruned.onnx",),
        format="onnx",
        scheme="int8",
        sha256={},
        size_bytes=1000,
        coverage=QuantCoverage(mac_ops=2, int8_mac_ops=2),
        inputs=(),
        outputs=(),
    )
    budgeting._store(
        folders["prune"], {}, budgeting.Selection(widths=(8,), search={"kind": "size"}, unpruned=unpruned)
    )
    path = folders[f"export-{ORT}"] / "model.onnx"
    artifact = dataclasses.replace(unpruned, path=path, files=(path,), size_bytes=final)
    (path.parent / "artifact.json").write_text(json.dumps(records.encode(artifact, path.parent)))
    recipe = Recipe.model_validate(
        {
            "targets": [ORT],
            "task": {"data": "builtin:digits"},
            "model": {"source": "builtin:digitsnet"},
            "prune": {"budget": budget},
        }
    )
    return RunInputs(recipe, folder, folders)


@pytest.mark.parametrize(
    ("final", "told"),
    [
        (500, []),
        (
            520,
            [
                "prune.budget.size = 0.5 is missed: the final file on cpu-onnxruntime has 0.520 of the unpruned "
                "network's size"
            ],
        ),
    ],
)
def test_a_size_budget_is_verified_on_the_final_file(tmp_path: Path, final: int, told: list[str]):
    run = run_of(tmp_path, budget={"size": 0.5}, final=final)
    results = budgets.against_unpruned(run, target.load(ORT), progress=silent)
    assert results["against_unpruned"]["ratio"] == final / 1000
    assert budgets.missed(run, {f"measure-{ORT}": {"results": results}}.__getitem__) == told
    assert budgets.against_unpruned(run, target.load("cpu-litert"), progress=silent) == {}


def test_a_latency_is_missed_if_its_interval_is_above_the_budget(tmp_path: Path):
    run = run_of(tmp_path, budget={"latency": 0.5}, final=1)

    def missed(low: float | None) -> list[str]:
        ratio = {"ratio": 0.52, "low": low, "high": 0.55}
        return budgets.missed(run, lambda _: {"results": {"against_unpruned": ratio}})

    assert missed(0.49) == []
    assert "has 0.520 [0.510, 0.550] of the unpruned network's latency" in missed(0.51)[0]
    assert len(missed(None)) == 1, "an estimate has no interval"
    assert budgets.missed(run, lambda _: {}) == [], "a report from before sizes were compared"


def test_a_budget_of_macs_needs_no_file(tmp_path: Path):
    run = run_of(tmp_path, budget={"macs": 0.5}, final=1000)
    assert budgets.against_unpruned(run, target.load(ORT), progress=silent) == {}
    assert budgets.missed(run, lambda _: {}) == []
