"""Vela on tiny files, on files that it must not take, and on those of MLPerf Tiny."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import tiny_tflite

from edgeft import compilers, measure, resources, target
from edgeft.compilers import vela
from edgeft.errors import ConfigError, ExportError, ModelError
from edgeft.types import CompilerEstimate

SHIPPED = [name for name in resources.names("targets") if name.startswith("npu-ethos")]
U55 = target.load("npu-ethos-u55-128")
assert U55.compiler is not None


def with_compiler(**changes: str) -> target.Compiler:
    return U55.compiler.model_copy(update=changes)


def allowing(operators: int) -> target.TargetProfile:
    return U55.model_copy(update={"ops": target.Ops(max_fallback_ops=operators)})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompilerEstimate]:
    file = tiny_tflite.write_tflite(tmp_path_factory.mktemp("vela") / "tiny.tflite")
    return file, compilers.compile_for(U55, file, file.parent)


def test_the_estimate_and_what_it_is_an_estimate_of(tiny: tuple[Path, CompilerEstimate]):
    file, estimate = tiny
    assert estimate.file == file.with_name("tiny_vela.tflite")
    assert estimate.flash_bytes == estimate.file.stat().st_size > file.stat().st_size
    assert estimate.ms == pytest.approx(estimate.cycles / 500e6 * 1e3)  # the clock of this system
    assert (estimate.sram_bytes, estimate.dram_bytes) == (32, 0)  # two tensors, each in 16 bytes
    assert (estimate.npu_ops, estimate.fallback_ops) == (1, ())
    (layer,) = estimate.layers
    assert (layer.name, layer.op, layer.macs) == ("logits", "FullyConnected", 32)
    assert (layer.cycles, layer.sram_bytes) == (estimate.cycles, estimate.sram_bytes)
    assert layer.utilisation == pytest.approx(32 / layer.cycles / 128)
    for said in ("Vela", vela.version(), "ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram"):
        assert said in estimate.source


def test_equal_files_compile_to_equal_bytes_whatever_they_are_called(tiny: tuple[Path, CompilerEstimate]):
    file, estimate = tiny
    renamed = file.with_name("another.tflite")
    renamed.write_bytes(file.read_bytes())
    again = compilers.compile_with(U55.compiler, renamed, file.parent)
    assert again.file.name == "another_vela.tflite"
    assert again.file.read_bytes() == estimate.file.read_bytes()
    assert dataclasses.replace(again, file=estimate.file) == estimate


def test_system_and_memory_mode_move_the_estimate(tiny: tuple[Path, CompilerEstimate]):
    file, usual = tiny
    slow = compilers.compile_with(with_compiler(system_config="Ethos_U55_Deep_Embedded"), file, file.parent)
    assert slow.ms > 2 * usual.ms and slow.source != usual.source
    cached = target.load("npu-ethos-u65-256")
    in_dram = compilers.compile_for(cached, file, file.parent)
    assert in_dram.dram_bytes > 0 and "Dedicated_Sram_384KB" in in_dram.source


def test_layers_get_names_for_people(tiny: tuple[Path, CompilerEstimate]):
    file, estimate = tiny
    (layer,) = measure.memory.name_layers(estimate, file).layers
    assert (layer.op, layer.name) == ("FULLY_CONNECTED", "logits")


def test_operators_on_the_cpu_are_named_and_refused(tmp_path: Path):
    file = tiny_tflite.write_tflite(tmp_path / "mixed.tflite", "int8 to float32")
    with pytest.raises(ExportError, match="leaves 1 operator to the CPU") as caught:
        compilers.compile_for(U55, file, tmp_path)
    assert "DEQUANTIZE_1: Unsupported opType" in caught.value.message and U55.id in caught.value.message
    estimate = compilers.compile_for(allowing(1), file, tmp_path)
    assert estimate.fallback_ops == ("DEQUANTIZE_1: Unsupported opType",) and estimate.npu_ops == 1


def test_a_float_model_is_no_model_of_zero_cycles(tmp_path: Path):
    file = tiny_tflite.write_tflite(tmp_path / "float.tflite", "float32")
    with pytest.raises(ExportError, match=r"no operator of it runs on the NPU .*Float32"):
        compilers.compile_for(allowing(100), file, tmp_path)


def test_files_that_are_no_models(tiny: tuple[Path, CompilerEstimate], tmp_path: Path):
    content = tiny[0].read_bytes()
    damaged = {"empty": b"", "text": b"hello", "half": content[: len(content) // 2], "end": content[:-100]}
    for name, part in damaged.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ModelError, match=name):
            compilers.compile_for(U55, tmp_path / name, tmp_path)
    with pytest.raises(ModelError, match="compiled for an Ethos-U already"):
        compilers.compile_for(U55, tiny[1].file, tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_vela_knows_the_settings_of_shipped_targets(name: str):
    profile = target.load(name)
    assert profile.compiler is not None and profile.precision.full_integer
    compilers.check_settings(profile.compiler)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("accelerator", "ethos-u55-129", "ethos-u55-128"),
        ("system_config", "Ethos_U55_High_End_Embed", "Ethos_U55_High_End_Embedded"),
        ("memory_mode", "Shared_SRAM", "Shared_Sram"),
    ],
)
def test_settings_that_vela_does_not_know(
    key: str, value: str, meant: str, tiny: tuple[Path, CompilerEstimate], tmp_path: Path
):
    wrong = with_compiler(**{key: value})
    with pytest.raises(ConfigError, match=f"{key} = '{value}'.*did you mean '{meant}'"):
        compilers.check_settings(wrong)
    with pytest.raises(ConfigError, match=key):
        compilers.compile_with(wrong, tiny[0], tmp_path)


def test_a_target_without_a_compiler(tiny: tuple[Path, CompilerEstimate], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no section \[compiler\]"):
        compilers.compile_for(target.load("cpu-litert"), tiny[0], tmp_path)


@pytest.mark.data
@pytest.mark.skipif("EDGEFT_TEST_DATA" not in os.environ, reason="names no folder of data")
@pytest.mark.parametrize(
    ("name", "macs", "operators"), [("kws_dscnn_int8", 2_664_792, 12), ("ic_resnet8_int8", 12_505_748, 15)]
)
def test_files_made_elsewhere(name: str, macs: int, operators: int, tmp_path: Path):
    file = Path(os.environ["EDGEFT_TEST_DATA"]) / "mlperf_tiny" / f"{name}.tflite"
    estimate = compilers.compile_for(U55, file, tmp_path)
    assert sum(layer.cycles for layer in estimate.layers) == estimate.cycles
    assert sum(layer.macs for layer in estimate.layers) == macs
    assert (
        estimate.npu_ops == len({layer.name for layer in estimate.layers}) == operators
    )  # one softmax, not 29
    assert max(layer.sram_bytes for layer in estimate.layers) <= estimate.sram_bytes
