"""The worker: a process with one runtime and one model file in it, driven by JSON lines.

Runs as ``__main__`` of a zipapp beside ``runtimes/``; needs the standard library, numpy and that runtime. One
request per line on stdin, one reply per line on stdout; arrays travel as .npy files named by path:

    {"do": "open", "runtime": "onnxruntime", "path": ..., "device": ..., "threads": 1, "options": {},
     "inputs": [{...}], "outputs": [{...}]}                  -> {"ok": true, "load_ms": ...}
    {"do": "predict", "inputs": "x.npy", "outputs": "y.npy"} -> {"ok": true}
    {"do": "time", "inputs": "x.npy", "min_runs": 30, "min_seconds": 0.3}
                                                 -> {"ok": true, "first_ms", "samples_ms", "peak_rss_bytes"}
    {"do": "describe"}                                       -> {"ok": true, "report": {...}}

A failure that the runtime reports is {"ok": false, "kind": "RuntimeError", "error": "..."}; anything else
ends the process with a traceback on stderr, which the other side shows. End of input ends the worker.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Reply = dict[str, Any]
WARM_UP_RUNS = 5
WARM_UP_SHARE = 0.1


class Worker:
    """Answers requests; holds the one adapter."""

    def __init__(self) -> None:
        self._adapter: Any = None

    def answer(self, request: dict[str, Any]) -> Reply:
        """Carry out one request and return its reply."""
        do: dict[str, Callable[..., Reply]] = {
            "open": self._open,
            "predict": self._predict,
            "time": self._time,
            "describe": self._describe,
        }
        arguments = {key: value for key, value in request.items() if key != "do"}
        try:
            return {"ok": True, **do[request["do"]](**arguments)}
        except (RuntimeError, ValueError, TypeError, OSError, ImportError) as error:
            return {"ok": False, "kind": type(error).__name__, "error": str(error)}

    def _open(self, *, runtime: str, path: str, **settings: Any) -> Reply:
        module = importlib.import_module(f"runtimes.{runtime}")
        start = time.perf_counter_ns()
        self._adapter = module.Adapter(path, **settings)
        return {"load_ms": _since_ms(start)}

    def _predict(self, *, inputs: str, outputs: str) -> Reply:
        np.save(outputs, self._adapter.run(np.load(inputs, mmap_mode="r")))
        return {}

    def _describe(self) -> Reply:
        return {"report": self._adapter.describe()}

    def _time(self, *, inputs: str, min_runs: int, min_seconds: float) -> Reply:
        """Time single inferences on the inputs in turn: the first, a warm-up, and the steady ones."""
        samples: npt.NDArray[Any] = np.load(inputs, mmap_mode="r")
        first_ms = self._invoke_ms(samples, 0)
        self._repeat(samples, WARM_UP_RUNS, WARM_UP_SHARE * min_seconds)
        steady = self._repeat(samples, min_runs, min_seconds)
        return {"first_ms": first_ms, "samples_ms": steady, "peak_rss_bytes": peak_rss_bytes()}

    def _repeat(self, samples: npt.NDArray[Any], min_runs: int, min_seconds: float) -> list[float]:
        """Return the times of at least `min_runs` runs and `min_seconds`, with their preparation."""
        times: list[float] = []
        end = time.perf_counter() + min_seconds
        while len(times) < min_runs or time.perf_counter() < end:
            times.append(self._invoke_ms(samples, len(times)))
        return times

    def _invoke_ms(self, samples: npt.NDArray[Any], i: int) -> float:
        self._adapter.prepare(samples[i % len(samples)][None])
        start = time.perf_counter_ns()
        self._adapter.invoke()
        return _since_ms(start)


def _since_ms(start_ns: int) -> float:
    return (time.perf_counter_ns() - start_ns) / 1e6


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Linux carries `ru_maxrss` over fork and exec, so a worker started by a big process would report that one's
    memory; the high-water mark in /proc belongs to this program alone.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Answer requests until the input ends."""
    # The parent decides what Ctrl-C means; it reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Runtimes write to file descriptor 1 at will: replies get a private copy, everything else goes to stderr.
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        worker = Worker()
        for line in sys.stdin:
            replies.write(json.dumps(worker.answer(json.loads(line))) + "\n")
            replies.flush()
    os._exit(0)  # without the runtimes' slow and sometimes crashing shutdown


if __name__ == "__main__":
    main()
