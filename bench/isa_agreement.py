"""What a CPU without VNNI does to int8 files: agreement with the Q/DQ program, per instruction set and weight range.

Usage::

    python bench/isa_agreement.py runs/trashnet [--base bench/recipes] [--isa DEFAULT AVX2_VNNI AVX2] [--samples 300]

Takes the fine-tuned network of a finished run, calibrates it once with weights in [-127, 127] and once in [-63, 63],
and runs OpenVINO's files of both on the test split while ``ONEDNN_MAX_CPU_ISA`` hides the newer instructions (which any
x86 host with AVX512-VNNI can do). Without VNNI the kernels add two products in 16 bits, and saturate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edgeft import calibration, data, exporters, measure, quantization, stages, target
from edgeft import recipe as recipes
from edgeft.pipeline.inputs import RunInputs

_TARGETS = ("cpu-openvino", "cpu-openvino-avx2")
_ISA = "ONEDNN_MAX_CPU_ISA"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Agreement of int8 files with their program, per instruction set."
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--base", type=Path, default=Path("bench/recipes"), help="folder of the run's recipe")
    parser.add_argument("--isa", nargs="+", default=["DEFAULT", "AVX2_VNNI", "AVX2"])
    parser.add_argument("--samples", type=int, help="of the test split; all by default")
    chosen = parser.parse_args()
    run = _open(chosen.workspace, chosen.base)
    inputs = run.test_inputs[: chosen.samples]
    labels = run.splits.test.labels[: len(inputs)]
    wanted = calibration.load("minmax")
    picked = data.calibration_samples(run.splits.train, wanted, run.recipe.seed)
    batches = [torch.from_numpy(picked.inputs(range(i, i + 16))) for i in range(0, len(picked), 16)]
    table = Table("weights", "instructions", "accuracy [%]", "agreement [%]", "within 2 LSB [%]", "MAC ops")
    for name in _TARGETS:
        profile = target.load(name)
        graph = quantization.prepare(run.finetuned, numerics=profile.precision.numerics)
        quantization.calibrate(graph, batches, wanted)
        # Half the range leaves networks with narrow layers no accuracy to speak of unless the biases make up for it.
        quantization.correct_biases(graph, batches)
        program = quantization.convert(graph, run.finetuned, batches[0])
        reference = stages.predict_program(program.program, inputs)
        table.add_row(
            profile.precision.weight_range, "program", _percent(reference.argmax(1) == labels), "", "", ""
        )
        with tempfile.TemporaryDirectory() as folder:
            file = exporters.export(program, profile, Path(folder))
            for isa in chosen.isa:
                os.environ[_ISA] = isa  # workers inherit it
                logits, report = measure.predict(file, profile, inputs)
                lsb = np.abs(logits - reference) / (program.output.scale if program.output else 1.0)
                table.add_row(
                    profile.precision.weight_range,
                    isa,
                    _percent(logits.argmax(1) == labels),
                    _percent(logits.argmax(1) == reference.argmax(1)),
                    _percent(lsb <= 2),
                    f"{dict(report.mac_precision)} {report.details['primitives']}",
                )
    Console(width=200).print(table)


def _open(workspace: Path, base: Path) -> RunInputs:
    """Return what a finished run's stages left."""
    folders = {folder.name[3:]: folder for folder in (workspace / "stages").iterdir()}
    return RunInputs(recipes.load(workspace / "recipe.toml"), base, folders)


def _percent(hits: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str:
    return f"{100 * hits.mean():.1f}"


if __name__ == "__main__":
    main()
