"""Accuracy of a package on labelled data, through its own runtime and on all cores."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgeft import measure
from edgeft.benchmarking import labelled
from edgeft.benchmarking.labelled import Columns
from edgeft.errors import MeasurementError
from edgeft.measure.session import Session
from edgeft.package import Package
from edgeft.types import AccuracyResult, FloatArray, Progress, Samples, silent

_CHUNK_BYTES = 32 << 20
"""Inputs handed to a worker at a time: bounds memory and temporary files, whatever the size of the data."""
_CHUNKS_PER_WORKER = 4
"""At least so many, so that none waits long for the last one."""


def score(
    package: Package,
    data: Path,
    *,
    columns: Columns | None = None,
    only: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> AccuracyResult:
    """Run a package's model over labelled samples and return its accuracy, sample by sample.

    Several fresh worker processes run at once, and each takes chunks of samples. Within a worker, samples go
    through the model one at a time, as on the device: results do not depend on the number of workers, and equal
    those of the run that made the package bit for bit.

    Args:
        package: What `edgeft.package.read` returned.
        data: As `edgeft.benchmarking.labelled.read` takes it.
        columns: Names of a table's columns.
        only: Content ids of the samples to score, as `edgeft.benchmarking.labelled.select` takes them; all by default.
        workers: Processes at a time; by default as many as fit the cores of the profile's host with its threads each,
            and one on anything but a CPU.
        progress: Told how far it is, in samples.

    Raises:
        DataError: As `edgeft.benchmarking.labelled.read` and `select`, or a sample cannot be decoded.
        MeasurementError: An output is not finite or has another shape than the labels, or a worker failed.
        MissingDependencyError: The runtime is not installed.
    """
    samples = labelled.read(package, data, columns=columns)
    if only is not None:
        samples = labelled.select(samples, only, str(data))
    return score_samples(package, samples, workers=workers, progress=progress)


def score_samples(
    package: Package, samples: Samples, *, workers: int | None = None, progress: Progress = silent
) -> AccuracyResult:
    """Score a package on samples that `edgeft.benchmarking.labelled` has read; otherwise as `score`."""
    logits = _predict(package, samples, workers or _default_workers(package), progress)
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
    return measure.accuracy(logits, samples.labels, samples.ids)


def _default_workers(package: Package) -> int:
    runtime = package.profile.runtime
    if runtime.device.lower() != "cpu":
        return 1
    cores: int = measure.host_fingerprint(runtime.host)["cores"] or 1
    return max(1, cores // runtime.threads)


def _predict(package: Package, samples: Samples, workers: int, progress: Progress) -> FloatArray:
    """Return the outputs of all samples in their order; reading and decoding happens in this process' threads."""
    total = len(samples)
    size = _chunk_size(package, total, workers)
    chunks = [range(start, min(start + size, total)) for start in range(0, total, size)]
    mine = threading.local()
    sessions: list[Session] = []

    def predict(chunk: range) -> FloatArray:
        with labelled.plainly():
            inputs = samples.inputs(chunk)
        if not hasattr(mine, "session"):
            mine.session = Session(package.artifact, package.profile)
            sessions.append(mine.session)
            mine.session.__enter__()
        outputs: FloatArray = mine.session.predict(inputs)
        return outputs

    def close() -> None:
        for session in sessions:
            session.close()

    with ExitStack() as stack:
        stack.callback(close)  # last, when no thread can open another
        pool = stack.enter_context(ThreadPoolExecutor(min(workers, len(chunks))))
        futures = [pool.submit(predict, chunk) for chunk in chunks]
        try:
            done = 0
            for future in as_completed(futures):
                done += len(future.result())
                progress(f"{package.profile.id}: predicting", done=done, total=total)
        except BaseException:
            # Nothing goes on after a failure or an interrupt: a killed worker ends the wait of its thread.
            pool.shutdown(wait=False, cancel_futures=True)
            close()
            raise
    return np.concatenate([future.result() for future in futures])


def _chunk_size(package: Package, total: int, workers: int) -> int:
    sample_bytes = 4 * int(np.prod(package.preprocessing.input_shape))
    return max(1, min(_CHUNK_BYTES // sample_bytes, -(-total // (workers * _CHUNKS_PER_WORKER))))
