"""Targets that no clock measures: what their profiles may say, and their budgets against what was found out."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edgeft import measure, resources, schema, target
from edgeft.errors import ConfigError
from edgeft.target import TargetProfile
from edgeft.types import (
    CompilerEstimate,
    ExportedArtifact,
    LatencyResult,
    LayerEstimate,
    MemoryResult,
    QuantCoverage,
    RuntimeReport,
)

COMPILER = {
    "name": "vela",
    "accelerator": "ethos-u55-128",
    "system_config": "Ethos_U55_High_End_Embedded",
    "memory_mode": "Shared_Sram",
}
ARTIFACT = ExportedArtifact(
    path=Path("model.tflite"),
    files=(Path("model.tflite"),),
    format="tflite",
    scheme="int8",
    sha256={},
    size_bytes=70_000,
    coverage=QuantCoverage(mac_ops=2, int8_mac_ops=2),
    inputs=(),
    outputs=(),
)
MEMORY = MemoryResult(
    ram_bytes=36_912, flash_bytes=70_000, ram_layer="ADD after b1", flash_layer="CONV_2D b2", source="tflm"
)
LAYER = LayerEstimate(name="b1", op="CONV_2D", cycles=300_000, macs=9, sram_bytes=9, utilisation=0.5)
ESTIMATE = CompilerEstimate(
    tool="Vela",
    version="5.2.0",
    settings={"accelerator": "ethos-u55-128", "system_config": "High_End", "memory_mode": "Shared_Sram"},
    cycles=400_000,
    ms=0.8,
    sram_bytes=36_912,
    dram_bytes=0,
    flash_bytes=70_000,
    npu_ops=1,
    fallback_ops=("MEAN before head", "SOFTMAX after head"),
    layers=(LAYER,),
)


def profile(name: str = "mcu-tflm", **sections) -> TargetProfile:
    """Read a shipped profile with sections replaced, through the same checks as a file."""
    data = tomllib.loads(resources.find("targets", name).read_text(encoding="utf-8"))
    return schema.validate({**data, **sections}, TargetProfile, "board.toml")


def test_the_microcontroller_runs_here_without_a_clock_or_a_float_runtime():
    mcu = profile()
    assert (mcu.evidence, mcu.runtime.name, mcu.clocked, mcu.export.format) == (
        "executed",
        "tflm",
        False,
        "tflite",
    )
    floats = target.float_runtime(mcu)
    assert floats.runtime.name == "litert" and floats.clocked and floats.export == mcu.export
    on_cpu = target.load("cpu-openvino")
    assert target.float_runtime(on_cpu) is on_cpu


def test_the_float_baseline_of_an_integer_device_may_be_float():
    npu = profile("npu-ethos-u55-128")
    assert npu.precision.full_integer and not target.float_runtime(npu).precision.full_integer
    assert target.float_runtime(npu).compiler is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evidence": "measured"}, "evidence 'measured' does not go with runtime 'tflm'"),
        ({"evidence": "estimated"}, "'estimated' and a section .compiler. go together"),
        ({"compiler": COMPILER}, "'estimated' and a section .compiler. go together"),
        ({"latency": {"budget_ms": 5.0}}, "latency.budget_ms: a target that is 'executed' has no latency"),
        ({"memory": {"ram": -1}}, "memory.ram: input should be greater than 0; got -1"),
        ({"memory": {"rom": 1}}, "unknown key 'memory.rom'"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(sections, message):
    with pytest.raises(ConfigError, match=rf"board\.toml: .*{message}"):
        profile(**sections)


def test_ram_is_no_budget_where_nobody_can_tell_it():
    with pytest.raises(ConfigError, match="runtime 'litert' does not tell what memory"):
        profile("cpu-litert", memory={"ram": 1000})


def test_budgets_of_memory_name_the_layer_at_the_peak():
    board = profile(memory={"ram": 32_768, "flash": 70_000})
    ram, flash = measure.check_budgets(board, ARTIFACT, memory=MEMORY)
    assert (ram.name, ram.met, ram.value, ram.limit, ram.culprit) == (
        "ram",
        False,
        36_912,
        32_768,
        "ADD after b1",
    )
    assert (flash.name, flash.met, flash.culprit) == ("flash", True, "CONV_2D b2")
    assert measure.check_budgets(profile(), ARTIFACT, memory=MEMORY) == ()


def test_budgets_of_an_estimate_name_the_dearest_layer_and_the_operators_left():
    board = profile(
        evidence="estimated", compiler=COMPILER, latency={"budget_ms": 0.5}, ops={"max_fallback_ops": 1}
    )
    latency, left = measure.check_budgets(board, ARTIFACT, memory=MEMORY, estimate=ESTIMATE)
    assert (latency.name, latency.met, latency.value, latency.unit) == ("latency", False, 0.8, "ms")
    assert latency.culprit == "CONV_2D b1 (300,000 cycles)"
    assert (left.name, left.met, left.value, left.limit) == ("fallback ops", False, 2, 1)
    assert left.culprit == "MEAN before head, SOFTMAX after head"


@pytest.mark.parametrize(("statistic", "met"), [("p50", True), ("p99", False)])
def test_a_clock_has_its_budget_in_the_statistic_of_the_profile(statistic, met):
    report = RuntimeReport(runtime="litert", version="2", device="cpu", mac_precision={"int8": 2})
    timed = LatencyResult(
        label="int8",
        evidence="measured",
        threads=1,
        samples_ms=((1.0,) * 95 + (3.0,) * 5,),
        load_ms=(1.0,),
        first_ms=(1.0,),
        peak_rss_bytes=1,
        runtime=report,
    )
    cpu = profile("cpu-litert", latency={"budget_ms": 2.0, "statistic": statistic}, memory={"flash": 1})
    flash, latency = measure.check_budgets(cpu, ARTIFACT, latency=timed, slowest="CONV_2D b1")
    assert (latency.met, latency.culprit, latency.value) == (met, "CONV_2D b1", 1.0 if met else 3.0)
    assert (flash.met, flash.value) == (False, 70_000)


@pytest.mark.parametrize("name", ["mcu-tflm", "npu-ethos-u55-128"])
def test_a_prune_budget_needs_a_way_to_find_it_out(name):
    target.require_budget(profile(name), "ram")
    if name == "mcu-tflm":
        with pytest.raises(ConfigError, match="is executed, its time cannot be measured"):
            target.require_budget(profile(name), "latency")
    else:
        target.require_budget(profile(name), "latency")
