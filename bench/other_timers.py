"""The same file timed by `edgeft bench` and by the runtimes' own tools, in turns on one machine.

Usage::

    python bench/other_timers.py FILE... [--rounds 5] [--seconds 2] [--json FILE]
    python bench/other_timers.py runs/demo/packages/*/model.{onnx,xml,tflite} shared/data/mlperf_tiny/*.tflite

One thread, one inference at a time, every tool in a fresh process in every round, in the order A B C, C B A, ...; the
figure of a round is the tool's median. All are fed the same numbers, a single random sample (litert-benchmark
draws its own). The tools are

- ``benchmark_app`` of OpenVINO, synchronous, which reads each request's own clock, as edgeft's adapter does. Both get
  the same settings (`OPENVINO`), which are checked in what each says of the compiled model. By default they differ:
  benchmark_app turns an input that looks like an image into uint8, which adds a conversion (1 % of 0.4 ms).
  Pinning is off for both: OpenVINO otherwise ties its thread to one core during every inference, which then waits for
  whatever else runs there: a median of 11 ms with it and 0.7 ms without beside other jobs, of 0.38 ms either way on a
  quiet machine;
- ONNX Runtime's profiler (``model_run`` of its JSON; it writes down every node of the run, too, which takes longer than
  a small network itself), and `InferenceSession.run_with_iobinding` in a loop, because its own
  ``onnxruntime_perf_test`` is in no wheel;
- ``litert-benchmark`` of ai-edge-litert, and `Interpreter.invoke` in a loop. The former times LiteRT's newer
  `CompiledModel`, whose Python side gathers the buffers by name within the time that is taken. With both in one
  process, in turns, a run of `CompiledModel` took about 1.2 us more than `Interpreter.invoke` whatever the network:
  25.0 and 26.2 us (keyword spotting), 42.7 and 43.8 us (ResNet-8), 74.1 and 75.5 us (visual wake words), 316 and 317 us
  (MobileNetV2 0.35). That is 5, 3, 2 and 0.3 %: the call costs more, the kernels take equally long.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edgeft.benchmarking import subject

Timer = Callable[[Path, float, Path], float]
"""Takes a model file, seconds and the .npz of its inputs; returns the median latency in ms."""

OPENVINO = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": "NO",
}
_OPENVINO_TYPES = {
    "float32": "f32",
    "float16": "f16",
    "int64": "i64",
    "int32": "i32",
    "uint8": "u8",
    "int8": "i8",
}
# The settings as either tool reads them back from the compiled model.
_COMPILED = {**OPENVINO, "ENABLE_CPU_PINNING": "False", "INFERENCE_NUM_THREADS": "1"}

_ONNXRUNTIME = """
import json, statistics, sys, time
import numpy as np, onnxruntime as ort
path, seconds, inputs, profile = sys.argv[1], float(sys.argv[2]), np.load(sys.argv[3]), sys.argv[4]
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
if profile:
    options.enable_profiling, options.profile_file_prefix = True, profile
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
binding = session.io_binding()
for one in session.get_inputs():
    binding.bind_cpu_input(one.name, inputs[one.name])
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
inputs = np.load(sys.argv[3])
for one in interpreter.get_input_details():
    interpreter.set_tensor(one["index"], inputs[one["name"]])
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
        with tempfile.TemporaryDirectory() as folder:
            inputs = _write_inputs(file, Path(folder) / "inputs.npz")
            for turn in range(chosen.rounds):
                for name in names if turn % 2 == 0 else names[::-1]:
                    taken[str(file)][name].append(timers[name](file, chosen.seconds, inputs))
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


def _write_inputs(file: Path, path: Path) -> Path:
    """Write one random sample: an array per input under its name."""
    model = subject(file, inputs="random")
    specs = model.artifact.inputs
    np.savez(path, **{spec.name: array[0] for spec, array in zip(specs, model.inputs, strict=True)})
    return path


def _edgeft(file: Path, seconds: float, inputs: Path) -> float:
    command = ["-m", "edgeft", "bench", str(file), "--inputs", str(inputs), "--processes", "1", "--json"]
    if file.suffix == ".xml":
        command += [word for key, value in OPENVINO.items() for word in ("--option", f"{key}={value}")]
    result = json.loads(_python(*command, "--duration", str(seconds)))["results"][0]
    if file.suffix == ".xml":
        details = result["runtime"]["details"]
        _require_settings("edgeft", {**details["options"], "INFERENCE_NUM_THREADS": str(details["threads"])})
    value: float = result["latency"]["p50_ms"]
    return value


def _benchmark_app(file: Path, seconds: float, inputs: Path) -> float:
    tool = Path(sys.executable).with_name("benchmark_app")
    with tempfile.TemporaryDirectory() as folder, np.load(inputs) as arrays:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"CPU": {**OPENVINO, "INFERENCE_NUM_THREADS": "1"}}))
        settings = [
            "-d",
            "CPU",
            "-api",
            "sync",
            "-load_config",
            str(config),
            "-t",
            str(max(1, round(seconds))),
        ]
        kinds = ", ".join(f"{name}:{_OPENVINO_TYPES[arrays[name].dtype.name]}" for name in arrays.files)
        settings += ["-iop", kinds]
        for i, name in enumerate(arrays.files):
            np.save(Path(folder) / f"{i}.npy", arrays[name])
            settings += ["-i", f"{name}:{Path(folder) / f'{i}.npy'}"]
        said = _run([str(tool), "-m", str(file), *settings])
    read_back = dict(re.findall(r"\[ INFO \]   (\w+): (.*)", said))
    read_back["INFERENCE_PRECISION_HINT"] = {"<Type: 'float32'>": "f32"}.get(
        read_back["INFERENCE_PRECISION_HINT"], read_back["INFERENCE_PRECISION_HINT"]
    )
    _require_settings("benchmark_app", read_back)
    value, unit = re.search(r"Median:\s+([\d.]+) (us|ms)", said).groups()
    return float(value) / (1000 if unit == "us" else 1)


def _require_settings(tool: str, read_back: Mapping[str, str]) -> None:
    """End if a tool ran with other settings than the other one."""
    for key, value in _COMPILED.items():
        if read_back.get(key) != value:
            sys.exit(f"{tool} compiled the model with {key} {read_back.get(key)}, not {value}: no comparison")


def _onnxruntime_loop(file: Path, seconds: float, inputs: Path) -> float:
    return float(_python("-c", _ONNXRUNTIME, str(file), str(seconds), str(inputs), ""))


def _onnxruntime_profiler(file: Path, seconds: float, inputs: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        profile = str(Path(folder) / "profile")
        return float(_python("-c", _ONNXRUNTIME, str(file), str(seconds), str(inputs), profile))


def _interpreter_loop(file: Path, seconds: float, inputs: Path) -> float:
    return float(_python("-c", _INTERPRETER, str(file), str(seconds), str(inputs)).splitlines()[-1])


def _litert_benchmark(file: Path, seconds: float, inputs: Path) -> float:
    runs = max(50, int(seconds * 1000 / _interpreter_loop(file, 0.1, inputs)))
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
