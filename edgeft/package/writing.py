"""Write one target's package: complete or not at all, and the same bytes for the same inputs."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeft.errors import VerificationError, WorkspaceError
from edgeft.package.card import Origin, render
from edgeft.package.firmware import write_firmware
from edgeft.package.layout import (
    CARD,
    DEVICE_FILES,
    GOLDEN,
    LABELS,
    MANIFEST,
    PREPROCESS,
    SCHEMA,
    SUMS,
    canonical_json,
    canonical_sums,
    sha256,
)
from edgeft.preprocessing import ArrayPreprocessing, Preprocessing
from edgeft.target import TargetProfile
from edgeft.types import (
    AccuracyResult,
    BudgetResult,
    CompilerEstimate,
    Evidence,
    ExportedArtifact,
    FloatArray,
    InputArray,
    LatencyResult,
    MemoryResult,
    RuntimeReport,
    TargetResult,
)

MAX_LSB: Final = 2.0
"""How far a device's logits may be from the golden ones, in LSB: what every runtime is held to (parity)."""

_UNKNOWN: Final = Origin()


def write(
    folder: Path,
    *,
    result: TargetResult,
    profile: TargetProfile,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    golden_inputs: InputArray,
    golden_outputs: FloatArray,
    reference_outputs: FloatArray,
    lsb: float,
    recipe_hash: str,
    data_fingerprint: str,
    versions: Mapping[str, str],
    host: Mapping[str, Any],
    origin: Origin = _UNKNOWN,
    float_layers: Sequence[str] = (),
) -> Path:
    """Write one target's package; it appears complete or not at all, and replaces an older one.

    Args:
        folder: The package itself, e.g. ``runs/flowers/packages/cpu-litert``.
        result: What was exported and measured.
        profile: The target, for its runtime settings and ISA floor.
        preprocessing: How a sample becomes an input.
        labels: Class names in the order of the logits.
        golden_inputs: Preprocessed samples (n, ...).
        golden_outputs: Logits (n, K) that the target's runtime gave for them.
        reference_outputs: Logits (n, K) of the Q/DQ program (or the float model) for them.
        lsb: One quantization step of the logits, the unit of the tolerance; above 0.
        recipe_hash: Hash of the effective recipe.
        data_fingerprint: Fingerprint of the data set.
        versions: Package name -> version of what made it.
        host: Fingerprint of the host that it was measured on.
        origin: Where the model came from, for the model card.
        float_layers: Layers that are in float on purpose: a gate does not miss them.

    Returns:
        `folder`.

    Raises:
        VerificationError: Golden vectors or labels that do not fit the model, or a model file that changed
            since it was exported.
        ExportError: A file for a microcontroller with operators that TensorFlow Lite Micro does not come with.
        WorkspaceError: The folder cannot be written.
    """
    with appearing(folder) as partial:
        firmware = write_contents(
            partial,
            artifact=result.artifact,
            profile=profile,
            preprocessing=preprocessing,
            labels=labels,
            golden={"inputs": golden_inputs, "outputs": golden_outputs, "reference": reference_outputs},
            lsb=lsb,
            memory=result.memory,
            estimate=result.estimate,
        )
        card = render(
            result,
            profile=profile,
            preprocessing=preprocessing,
            labels=labels,
            origin=origin,
            data_fingerprint=data_fingerprint,
            versions=versions,
            host=host,
        )
        write_text(partial / CARD, card)
        manifest = {
            **describe(result.artifact, profile, result.runtime, result.evidence, lsb),
            "float_layers": list(float_layers),
            "metrics": _metrics(result),
            "name": origin.name,
            "recipe_hash": recipe_hash,
            "data_fingerprint": data_fingerprint,
            "golden": {"samples": len(golden_inputs), "classes": len(labels)},
            "firmware": firmware,
            "versions": dict(versions),
            "host": dict(host),
        }
        seal(partial, manifest)
    return folder


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `folder` at the end, complete or not at all, in place of an older one.

    Raises:
        WorkspaceError: It cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    try:
        for leftover in (partial, replaced):  # of a run that was killed here
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        if replaced.exists():
            shutil.rmtree(replaced)
    except OSError as error:
        raise WorkspaceError(f"{folder}: the package cannot be written ({error})") from error


def write_contents(
    folder: Path,
    *,
    artifact: ExportedArtifact,
    profile: TargetProfile,
    preprocessing: Preprocessing | ArrayPreprocessing,
    labels: Sequence[str],
    golden: Mapping[str, InputArray],
    lsb: float,
    memory: MemoryResult | None,
    estimate: CompilerEstimate | None,
) -> dict[str, Any] | None:
    """Write everything but the card and what seals a package; return what the manifest says of its C++ sources.

    `golden` has the arrays ``inputs``, ``outputs`` and ``reference``.

    Raises:
        VerificationError: Golden vectors or labels that do not fit, or a model file that changed.
        ExportError: As `firmware.write_firmware`.
    """
    _check_golden(golden, preprocessing, labels, lsb)
    _copy_model(artifact, folder)
    for name in ("example.py", "verify.py"):
        shutil.copyfile(DEVICE_FILES / name, folder / name)
    write_text(folder / LABELS, "".join(f"{label}\n" for label in labels))
    write_text(folder / PREPROCESS, canonical_json(_preprocess(preprocessing, artifact)))
    for name, text in preprocessing.files().items():
        write_text(folder / name, text)
    _write_npz(folder / GOLDEN, **golden)
    if profile.kind not in ("mcu", "npu") or memory is None:
        return None
    return write_firmware(
        folder, profile=profile, artifact=artifact, memory_result=memory, estimate=estimate, labels=labels
    )


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with the hash of every file, and `SHA256SUMS` over them all and the manifest."""
    files = {path.name: sha256(path) for path in folder.iterdir()}
    write_text(folder / MANIFEST, canonical_json({**manifest, "files": files}))
    write_text(folder / SUMS, canonical_sums({**files, MANIFEST: sha256(folder / MANIFEST)}))


def _check_golden(
    golden: Mapping[str, InputArray],
    preprocessing: Preprocessing | ArrayPreprocessing,
    labels: Sequence[str],
    lsb: float,
) -> None:
    inputs, outputs, reference = golden["inputs"], golden["outputs"], golden["reference"]
    wanted = (len(inputs), len(labels))
    if len(inputs) == 0 or inputs.shape[1:] != preprocessing.input_shape:
        raise VerificationError(
            f"golden inputs: got shape {inputs.shape}, expected at least one of {preprocessing.input_shape}"
        )
    for name, array in (("outputs", outputs), ("reference", reference)):
        if array.shape != wanted or not np.isfinite(array).all():
            raise VerificationError(
                f"golden {name}: got shape {array.shape}, expected {wanted} and finite numbers"
            )
    if not lsb > 0:
        raise VerificationError(f"golden vectors: one LSB must be above 0, got {lsb}")
    bad = next((label for label in labels if label.splitlines() != [label]), None)
    if bad is not None:
        raise VerificationError(f"label {bad!r} cannot be one line of labels.txt", "rename the class")


def _copy_model(artifact: ExportedArtifact, folder: Path) -> None:
    for source in artifact.files:
        copy = folder / source.name
        shutil.copyfile(source, copy)
        expected = artifact.sha256.get(source.name)
        if sha256(copy) != expected:
            raise VerificationError(
                f"{source}: its bytes differ from those that were exported and measured (sha256 {expected})",
                "run the export again",
            )


def _preprocess(
    preprocessing: Preprocessing | ArrayPreprocessing, artifact: ExportedArtifact
) -> dict[str, Any]:
    tensor = dataclasses.asdict(artifact.inputs[0])
    return {
        "schema": SCHEMA,
        "kind": preprocessing.kind,
        preprocessing.kind: preprocessing.to_dict(),
        "tensor": tensor,
    }


def describe(
    artifact: ExportedArtifact, profile: TargetProfile, report: RuntimeReport, evidence: Evidence, lsb: float
) -> dict[str, Any]:
    """Return what a manifest says of the model and where it runs."""
    runtime = profile.runtime
    # Where a board was reached from is nobody else's business and means nothing elsewhere.
    whole_profile = profile.model_dump(mode="json", by_alias=True, exclude={"runtime": {"host"}})
    return {
        "schema": SCHEMA,
        "kind": "edgeft-package",
        "target": {"id": profile.id, "title": profile.title, "kind": profile.kind},
        "profile": whole_profile,
        "evidence": evidence,
        "model": {
            "path": artifact.path.name,
            "files": [path.name for path in artifact.files],
            "format": artifact.format,
            "scheme": artifact.scheme,
            "size_bytes": artifact.size_bytes,
            "coverage": {**dataclasses.asdict(artifact.coverage), "ratio": artifact.coverage.ratio},
            "deviations": list(artifact.deviations),
        },
        "inputs": [dataclasses.asdict(spec) for spec in artifact.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in artifact.outputs],
        "runtime": {
            "name": runtime.name,
            "version": report.version,
            "device": runtime.device,
            "threads": runtime.threads,
            "options": runtime.options,
            # As it was executed where it was measured, read back from the compiled file.
            "mac_precision": dict(report.mac_precision),
            **({"arena_bytes": report.details["arena_bytes"]} if runtime.name == "tflm" else {}),
        },
        "isa_floor": profile.isa_floor if artifact.scheme in ("int8", "int8-dynamic") else [],
        "tolerance": {"lsb": float(lsb), "max_lsb": MAX_LSB},
    }


def _metrics(result: TargetResult) -> dict[str, Any]:
    return {
        "accuracy": _accuracy(result.accuracy),
        "float_accuracy": _accuracy(result.baseline_accuracy),
        "parity": dataclasses.asdict(result.parity),
        "latency": _latency(result.latency),
        "float_latency": _latency(result.baseline_latency),
        "latency_ratio": dataclasses.asdict(result.ratio) if result.ratio else None,
        **costs(result.memory, result.estimate, result.budgets),
    }


def costs(
    memory: MemoryResult | None, estimate: CompilerEstimate | None, budgets: Sequence[BudgetResult]
) -> dict[str, Any]:
    """Return what a manifest says of the device's memory, the compiler's estimate and the profile's budgets."""
    return {
        "estimate": _estimate(estimate),
        "memory": dataclasses.asdict(memory) if memory else None,
        "budgets": [dataclasses.asdict(budget) for budget in budgets],
    }


def _accuracy(result: AccuracyResult) -> dict[str, Any]:
    return {"value": result.accuracy, "low": result.low, "high": result.high, "samples": len(result.ids)}


def _latency(result: LatencyResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    percentiles = {f"p{q}_ms": result.percentile(q) for q in (50, 90, 99)}
    return {"setting": result.label, "evidence": result.evidence, "threads": result.threads, **percentiles}


def _estimate(estimate: CompilerEstimate | None) -> dict[str, Any] | None:
    """Return a compiler's estimate without its table of layers, which the run's report has."""
    if estimate is None:
        return None
    kept = dataclasses.asdict(dataclasses.replace(estimate, file=None, layers=()))
    return {**{key: kept[key] for key in kept if key not in ("file", "layers")}, "source": estimate.source}


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the line ends that the text has, on every system."""
    path.write_text(text, encoding="utf-8", newline="")


def _write_npz(path: Path, **arrays: InputArray) -> None:
    """Write arrays as `numpy.savez_compressed` does, without the time of day: equal bytes every time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in sorted(arrays.items()):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
