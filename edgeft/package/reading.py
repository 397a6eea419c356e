"""Read a package back into the records that it was written from; needs no torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeft import preprocessing as preprocessings
from edgeft import schema
from edgeft.errors import ConfigError, PackageError, VerificationError
from edgeft.package import archive
from edgeft.package.layout import GOLDEN, LABELS, MANIFEST, PREPROCESS
from edgeft.package.verification import check_contents, opened, refuse_newer
from edgeft.preprocessing import ArrayPreprocessing, Preprocessing
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, FloatArray, InputArray, QuantCoverage, TensorSpec

_HEADER_BYTES = 4096
"""More than the header of an .npy file takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package whose files are as they were written.

    `source` is what was read; `folder` holds its files: the same folder, or a temporary one for an archive, which
    lives as long as this process. `golden_inputs` (n, ...) are preprocessed samples, `golden_outputs` (n, K) the
    target runtime's logits for them, `golden_reference` (n, K) the Q/DQ program's; `lsb` is one step of the logits.
    """

    source: Path
    folder: Path
    manifest: Mapping[str, Any]
    artifact: ExportedArtifact
    profile: TargetProfile
    preprocessing: Preprocessing | ArrayPreprocessing
    """The latter for a file that edgeft did not make."""
    labels: tuple[str, ...]
    golden_inputs: InputArray
    golden_outputs: FloatArray
    golden_reference: FloatArray
    lsb: float


def read(path: Path | str) -> Package:
    """Read a package, a folder or an archive, after checking that every byte of it is as it was written.

    Raises:
        PackageError: There is no package at `path`, or one of a newer schema.
        VerificationError: A file is damaged, missing, too many or not what the manifest says of it.
    """
    path = Path(path)
    folder = opened(path)
    failed, problems = check_contents(folder)
    refuse_newer(path, failed)
    if problems:
        raise VerificationError(
            f"{path}: " + "; ".join(problems), "write the package again, or copy it again"
        )
    try:
        return _read(path, folder)
    except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile, ConfigError) as error:
        text = error.message if isinstance(error, ConfigError) else repr(error)
        raise VerificationError(
            f"{path}: its files do not fit together: {text}",
            "another version of edgeft may have written it (manifest.json, versions.edgeft)",
        ) from error


def pack(folder: Path, path: Path | None = None) -> Path:
    """Make one archive of a package, after checking that every byte of it is as it was written.

    Args:
        folder: The package.
        path: The archive; by default a .zip beside the folder, named like it.

    Returns:
        `path`.

    Raises:
        PackageError: There is no package at `folder`, or it is an archive already.
        VerificationError: The package is damaged.
        WorkspaceError: The archive cannot be written.
    """
    if folder.is_file():
        raise PackageError(f"{folder}: a file; only the folder of a package can be packed")
    read(folder)
    folder = folder.resolve()  # of "." the name would be empty
    path = path or folder.with_name(folder.name + archive.SUFFIX)
    if path.resolve().parent == folder:
        raise PackageError(
            f"{path}: inside of the package",
            "an archive in there would be a file too many: choose another place",
        )
    return archive.write_archive(folder, path)


def _read(path: Path, folder: Path) -> Package:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    labels = tuple((folder / LABELS).read_text(encoding="utf-8").splitlines())
    preprocessing = _preprocessing(folder)
    golden = _golden(folder, manifest, preprocessing, len(labels))
    return Package(
        source=path,
        folder=folder,
        manifest=manifest,
        artifact=_artifact(folder, manifest),
        profile=schema.validate(manifest["profile"], TargetProfile, f"{path}: {MANIFEST}: profile"),
        preprocessing=preprocessing,
        labels=labels,
        golden_inputs=golden["inputs"],
        golden_outputs=golden["outputs"],
        golden_reference=golden["reference"],
        lsb=float(manifest["tolerance"]["lsb"]),
    )


def _artifact(folder: Path, manifest: Mapping[str, Any]) -> ExportedArtifact:
    model = manifest["model"]
    coverage = model["coverage"]
    unknown = {model["path"], *model["files"]} - manifest["files"].keys()
    if unknown:
        raise ValueError(f"model files {sorted(unknown)} are not among the package's")
    return ExportedArtifact(
        path=folder / model["path"],
        files=tuple(folder / name for name in model["files"]),
        format=model["format"],
        scheme=model["scheme"],
        sha256={name: manifest["files"][name] for name in model["files"]},
        size_bytes=model["size_bytes"],
        coverage=QuantCoverage(
            mac_ops=coverage["mac_ops"],
            int8_mac_ops=coverage["int8_mac_ops"],
            float_ops=tuple(coverage["float_ops"]),
            float_islands=tuple(coverage["float_islands"]),
        ),
        inputs=tuple(_spec(data) for data in manifest["inputs"]),
        outputs=tuple(_spec(data) for data in manifest["outputs"]),
        deviations=tuple(model["deviations"]),
    )


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**{**data, "shape": tuple(data["shape"])})


def _preprocessing(folder: Path) -> Preprocessing | ArrayPreprocessing:
    stored = json.loads((folder / PREPROCESS).read_text(encoding="utf-8"))
    settings = stored[stored["kind"]]
    if stored["kind"] == ArrayPreprocessing.kind:
        return ArrayPreprocessing.from_dict(settings)
    name = settings.get("tokenizer")
    if name is not None and Path(name).name != name:
        raise ValueError(f"{PREPROCESS}: tokenizer {name!r} is outside of the package")
    files = {name: (folder / name).read_bytes().decode()} if name else {}
    return preprocessings.from_dict(settings, files)


def _golden(
    folder: Path,
    manifest: Mapping[str, Any],
    preprocessing: Preprocessing | ArrayPreprocessing,
    classes: int,
) -> dict[str, Any]:
    """Return the golden arrays, none of which is read before its size is known to be what it should."""
    samples = manifest["golden"]["samples"]
    shapes = {
        "inputs": (samples, *preprocessing.input_shape),
        "outputs": (samples, classes),
        "reference": (samples, classes),
    }
    arrays = {}
    with zipfile.ZipFile(folder / GOLDEN) as stored, np.load(folder / GOLDEN) as golden:
        for name, shape in shapes.items():
            if stored.getinfo(f"{name}.npy").file_size > 4 * int(np.prod(shape)) + _HEADER_BYTES:
                raise ValueError(f"{GOLDEN}: {name} is larger than {shape}")
            arrays[name] = golden[name]
            if arrays[name].shape != shape:
                raise ValueError(f"{GOLDEN}: {name} has shape {arrays[name].shape}, not {shape}")
    return arrays
