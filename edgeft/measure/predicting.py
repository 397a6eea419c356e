"""Predictions of an exported file on many samples: several worker processes at once, one sample at a time in each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack

import numpy as np

from edgeft.errors import MeasurementError
from edgeft.measure.host import host_fingerprint
from edgeft.measure.session import Session
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, FloatArray, InputArray, Progress, RuntimeReport, silent

_CHUNK_BYTES = 32 << 20
"""Inputs handed to a worker at a time: bounds memory and temporary files, whatever the size of the data."""
_CHUNKS_PER_WORKER = 4
"""At least so many, so that none waits long for the last one."""


def predict_on_all_cores(
    artifact: ExportedArtifact,
    profile: TargetProfile,
    read: Callable[[range], InputArray],
    total: int,
    *,
    workers: int | None = None,
    progress: Progress = silent,
) -> tuple[FloatArray, RuntimeReport]:
    """Run a file over all samples, in their order.

    Within a worker, samples go through the model one at a time, as on the device: results do not depend on the number
    of workers.

    Args:
        artifact: The file.
        profile: Runtime, device, threads and options.
        read: Returns the inputs of a range of samples, one row each; called from several threads at once.
        total: Samples.
        workers: Processes at a time; by default as many as fit the cores of the profile's host with its threads each,
            and one on anything but a CPU.
        progress: Told how far it is, in samples.

    Returns:
        Real-valued logits (N, K) and what the runtime said of itself.

    Raises:
        MissingDependencyError: The runtime is not installed.
        MeasurementError: There are no samples, or a worker or its runtime failed.
    """
    if not total:
        raise MeasurementError(f"target {profile.id}: no inputs to predict")
    workers = workers or _default_workers(profile)
    size = _chunk_size(read(range(1)).nbytes, total, workers)
    chunks = [range(start, min(start + size, total)) for start in range(0, total, size)]
    mine = threading.local()
    sessions: list[Session] = []

    def predict(chunk: range) -> FloatArray:
        inputs = read(chunk)
        if not hasattr(mine, "session"):
            mine.session = Session(artifact, profile)
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
                progress(f"{profile.id}: predicting", done=done, total=total)
        except BaseException:
            # Nothing goes on after a failure or an interrupt: a killed worker ends the wait of its thread.
            pool.shutdown(wait=False, cancel_futures=True)
            close()
            raise
        report = sessions[0].describe()
    return np.concatenate([future.result() for future in futures]), report


def _default_workers(profile: TargetProfile) -> int:
    runtime = profile.runtime
    if runtime.device.lower() != "cpu":
        return 1
    cores: int = host_fingerprint(runtime.host)["cores"] or 1
    return max(1, cores // runtime.threads)


def _chunk_size(sample_bytes: int, total: int, workers: int) -> int:
    return max(1, min(_CHUNK_BYTES // sample_bytes, -(-total // (workers * _CHUNKS_PER_WORKER))))
