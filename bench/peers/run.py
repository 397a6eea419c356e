"""Quantize one trained float network with edgeft and with other tools, and compare the files where they run.

Usage, after `edgeft run RECIPE` (or `edgeft finetune RECIPE`)::

    python bench/peers/run.py runs/weather4 [--base bench/recipes] [--out runs/weather4/peers] [--rounds 10]
        [--targets cpu-openvino ...] [--peers nncf ...] [--epochs N] [--python PEER=/path/to/its/python]

All start from the float network of the workspace's fine-tune stage, see the same calibration samples (drawn as the
recipe's calibration file says), and are scored on the same test split. The files of one runtime are timed in turns,
each in fresh processes, beside the float file. Writes comparison.json and comparison.md; README.md tells the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import markdown

from edgeft import calibration, data, exporters, extras, measure, stages, target, training
from edgeft import recipe as recipes
from edgeft.measure import Variant
from edgeft.measure.statistics import tango_interval
from edgeft.pipeline.inputs import RunInputs
from edgeft.recipe import Quantize
from edgeft.target import TargetProfile
from edgeft.types import ExportedArtifact, FloatArray, LatencyResult, TensorSpec, example_inputs

_HERE = Path(__file__).resolve().parent
_BATCH = 32
_TARGETS = ("cpu-onnxruntime", "cpu-openvino", "cpu-litert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another tool: its script beside this file, what it reads and writes, and where that runs."""

    script: str
    reads: str
    suffix: str
    variants: tuple[str, ...]
    targets: tuple[str, ...]


PEERS = {
    "onnxruntime": Peer(
        script="onnxruntime_static.py",
        reads="cpu-onnxruntime",
        suffix=".onnx",
        variants=("u8s8", "s8s8"),
        targets=("cpu-onnxruntime",),
    ),
    "nncf": Peer(
        script="nncf_ptq.py",
        reads="cpu-openvino",
        suffix=".xml",
        variants=("performance", "mixed"),
        targets=("cpu-openvino",),
    ),
    "neural-compressor": Peer(
        script="neural_compressor_static.py",
        reads="program",
        suffix=".onnx",
        variants=("default",),
        targets=("cpu-onnxruntime", "cpu-openvino"),
    ),
    "onnx-neural-compressor": Peer(
        script="onnx_neural_compressor_static.py",
        reads="cpu-onnxruntime",
        suffix=".onnx",
        variants=("u8s8",),
        targets=("cpu-onnxruntime",),
    ),
    "ai-edge-quantizer": Peer(
        script="ai_edge_static.py",
        reads="cpu-litert",
        suffix=".tflite",
        variants=("static_wi8_ai8",),
        targets=("cpu-litert",),
    ),
}
# Their pins contradict those of the rest (numpy < 2).
_APART = ("onnx-neural-compressor",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file to compare: who made it, on which target it runs, and what making it took."""

    tool: str
    target: str
    artifact: ExportedArtifact
    seconds: float = 0.0
    settings: Any = None


def main() -> None:
    chosen = _arguments()
    recipe = recipes.load(chosen.workspace / "recipe.toml")
    folders = {
        name: chosen.workspace / "stages" / f"0{i}-{name}" for i, name in enumerate(("data", "finetune"))
    }
    run = RunInputs(recipe, chosen.base, folders)
    out = (chosen.out or chosen.workspace / "peers").resolve()
    out.mkdir(parents=True, exist_ok=True)
    profiles = {name: target.load(name) for name in chosen.targets}
    config = recipe.quantize or Quantize()
    wanted = calibration.load(config.calibration, chosen.base)
    drawn = data.calibration_samples(run.splits.train, wanted, recipe.seed)
    # Drawn class by class: in that order a moving average, which some tools keep, would start with one class alone.
    samples = drawn.inputs(np.random.default_rng(recipe.seed).permutation(len(drawn)).tolist())
    np.save(out / "calibration.npy", samples)
    for profile in profiles.values():
        exporters.warm_up(profile)
    floats = {
        name: Entry(tool="float", target=name, artifact=_export(run.float_program, profile, out, "float"))
        for name, profile in profiles.items()
    }
    entries = list(floats.values())
    missing = [name for name in chosen.peers if name in _APART and name not in chosen.python]
    for name in missing:
        print(f"{name} needs an environment of its own, see README.md: left out", file=sys.stderr)
    for name in [name for name in chosen.peers if name not in missing]:
        entries += _peer(name, run, floats, profiles, out, chosen.python.get(name, sys.executable))
    entries += _ours(run, config, wanted, samples, profiles, out, chosen.epochs)
    rows = [row for profile in profiles.values() for row in _compare(run, profile, entries, chosen)]
    report = {
        "workspace": chosen.workspace.name,
        "data": str(recipe.task.data),
        "test_samples": len(run.splits.test),
        "calibration_samples": len(samples),
        "left_out": missing,
        "host": measure.host_fingerprint(),
        "versions": extras.versions("torch", "torchao", "onnxruntime", "openvino", "ai_edge_litert"),
        "rows": rows,
    }
    (out / "comparison.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "comparison.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare edgeft's int8 files with those of other tools.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument(
        "--base", type=Path, default=Path("bench/recipes"), help="what the recipe's paths start from"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--targets", nargs="+", default=list(_TARGETS), choices=_TARGETS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument(
        "--python", nargs="*", default=[], metavar="PEER=PATH", help="interpreters of peers' own"
    )
    parser.add_argument("--epochs", type=int, help="of QAT; the recipe's by default, 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--min-runs", type=int, default=30)
    parser.add_argument("--min-seconds", type=float, default=0.3)
    chosen = parser.parse_args()
    chosen.python = dict(item.split("=", 1) for item in chosen.python)
    return chosen


def _peer(
    name: str,
    run: RunInputs,
    floats: dict[str, Entry],
    profiles: dict[str, TargetProfile],
    out: Path,
    python: str,
) -> Iterator[Entry]:
    """Let a tool quantize in a process of its own, once per variant."""
    peer = PEERS[name]
    targets = [profiles[t] for t in peer.targets if t in profiles]
    if not targets:
        return
    source = _program_file(run, out) if peer.reads == "program" else floats[peer.reads].artifact.path
    for variant in peer.variants:
        print(f"{name}, {variant}", file=sys.stderr)
        output, result = out / f"{name}-{variant}{peer.suffix}", out / f"{name}-{variant}.json"
        arguments = {
            "model": source, "calibration": out / "calibration.npy", "output": output, "result": result,
            "variant": variant,
        }  # fmt: skip
        command = [
            python,
            str(_HERE / peer.script),
            *(f"--{key}={value}" for key, value in arguments.items()),
        ]
        with (out / f"{name}-{variant}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        told = json.loads(result.read_text(encoding="utf-8"))
        for profile in targets:
            path = (
                _as_ir(output) if profile.export.format == "openvino" and peer.suffix == ".onnx" else output
            )
            yield Entry(
                tool=f"{name} {variant}",
                target=profile.id,
                artifact=_foreign(path, floats[profile.id].artifact),
                seconds=told["seconds"],
                settings={**told["settings"], "versions": told["versions"]},
            )


def _ours(
    run: RunInputs,
    config: Quantize,
    wanted: calibration.CalibrationRecipe,
    samples: FloatArray,
    profiles: dict[str, TargetProfile],
    out: Path,
    epochs: int | None,
) -> Iterator[Entry]:
    """Quantize with edgeft: calibrated, by its second engine, and trained; seconds include the export."""
    # Decoded beforehand, as the other tools get theirs; in random order, or a batch would be of one class.
    plain = training.loader(
        run.splits.train, run.preprocessing, batch_size=_BATCH, seed=run.recipe.seed, shuffle=True
    )
    statistics = list(plain)
    length = config.epochs if epochs is None else epochs
    ways: dict[str, dict[str, Any]] = {
        "ptq": {"method": "ptq"},
        "ptq, engine neural-compressor": {"method": "ptq", "engine": "neural-compressor"},
    }
    if length:
        ways["qat"] = {"method": "qat", "epochs": length}
    for name, changes in ways.items():
        print(f"edgeft {name}", file=sys.stderr)
        settings = config.model_copy(update={"max_accuracy_drop": None, **changes})
        # Calibration decides nothing by validation: scoring two programs there is no part of its time.
        val = run.splits.val if settings.method == "qat" else data.subset(run.splits.val, [0])
        # The second engine has observers of its own; which samples are drawn is the same.
        recipe = wanted if settings.engine == "edgeft" else calibration.load("minmax")
        started = time.monotonic()
        program = stages.quantize(
            run.finetuned,
            run.training_batches(settings),
            run.plain_batches(val),
            settings,
            calibration=recipe,
            samples=torch.from_numpy(samples).split(_BATCH),
            statistics=statistics,
            seed=run.recipe.seed,
        )
        seconds = time.monotonic() - started
        for profile in profiles.values():
            started = time.monotonic()
            artifact = _export(program, profile, out, f"edgeft-{name}".replace(", engine ", "-"))
            yield Entry(
                tool=f"edgeft {name}",
                target=profile.id,
                artifact=artifact,
                seconds=seconds + time.monotonic() - started,
                settings=settings.model_dump(mode="json", exclude_none=True),
            )


def _compare(
    run: RunInputs, profile: TargetProfile, entries: list[Entry], chosen: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Score and time the files of one target; yield a row for each."""
    mine = [entry for entry in entries if entry.target == profile.id]
    labels = run.splits.test.labels
    scored = {}
    for entry in mine:
        print(f"{profile.id}: {entry.tool}", file=sys.stderr)
        logits, runtime = measure.predict(entry.artifact, profile, run.test_inputs)
        scored[entry.tool] = measure.accuracy(logits, labels, run.splits.test.ids), runtime
    latencies = _fastest(mine, profile, run, chosen)
    reference = scored["float"][0]
    base_right = reference.predictions == labels
    for entry in mine:
        accuracy, runtime = scored[entry.tool]
        right = accuracy.predictions == labels
        lost, won = int((base_right & ~right).sum()), int((right & ~base_right).sum())
        drop = tango_interval(lost, won, len(labels))
        yield {
            "target": profile.id,
            "tool": entry.tool,
            "accuracy": [accuracy.accuracy, accuracy.low, accuracy.high],
            "drop": [reference.accuracy - accuracy.accuracy, *drop],
            "latency_ms": latencies[entry.tool].p50_ms,
            "latency_setting": latencies[entry.tool].label.removeprefix(entry.tool).strip(),
            "ratio": dataclasses.asdict(measure.ratio(latencies[entry.tool], latencies["float"])),
            "int8_macs": runtime.mac_precision.get("int8", 0),
            "macs": sum(runtime.mac_precision.values()),
            "size_bytes": entry.artifact.size_bytes,
            "size_ratio": entry.artifact.size_bytes / mine[0].artifact.size_bytes,
            "seconds": entry.seconds,
            "settings": entry.settings,
        }


def _fastest(
    entries: list[Entry], profile: TargetProfile, run: RunInputs, chosen: argparse.Namespace
) -> dict[str, LatencyResult]:
    """Time every file under every setting of its runtime, in turns; return each file's fastest."""
    variants = {
        " ".join([entry.tool, *options.values()]): (entry, options)
        for entry in entries
        # Ours run under the profile's options, which their numbers are checked with; others as they are fastest.
        for options in ([{}] if entry.tool.startswith("edgeft") else [{}, *profile.runtime.float_options])
    }
    results = measure.latencies(
        [
            Variant(label=label, artifact=entry.artifact, profile=profile, options=options)
            for label, (entry, options) in variants.items()
        ],
        run.test_inputs[:64],
        rounds=chosen.rounds,
        min_runs=chosen.min_runs,
        min_seconds=chosen.min_seconds,
        progress=lambda text, **_: print(text, file=sys.stderr),
    )
    fastest: dict[str, LatencyResult] = {}
    for result in results:
        tool = variants[result.label][0].tool
        if tool not in fastest or result.p50_ms < fastest[tool].p50_ms:
            fastest[tool] = result
    return fastest


def _export(program: Any, profile: TargetProfile, out: Path, name: str) -> ExportedArtifact:
    return exporters.export(program, profile, out, name=name)


def _program_file(run: RunInputs, out: Path) -> Path:
    """Write the float network as a torch.export program of any batch size, batch norms and all."""
    path = out / "float.pt2"
    example = example_inputs(run.preprocessing, 2)
    shapes = ({0: torch.export.Dim.AUTO},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.export.save(
            torch.export.export(run.finetuned.module.eval(), (example,), dynamic_shapes=shapes), path
        )
    return path


def _as_ir(path: Path) -> Path:
    """Read an ONNX file with OpenVINO and save it as OpenVINO's own format, under its defaults."""
    openvino = extras.load("openvino", "bench/peers")
    converted = path.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(path), converted)
    return converted


def _foreign(path: Path, like: ExportedArtifact) -> ExportedArtifact:
    """Return the record of a file that another tool made of `like`: same inputs and outputs, its own bytes."""
    files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    artifact = dataclasses.replace(
        like,
        path=path,
        files=files,
        scheme="int8",
        size_bytes=sum(file.stat().st_size for file in files),
        sha256={},
    )
    if path.suffix != ".tflite":
        return artifact
    interpreter = extras.load("ai_edge_litert.interpreter", "bench/peers").Interpreter(str(path))
    return dataclasses.replace(
        artifact,
        inputs=(_spec(interpreter.get_input_details()[0], like.inputs[0]),),
        outputs=(_spec(interpreter.get_output_details()[0], like.outputs[0]),),
    )


def _spec(details: dict[str, Any], like: TensorSpec) -> TensorSpec:
    scale, zero_point = details["quantization"]
    dtype: Any = np.dtype(details["dtype"]).name
    return dataclasses.replace(
        like, name=details["name"], dtype=dtype, scale=float(scale), zero_point=int(zero_point)
    )


if __name__ == "__main__":
    main()
