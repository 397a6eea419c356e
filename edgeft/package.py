"""The device package: the model file, everything a device needs to use it, and the proof that it works.

A package is a plain folder (DESIGN: section 8)::

    <model file(s)>  manifest.json  labels.txt  preprocess.json  golden.npz  example.py  verify.py  SHA256SUMS

`example.py` and `verify.py` are the files of `edgeft/device/`, copied as they are: they read everything about
the model from the manifest, and on a device they need numpy and the one runtime only. That folder is data to
this package and is never imported from here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft.errors import VerificationError, WorkspaceError
from edgeft.preprocessing import Preprocessing
from edgeft.target import TargetProfile
from edgeft.types import AccuracyResult, FloatArray, InputArray, LatencyResult, TargetResult

SCHEMA = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

MAX_LSB = 2.0
"""How far a device's logits may be from the golden ones, in LSB: what every runtime is held to (parity)."""

_DEVICE_FILES = Path(__file__).resolve().parent / "device"
_VERIFY_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What checking a package found out.

    `figures` are those of the golden vectors: ``samples``, ``max_lsb`` and ``mean_lsb`` from the packaged
    outputs, ``program_max_lsb`` from the Q/DQ program's, ``agreement`` of the top class (0..1). They are
    absent if an earlier check failed, because a damaged or unfit model is not run.
    """

    folder: Path
    problems: tuple[str, ...]
    figures: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require(self) -> None:
        """Raise `VerificationError` if something is wrong."""
        if self.problems:
            raise VerificationError(
                f"{self.folder}: " + "; ".join(self.problems), "write the package again, or copy it again"
            )


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

    Returns:
        `folder`.

    Raises:
        VerificationError: Golden vectors or labels that do not fit the model, or a model file that changed
            since it was exported.
        WorkspaceError: The folder cannot be written.
    """
    _check_golden(golden_inputs, golden_outputs, reference_outputs, preprocessing, labels, lsb)
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    try:
        for leftover in (partial, replaced):  # of a run that was killed here
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        _copy_model(result, partial)
        for name in ("example.py", "verify.py"):
            shutil.copyfile(_DEVICE_FILES / name, partial / name)
        (partial / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        _write_json(partial / "preprocess.json", _preprocess(preprocessing, result))
        for name, text in preprocessing.files().items():
            (partial / name).write_text(text, encoding="utf-8")
        _write_npz(
            partial / "golden.npz", inputs=golden_inputs, outputs=golden_outputs, reference=reference_outputs
        )
        origin = {"recipe_hash": recipe_hash, "data_fingerprint": data_fingerprint}
        made = {**origin, "versions": dict(versions), "host": dict(host)}
        files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        _write_json(partial / MANIFEST, {**_manifest(result, profile, lsb), **made, "files": files})
        sums = {**files, MANIFEST: _sha256(partial / MANIFEST)}
        (partial / SUMS).write_text(
            "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8"
        )
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        if replaced.exists():
            shutil.rmtree(replaced)
    except OSError as error:
        raise WorkspaceError(f"{folder}: the package cannot be written ({error})") from error
    return folder


def verify(folder: Path) -> Verification:
    """Check a package in a fresh process: hashes, ISA floor, golden vectors through its runtime.

    The check is this installation's own `verify.py`; the one in the folder is among what is checked.

    Raises:
        VerificationError: The folder is not a package, or the check could not be carried out.
    """
    if not (folder / SUMS).is_file():
        raise VerificationError(
            f"{folder}: not a package (no {SUMS} in it)",
            "give the folder of one target, e.g. runs/NAME/packages/TARGET",
        )
    command = [sys.executable, str(_DEVICE_FILES / "verify.py"), str(folder), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERIFY_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise VerificationError(f"{folder}: the model did not answer within {_VERIFY_SECONDS} s") from error
    try:
        # A runtime may print lines of its own before the answer.
        answer = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except json.JSONDecodeError as error:
        tail = " ".join(done.stderr.strip().splitlines()[-3:])
        raise VerificationError(
            f"{folder}: the check died with exit code {done.returncode}: {tail}",
            "the files are as they were written; the runtime of this host cannot run them",
        ) from error
    return Verification(folder=folder, problems=tuple(answer["problems"]), figures=answer["figures"])


def _check_golden(
    inputs: InputArray,
    outputs: FloatArray,
    reference: FloatArray,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    lsb: float,
) -> None:
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


def _copy_model(result: TargetResult, folder: Path) -> None:
    for source in result.artifact.files:
        copy = folder / source.name
        shutil.copyfile(source, copy)
        expected = result.artifact.sha256.get(source.name)
        if _sha256(copy) != expected:
            raise VerificationError(
                f"{source}: its bytes differ from those that were exported and measured (sha256 {expected})",
                "run the export again",
            )


def _preprocess(preprocessing: Preprocessing, result: TargetResult) -> dict[str, Any]:
    tensor = dataclasses.asdict(result.artifact.inputs[0])
    return {
        "schema": SCHEMA,
        "kind": preprocessing.kind,
        preprocessing.kind: preprocessing.to_dict(),
        "tensor": tensor,
    }


def _manifest(result: TargetResult, profile: TargetProfile, lsb: float) -> dict[str, Any]:
    artifact, runtime = result.artifact, profile.runtime
    return {
        "schema": SCHEMA,
        "kind": "edgeft-package",
        "target": {"id": profile.id, "title": profile.title, "kind": profile.kind},
        "evidence": result.latency.evidence,
        "model": {
            "path": artifact.path.name,
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
            "version": result.latency.runtime.version,
            "device": runtime.device,
            "threads": runtime.threads,
            "options": runtime.options,
        },
        "isa_floor": profile.isa_floor if artifact.scheme in ("int8", "int8-dynamic") else [],
        "tolerance": {"lsb": float(lsb), "max_lsb": MAX_LSB},
        "metrics": {
            "accuracy": _accuracy(result.accuracy),
            "float_accuracy": _accuracy(result.baseline_accuracy),
            "parity": dataclasses.asdict(result.parity),
            "latency": _latency(result.latency),
            "float_latency": _latency(result.baseline_latency),
            "latency_ratio": dataclasses.asdict(result.ratio),
        },
    }


def _accuracy(result: AccuracyResult) -> dict[str, Any]:
    return {"value": result.accuracy, "low": result.low, "high": result.high, "samples": len(result.ids)}


def _latency(result: LatencyResult) -> dict[str, Any]:
    percentiles = {f"p{q}_ms": result.percentile(q) for q in (50, 90, 99)}
    return {"setting": result.label, "evidence": result.evidence, "threads": result.threads, **percentiles}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write canonical JSON: sorted keys, fixed separators, UTF-8, a newline at the end."""
    text = json.dumps(
        data, sort_keys=True, separators=(",", ": "), indent=1, ensure_ascii=False, allow_nan=False
    )
    path.write_text(text + "\n", encoding="utf-8")


def _write_npz(path: Path, **arrays: InputArray) -> None:
    """Write arrays as `numpy.savez_compressed` does, without the time of day: equal bytes every time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in sorted(arrays.items()):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
