"""What the doctor says of this host: everything here is looked up for real, nothing is stood in for."""

import json
import subprocess
import sys

import pytest

from edgeft import diagnosis, extras, resources, target
from edgeft.cli.main import main
from edgeft.errors import ExitCode


def _diagnosed(name: str, *, runtime=None, **changes) -> diagnosis.TargetDiagnosis:
    profile = target.load(name)
    profile = profile.model_copy(
        update={"runtime": profile.runtime.model_copy(update=runtime or {}), "isa_floor": [], **changes}
    )
    (found,) = diagnosis.diagnose_targets([profile])
    return found


def test_everything_is_listed(capsys):
    assert main(["doctor", "--json"]) == ExitCode.OK
    record = json.loads(capsys.readouterr().out)
    assert [each["target"] for each in record["targets"]] == list(resources.names("targets"))
    assert {each["distribution"] for each in record["packages"]} == {d for d, _ in extras.PACKAGES.values()}
    assert all(each["enables"] for each in record["packages"])
    assert record["host"]["cores"] >= 1 and record["host"]["memory_bytes"] > 1e8
    for each in record["targets"]:
        assert each["makes"] == (not each["obstacles"]) and (each["runs"] or each["obstacles"])
        assert all(obstacle["cure"] for obstacle in each["obstacles"])


def test_for_people_and_without_torch():
    code = "import sys; from edgeft.cli.main import main; main(['doctor']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "cpu-openvino " in done.stdout and "GiB" in done.stdout and "core " in done.stdout


def test_a_runtime_that_is_here():
    assert _diagnosed("cpu-onnxruntime", runtime={"requires": ["onnxruntime"]}).makes


def test_a_cpu_below_the_floor():
    found = _diagnosed("cpu-onnxruntime", isa_floor=["warp_drive"])
    assert not found.runs
    assert found.obstacles[0].reason.startswith("this CPU has none of warp_drive; ")
    assert "cpu-onnxruntime-avx2" in found.obstacles[0].cure


def test_packages_that_are_missing():
    found = _diagnosed("cpu-litert", runtime={"requires": ["no_such_runtime"]})
    assert not found.runs and found.obstacles[0].cure == "pip install no_such_runtime"
    found = _diagnosed("cpu-onnxruntime", runtime={"requires": ["onnxruntime", "no_such_converter"]})
    assert found.runs and not found.makes and "no_such_converter" in found.obstacles[0].reason


def test_a_runtime_that_is_installed_and_broken(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libbroken.so: wrong ELF class')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = _diagnosed("cpu-onnxruntime")
    assert not found.runs and found.obstacles[0].reason.endswith("ImportError: libbroken.so: wrong ELF class")
    assert found.obstacles[0].cure == "pip install --force-reinstall onnxruntime"


@pytest.mark.parametrize(
    ("name", "device", "cure"),
    [
        ("gpu-cuda-onnxruntime", "cuda", "onnxruntime-gpu"),
        ("gpu-intel-openvino", "GPU", "Intel GPU"),
        ("npu-intel-openvino", "NPU", "Intel Core Ultra"),
        ("gpu-cuda-torch", "cuda", "torch with CUDA"),
    ],
)
def test_a_device_that_is_not_here(name: str, device: str, cure: str):
    pytest.importorskip(target.load(name).runtime.requires[0])
    found = _diagnosed(name)
    if found.runs:
        pytest.skip(f"this host has {device}")
    assert f"sees no device {device!r} here, only" in found.obstacles[0].reason
    assert cure in found.obstacles[0].cure
