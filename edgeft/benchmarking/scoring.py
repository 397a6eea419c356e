"""Accuracy of a package on labelled data, through its own runtime and on all cores."""

from __future__ import annotations

import numpy as np

from edgeft import measure
from edgeft.benchmarking import labelled
from edgeft.errors import MeasurementError
from edgeft.package import Package
from edgeft.types import AccuracyResult, InputArray, Progress, RuntimeReport, Samples, silent


def score(
    package: Package, samples: Samples, *, workers: int | None = None, progress: Progress = silent
) -> tuple[AccuracyResult, RuntimeReport]:
    """Run a package's model over labelled samples.

    Several fresh worker processes run at once, and each takes chunks of samples. Within a worker, samples go
    through the model one at a time, as on the device: results do not depend on the number of workers, and equal
    those of the run that made the package bit for bit.

    Args:
        package: What `edgeft.package.read` returned.
        samples: What `edgeft.benchmarking.labelled.read` or `select` returned for it.
        workers: Processes at a time; by default as many as fit the cores of the profile's host with its threads each,
            and one on anything but a CPU.
        progress: Told how far it is, in samples.

    Returns:
        The accuracy, sample by sample, and what the runtime said of itself.

    Raises:
        DataError: A sample cannot be decoded.
        MeasurementError: An output is not finite or has another shape than the labels, or a worker failed.
        MissingDependencyError: The runtime is not installed.
    """

    def read(chunk: range) -> InputArray:
        with labelled.plainly():
            return samples.inputs(chunk)

    logits, report = measure.predict_on_all_cores(
        package.artifact, package.profile, read, len(samples), workers=workers, progress=progress
    )
    if logits.shape != (len(samples), len(package.labels)):
        raise MeasurementError(
            f"{package.source}: the model gives outputs of shape {logits.shape[1:]} per sample; "
            f"its labels need ({len(package.labels)},)"
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise MeasurementError(
            f"{package.source}: the outputs for {samples.name(int(bad[0]))} are not finite numbers "
            f"({len(bad)} of {len(samples)} samples)",
            "see whether the sample is what the model was made for; `edgeft verify` checks the package itself",
        )
    return measure.accuracy(logits, samples.labels, samples.ids), report
