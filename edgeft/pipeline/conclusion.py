"""The end of a run: packages that are verified, and a report that says how everything came about."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeft
from edgeft import extras, measure, package, reporting
from edgeft.errors import WorkspaceError
from edgeft.pipeline.sensitivity import stored_layers
from edgeft.preprocessing import Preprocessing
from edgeft.recipe import Recipe
from edgeft.target import TargetProfile
from edgeft.types import Progress, StepRecord, TargetResult, Verdict, silent

_VERSIONS = (
    *("numpy", "torch", "torchao", "torch_pruning", "lightning", "timm", "torchvision"),
    *("onnx", "onnxscript", "onnxruntime", "openvino", "litert_torch", "ai_edge_litert"),
    *("tflite_micro", "ethosu", "onnxruntime_qnn"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What packages and report say about the run besides its measurements.

    `folders` maps finished stages to their folders, `data` is the data stage's results, `network` the key of the stage
    that made the float network.
    """

    recipe: Recipe
    workspace: Path
    preprocessing: Preprocessing
    profiles: Sequence[TargetProfile]
    folders: Mapping[str, Path]
    data: Mapping[str, Any]
    network: str

    @property
    def recipe_hash(self) -> str:
        """SHA-256 of the effective recipe."""
        return hashlib.sha256(self.recipe.to_toml().encode()).hexdigest()

    def results(self, stage: str) -> dict[str, Any]:
        """Return what a stage stored about itself; empty if it did not run."""
        folder = self.folders.get(stage)
        return _read(folder / "results.json") if folder else {}


def write_packages(
    facts: Facts,
    results: Sequence[TargetResult],
    *,
    float_layers: Mapping[str, Sequence[str]],
    progress: Progress = silent,
) -> None:
    """Write `packages/<target>/` for every result and verify each in a fresh process.

    Packages of targets that the recipe no longer names are removed. `float_layers` are those that are in float on
    purpose, by target.

    Raises:
        VerificationError: A package does not reproduce its golden vectors.
        WorkspaceError: The folder cannot be written.
    """
    root = facts.workspace / "packages"
    for profile, result in zip(facts.profiles, results, strict=True):
        progress(f"package for {profile.id}")
        folder = facts.folders[f"measure-{profile.id}"]
        with np.load(folder / "golden.npz") as golden:
            written = package.write(
                root / profile.id,
                result=result,
                profile=profile,
                preprocessing=facts.preprocessing,
                labels=facts.data["classes"],
                golden_inputs=golden["inputs"],
                golden_outputs=golden["outputs"],
                reference_outputs=golden["reference"],
                lsb=_read(folder / "results.json")["lsb"],
                recipe_hash=facts.recipe_hash,
                data_fingerprint=facts.data["fingerprint"],
                versions={"edgeft": edgeft.__version__, **extras.versions(*_VERSIONS)},
                host=result.runtime.details.get("host") or measure.host_fingerprint(),
                origin=_origin(facts),
                float_layers=float_layers[profile.id],
            )
        package.verify(written).require()
    current = {profile.id for profile in facts.profiles}  # a recipe may name a target by the path of its file
    for folder in root.iterdir():
        if folder.name not in current and folder.is_dir():
            shutil.rmtree(folder)


def write_report(facts: Facts, results: Sequence[TargetResult], verdict: Verdict) -> dict[str, Any]:
    """Write report.json and report.html into the workspace and return the report."""
    finetuned, pruned = facts.results("finetune"), facts.results("prune")
    plan = pruned.get("results", {}).get("plan", {})
    tuned = finetuned["results"]
    profiles = {profile.id: profile for profile in facts.profiles}
    report = reporting.build(
        name=facts.recipe.name,
        recipe=facts.recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
        recipe_hash=facts.recipe_hash,
        data={
            "source": facts.recipe.task.data,
            **facts.data,
            "preprocessing": facts.preprocessing.to_dict(),
        },
        model={
            "source": facts.recipe.model.source,
            "weights": facts.recipe.model.weights or "",
            "macs": {"before": tuned["macs"], "after": plan.get("macs_after", tuned["macs"])},
            "params": {
                "before": tuned["parameters"],
                "after": pruned.get("results", {}).get("parameters", tuned["parameters"]),
            },
            "float_accuracy": {
                "val": tuned["val_accuracy"],
                "test": results[0].baseline_accuracy.accuracy,
            },
        },
        stages=_stage_records(facts),
        targets=results,
        profiles=profiles,
        verdict=verdict,
        host=measure.host_fingerprint(),
        versions={"edgeft": edgeft.__version__, **extras.versions(*_VERSIONS)},
        notes=[f"left out: {name}" for name in facts.data["skipped"]],
    )
    reporting.write_json(report, facts.workspace / "report.json")
    reporting.write_html(report, facts.workspace / "report.html")
    return report


def _origin(facts: Facts) -> package.Origin:
    """Return what the model card says of the way that the model came about."""
    recipe, steps, notes = facts.recipe, [], []
    if recipe.finetune:
        steps.append(f"trained by {recipe.finetune.method!r}")
    if plan := facts.results("prune").get("results", {}).get("plan"):
        steps.append(f"pruned: {plan['macs_after']:,} of {plan['macs_before']:,} multiply-accumulates remain")
    if recipe.quantize:
        steps.append(f"quantized to {recipe.quantize.scheme} by {recipe.quantize.method!r}")
    if skipped := facts.data["skipped"]:
        notes.append(f"{len(skipped)} samples could not be read and were left out.")
    if leaks := facts.data["leaks"]:
        notes.append(f"{len(leaks)} test samples are also among the training or validation samples.")
    return package.Origin(
        name=recipe.name,
        model=recipe.model.source,
        data=recipe.task.data,
        counts=facts.data["counts"],
        steps=steps,
        notes=notes,
    )


def _stage_records(facts: Facts) -> list[StepRecord]:
    """Return a record of every stage, with the time of all attempts where a run was interrupted."""
    records = []
    for name, folder in facts.folders.items():
        stored, meta = _read(folder / "results.json"), _read(folder / "meta.json")
        is_record = {"config", "seed", "versions"} <= stored.keys()
        if name.startswith("quantize") and not stored["results"].get("sensitivity"):
            stored["results"]["sensitivity"] = stored_layers(facts.workspace, name, facts.network)
        records.append(
            StepRecord(
                name=name,
                config=stored["config"] if is_record else meta["inputs"].get("config", {}),
                seed=stored["seed"] if is_record else facts.recipe.seed,
                seconds=meta["seconds"],
                versions=stored["versions"] if is_record else meta["inputs"].get("versions", {}),
                results=stored["results"] if is_record else stored,
            )
        )
    return records


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(
            f"{path} cannot be read: {error}", "run `edgeft clean --all` and start again"
        ) from error
    return content
