"""The same file timed by `edgeft bench` and by the runtimes' own tools, in turns on one machine.

Usage::

    python bench/other_timers.py FILE... [--rounds 5] [--seconds 2] [--json FILE]
    python bench/other_timers.py runs/demo/packages/*/model.{onnx,xml,tflite} shared/data/mlperf_tiny/*.tflite

One thread, one inference at a time, random inputs, every tool in a fresh process in every round, in the order
A B C, C B A, ...; the figure of a round is the tool's median. The tools are

- ``benchmark_app`` of OpenVINO, synchronous, which reads each request's own clock, as edgeft's adapter does;
- ONNX Runtime's profiler (``model_run`` of its JSON; it writes down every node of the run, too, which takes longer than
  a small network itself), and `InferenceSession.run_with_iobinding` in a loop, because its own
  ``onnxruntime_perf_test`` is in no wheel;
- ``litert-benchmark`` of ai-edge-litert (LiteRT's newer `CompiledModel`, whose Python side looks up every buffer by
  name inside the time that is taken, about 2 us), and `Interpreter.invoke` in a loop.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

Timer = Callable[[Path, float], float]
"""Takes a model file and seconds, returns the median latency in ms."""

_ONNXRUNTIME = """
import json, statistics, sys, time
import numpy as np, onnxruntime as ort
path, seconds, profile = sys.argv[1], float(sys.argv[2]), sys.argv[3]
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
if profile:
    options.enable_profiling, options.profile_file_prefix = True, profile
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
random = np.random.default_rng(0)
kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
binding = session.io_binding()
for one in session.get_inputs():
    shape = [d if isinstance(d, int) and d > 0 else 1 for d in one.shape]
    binding.bind_cpu_input(one.name, random.uniform(-1, 1, shape).astype(kinds[one.type]))
for one in session.get_outputs():
    binding.bind_output(one.name)
times, end = [], time.perf_counter() + seconds
warm = time.perf_counter() + 0.1 * seconds
while time.perf_counter() < warm:
    session.run_with_iobinding(binding)
# The profiler keeps a million events at most: enough runs, but not all that fit into the time.
while time.perf_counter() < end and (not profile or len(times) < 2000):
    start = time.perf_counter_ns()
    session.run_with_iobinding(binding)
    times.append((time.perf_counter_ns() - start) / 1e6)
if profile:
    events = json.load(open(session.end_profiling()))
    times = [e["dur"] / 1e3 for e in events if e["name"] == "model_run"][-len(times):]
print(statistics.median(times))
"""
_INTERPRETER = """
import statistics, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
random = np.random.default_rng(0)
for one in interpreter.get_input_details():
    kind = np.dtype(one["dtype"])
    low, high = (-1, 1) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    interpreter.set_tensor(one["index"], random.uniform(low, high, one["shape"]).astype(kind))
seconds = float(sys.argv[2])
warm = time.perf_counter() + 0.1 * seconds
while time.perf_counter() < warm:
    interpreter.invoke()
times, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    start = time.perf_counter_ns()
    interpreter.invoke()
    times.append((time.perf_counter_ns() - start) / 1e6)
print(statistics.median(times))
"""
# The tool rounds what it reports to 0.01 ms, a quarter of some of these latencies: `round` does nothing inside it.
_LITERT_TOOL = """
import sys
from ai_edge_litert.tools import benchmark_litert_model as tool
tool.round = lambda value, digits=0: value
sys.exit(tool.main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="edgeft bench and the runtimes' own timing tools, in turns.")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every tool in every round")
    parser.add_argument("--json", type=Path, help="write all medians here")
    chosen = parser.parse_args()
    taken: dict[str, dict[str, list[float]]] = {}
    for file in chosen.files:
        timers = _timers(file)
        names = list(timers)
        taken[str(file)] = {name: [] for name in names}
        for turn in range(chosen.rounds):
            for name in names if turn % 2 == 0 else names[::-1]:
                taken[str(file)][name].append(timers[name](file, chosen.seconds))
    if chosen.json:
        chosen.json.write_text(json.dumps(taken, indent=1))
    console = Console()
    table = Table("file", "tool", "median [ms]", "of the rounds", "ratio to edgeft")
    for file_name, medians in taken.items():
        ours = statistics.median(medians["edgeft bench"])
        for name, values in medians.items():
            value = statistics.median(values)
            mark = "" if abs(value / ours - 1) <= 0.05 else " (!)"
            spread = f"{min(values):.4f} - {max(values):.4f}"
            table.add_row(
                "/".join(Path(file_name).parts[-2:]),
                name,
                f"{value:.4f}",
                spread,
                f"{value / ours:.3f}{mark}",
            )
        table.add_section()
    console.print(table)


def _timers(file: Path) -> dict[str, Timer]:
    theirs: dict[str, dict[str, Timer]] = {
        ".onnx": {
            "loop of run_with_iobinding": _onnxruntime_loop,
            "ONNX Runtime's profiler": _onnxruntime_profiler,
        },
        ".xml": {"benchmark_app": _benchmark_app},
        ".tflite": {"loop of Interpreter.invoke": _interpreter_loop, "litert-benchmark": _litert_benchmark},
    }
    if file.suffix not in theirs:
        sys.exit(f"{file}: give .onnx, .xml or .tflite files")
    return {"edgeft bench": _edgeft, **theirs[file.suffix]}


def _edgeft(file: Path, seconds: float) -> float:
    command = ["-m", "edgeft", "bench", str(file), "--random", "--processes", "1", "--json"]
    record = json.loads(_python(*command, "--duration", str(seconds)))
    value: float = record["results"][0]["latency"]["p50_ms"]
    return value


def _benchmark_app(file: Path, seconds: float) -> float:
    tool = Path(sys.executable).with_name("benchmark_app")
    settings = ["-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1"]
    said = _run([str(tool), "-m", str(file), *settings, "-t", str(max(1, round(seconds)))])
    value, unit = re.search(r"Median:\s+([\d.]+) (us|ms)", said).groups()
    return float(value) / (1000 if unit == "us" else 1)


def _onnxruntime_loop(file: Path, seconds: float) -> float:
    return float(_python("-c", _ONNXRUNTIME, str(file), str(seconds), ""))


def _onnxruntime_profiler(file: Path, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return float(_python("-c", _ONNXRUNTIME, str(file), str(seconds), str(Path(folder) / "profile")))


def _interpreter_loop(file: Path, seconds: float) -> float:
    return float(_python("-c", _INTERPRETER, str(file), str(seconds)).splitlines()[-1])


def _litert_benchmark(file: Path, seconds: float) -> float:
    runs = max(50, int(seconds * 1000 / _interpreter_loop(file, 0.1)))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        settings = ["--num_threads", "1", "--warmup_runs", str(runs // 10), "--num_runs", str(runs)]
        _python("-c", _LITERT_TOOL, "--model", str(file), *settings, "--result_json", str(result))
        value: float = json.loads(result.read_text())["latency"]["median_ms"]
        return value


def _python(*arguments: str) -> str:
    return _run([sys.executable, *arguments])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ... failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
