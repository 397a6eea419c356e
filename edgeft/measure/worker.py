"""The worker: a process with one runtime and one model file in it, driven by JSON lines.

Runs as ``__main__`` of a zipapp beside ``runtimes/``; needs the standard library, numpy and that runtime. One
request per line on stdin, one reply per line on stdout; arrays travel as .npy files named by path:

    {"do": "devices", "runtime": "onnxruntime"}              -> {"ok": true, "devices": {"cpu": ""}}
    {"do": "signature", "runtime": "onnxruntime", "path": ...} -> {"ok": true, "inputs": [{...}], "outputs": [{...}]}
    {"do": "open", "runtime": "onnxruntime", "path": ..., "device": ..., "threads": 1, "options": {}, "streams": 1,
     "inputs": [{...}], "outputs": [{...}]}                  -> {"ok": true, "load_ms": ...}
    {"do": "predict", "inputs": "x.npy", "outputs": "y.npy"} -> {"ok": true}
    {"do": "time", "inputs": "x.npy", "min_runs": 30, "min_seconds": 0.3, "warm_up_seconds": 0.03}
                                                 -> {"ok": true, "first_ms", "samples_ms", "peak_rss_bytes"}
    {"do": "throughput", ... as "time"}          -> {"ok": true, "runs", "seconds", "samples_ms", "peak_rss_bytes"}
    {"do": "describe"}                                       -> {"ok": true, "report": {...}}

Inputs are one .npy of samples (N, ...), or for files with several inputs an .npz of such arrays in the order of the
inputs. "throughput" runs on every stream of the open file at once; its "samples_ms" has one list per stream.

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
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Reply = dict[str, Any]
Array = npt.NDArray[Any]
WARM_UP_RUNS = 5
WARM_UP_SHARE = 0.1


class Worker:
    """Answers requests; holds the one adapter."""

    def __init__(self) -> None:
        self._adapter: Any = None

    def answer(self, request: dict[str, Any]) -> Reply:
        """Carry out one request and return its reply."""
        do: dict[str, Callable[..., Reply]] = {
            "devices": self._devices,
            "signature": self._signature,
            "open": self._open,
            "predict": self._predict,
            "time": self._time,
            "throughput": self._throughput,
            "describe": self._describe,
        }
        arguments = {key: value for key, value in request.items() if key != "do"}
        try:
            return {"ok": True, **do[request["do"]](**arguments)}
        except (RuntimeError, ValueError, TypeError, OSError, ImportError) as error:
            return {"ok": False, "kind": type(error).__name__, "error": str(error)}

    def _open(self, *, runtime: str, path: str, **settings: Any) -> Reply:
        module = _module(runtime)
        start = time.perf_counter_ns()
        self._adapter = module.Adapter(path, **settings)
        return {"load_ms": _since_ms(start)}

    def _devices(self, *, runtime: str) -> Reply:
        return {"devices": _module(runtime).devices()}

    def _signature(self, *, runtime: str, path: str) -> Reply:
        found: Reply = _module(runtime).signature(path)
        return found

    def _predict(self, *, inputs: str, outputs: str) -> Reply:
        found = self._adapter.run(_read(inputs))
        if outputs.endswith(".npz"):
            np.savez(outputs, *found)
        elif len(found) == 1:
            np.save(outputs, found[0])
        else:
            raise RuntimeError(f"the file has {len(found)} outputs, one is wanted")
        return {}

    def _describe(self) -> Reply:
        return {"report": self._adapter.describe()}

    def _time(
        self, *, inputs: str, min_runs: int, min_seconds: float, warm_up_seconds: float | None = None
    ) -> Reply:
        """Time single inferences on the inputs in turn: the first, a warm-up, and the steady ones."""
        samples = _read(inputs)
        first_ms = self._invoke_ms(samples, 0)
        self._repeat(samples, WARM_UP_RUNS, _warm_up(warm_up_seconds, min_seconds))
        steady = self._repeat(samples, min_runs, min_seconds)
        return {"first_ms": first_ms, "samples_ms": steady, "peak_rss_bytes": peak_rss_bytes()}

    def _repeat(self, samples: Sequence[Array], min_runs: int, min_seconds: float) -> list[float]:
        """Return the times of at least `min_runs` runs and `min_seconds`, with their preparation."""
        times: list[float] = []
        end = time.perf_counter() + min_seconds
        while len(times) < min_runs or time.perf_counter() < end:
            times.append(self._invoke_ms(samples, len(times)))
        return times

    def _invoke_ms(self, samples: Sequence[Array], i: int) -> float:
        lane = self._adapter.lanes[0]
        lane.place(self._adapter.natives(samples, i))
        elapsed_ms: float = lane.invoke_ms()
        return elapsed_ms

    def _throughput(
        self, *, inputs: str, min_runs: int, min_seconds: float, warm_up_seconds: float | None = None
    ) -> Reply:
        """Run all lanes at once; inputs are made ready before, so that this interpreter is little in their way."""
        samples, lanes = _read(inputs), self._adapter.lanes
        ready = [self._adapter.natives(samples, i) for i in range(len(samples[0]))]
        _Race(lanes, ready, WARM_UP_RUNS, _warm_up(warm_up_seconds, min_seconds)).run()
        race = _Race(lanes, ready, -(-min_runs // len(lanes)), min_seconds)
        seconds = race.run()
        runs = sum(map(len, race.samples_ms))
        found = {"runs": runs, "seconds": seconds, "samples_ms": race.samples_ms}
        return {**found, "peak_rss_bytes": peak_rss_bytes()}


class _Race:
    """All lanes running at the same time, each in a thread; runtimes let go of the interpreter's lock meanwhile."""

    def __init__(
        self, lanes: Sequence[Any], feeds: Sequence[list[Array]], min_runs: int, min_seconds: float
    ) -> None:
        self._lanes, self._feeds, self._min_runs, self._min_seconds = lanes, feeds, min_runs, min_seconds
        self._start = threading.Barrier(len(lanes) + 1)
        self.samples_ms: list[list[float]] = [[] for _ in lanes]
        self._errors: list[Exception] = []

    def run(self) -> float:
        """Let every lane take its least runs and seconds; return how long it took until the last was done, in s."""
        threads = [threading.Thread(target=self._lane, args=(n,)) for n in range(len(self._lanes))]
        for thread in threads:
            thread.start()
        self._start.wait()
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        return time.perf_counter() - begin

    def _lane(self, number: int) -> None:
        lane, times, feeds = self._lanes[number], self.samples_ms[number], self._feeds
        self._start.wait()
        try:
            end = time.perf_counter() + self._min_seconds
            while len(times) < self._min_runs or time.perf_counter() < end:
                lane.place(feeds[(number + len(times)) % len(feeds)])
                times.append(lane.invoke_ms())
        except (
            ArithmeticError,
            LookupError,
            MemoryError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            # Raised again by `run`: a lane that ended early would count as a slow one.
            self._errors.append(error)


def _module(runtime: str) -> Any:
    """Return the adapter of a runtime."""
    return importlib.import_module(f"runtimes.{runtime.replace('-', '_')}")


def _read(path: str) -> list[Array]:
    """Return the samples, one array per input of the file."""
    found = np.load(path, mmap_mode="r")
    return [found[name] for name in found.files] if isinstance(found, np.lib.npyio.NpzFile) else [found]


def _warm_up(seconds: float | None, min_seconds: float) -> float:
    return WARM_UP_SHARE * min_seconds if seconds is None else seconds


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
