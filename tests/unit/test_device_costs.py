"""`edgeft bench` of files on targets without a clock: what is shown, what is refused, and that it needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_packages
import tiny_tflite

from edgeft import benchmarking, schema, target
from edgeft.errors import ConfigError, ModelError
from edgeft.reporting import device_costs


def board(folder: Path, shipped: str, **memory: int) -> Path:
    """Write a profile like a shipped one with budgets of its own."""
    profile = target.load(shipped).model_copy(update={"id": "board", "memory": target.Memory(**memory)})
    path = folder / "board.toml"
    path.write_text(schema.dump(profile), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tflite.write_tflite(tmp_path_factory.mktemp("cost") / "tiny.tflite")


def test_a_microcontroller_tells_memory_and_no_time(file: Path):
    cost = benchmarking.device_cost(file, target.load("mcu-tflm"))
    assert cost.estimate is None and cost.fits
    assert 32 < cost.memory.ram_bytes < 4096 and cost.memory.flash_bytes == file.stat().st_size
    assert cost.memory.ram_layer == "FULLY_CONNECTED logits"
    record = benchmarking.cost_record([cost])
    (row,) = device_costs.table(record)
    assert row.keys() == {"file", "target", "RAM KB", "flash KB"}
    assert "its time is not known; tflite-micro" in device_costs.sources(record)[0]


def test_an_npu_tells_its_compilers_estimate(edgeft, file: Path):
    """Through the command line, in a Python that has no torch."""
    code = "import sys; sys.modules['torch'] = None; from edgeft.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "bench", str(file), "--target", "npu-ethos-u55-128", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["schema"], record["version"]) == ("edgeft-cost", 1)
    (result,) = record["results"]
    assert (result["evidence"], result["target"]) == ("estimated", "npu-ethos-u55-128")
    assert result["estimate"]["cycles"] > 0 and result["estimate"]["file"] is None
    assert result["estimate"]["settings"]["memory_mode"] == "Shared_Sram"
    assert [(each["name"], each["met"]) for each in result["budgets"]] == [
        ("ram", True),
        ("flash", True),
        ("fallback ops", True),
    ]
    (line,) = device_costs.sources(record)
    assert "measured by no clock" in line and "Ethos_U55_High_End_Embedded, Shared_Sram" in line
    (line,) = device_costs.slowest_layers(result, 3)
    assert "100.0 %" in line and "cycles  FULLY_CONNECTED logits (multipliers busy" in line


def test_a_budget_that_is_missed_names_its_layer(edgeft, file: Path, tmp_path: Path):
    own = board(tmp_path, "npu-ethos-u55-128", ram=16, flash=1 << 20)
    done = edgeft("bench", str(file), "--target", str(own), COLUMNS="120")
    assert done.returncode == 1, done.stderr
    assert "ram 0.0 KB of 0.0 KB, most of it: FULLY_CONNECTED logits" in done.stdout
    assert "(estimated)" in done.stdout and "Ethos_U55_High_End_Embedded" in done.stdout


def test_what_does_not_go_with_such_targets(edgeft, file: Path, tmp_path: Path):
    timed = edgeft("bench", str(file), "--target", "mcu-tflm", "--threads", "2")
    assert timed.returncode == 2 and "--threads: nothing is timed" in timed.stderr
    package = tiny_packages.write_tiny(tmp_path / "cpu-onnxruntime")
    with pytest.raises(ConfigError, match="a package has a target of its own"):
        benchmarking.has_clock(package, target.load("mcu-tflm"))
    assert benchmarking.has_clock(package) and benchmarking.has_clock(file)
    assert not benchmarking.has_clock(file, target.load("mcu-tflm"))
    tiny_packages.write_onnx(tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="mcu-tflm takes tflite files, not onnx"):
        benchmarking.device_cost(tmp_path / "net.onnx", target.load("mcu-tflm"))
    floats = tiny_tflite.write_tflite(tmp_path / "cut.tflite")
    floats.write_bytes(floats.read_bytes()[:300])
    with pytest.raises(ModelError, match=r"cut\.tflite"):
        benchmarking.device_cost(floats, target.load("mcu-tflm"))


def test_a_file_is_timed_as_a_target_says(file: Path):
    subject = benchmarking.subject(file, inputs="random", profile=target.load("cpu-litert"))
    assert (subject.target, subject.profile.runtime.name) == ("cpu-litert", "litert")


@pytest.mark.data
@pytest.mark.skipif("EDGEFT_TEST_DATA" not in os.environ, reason="names no folder of data")
def test_the_arena_of_a_file_made_elsewhere():
    path = Path(os.environ["EDGEFT_TEST_DATA"]) / "mlperf_tiny" / "vww_96_int8.tflite"
    cost = benchmarking.device_cost(path, target.load("mcu-tflm"))
    assert cost.memory.ram_layer == "CONV_2D model/activation_2/Relu"
    assert 73_728 < cost.memory.ram_bytes < 110_000  # its two tensors, and what the interpreter keeps
