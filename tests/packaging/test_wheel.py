"""The built wheel, installed beside nothing else of the checkout and used from outside of it."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {path.stem for path in (ROOT / "targets").glob("*.toml")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    [built] = folder.glob("edgeft-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Callable[..., str]:
    """Install the wheel into a folder of its own; return a function that runs Python on it from elsewhere."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    # Dependencies come from the environment; PYTHONPATH precedes it and so hides an editable edgeft there.
    environment = os.environ | {"PYTHONPATH": str(site)}

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        run = subprocess.run(
            command, capture_output=True, text=True, cwd=elsewhere, env=environment, check=False
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert str(site) in python("-c", "import edgeft; print(edgeft.__file__)")
    return python


def test_the_installed_command_knows_the_shipped_targets(installed):
    records = json.loads(installed("-m", "edgeft", "targets", "--json"))
    assert (
        {record["target"] for record in records}
        == SHIPPED
        >= {"cpu-litert", "cpu-onnxruntime", "cpu-openvino"}
    )
    assert 'id = "cpu-openvino"' in installed("-m", "edgeft", "targets", "cpu-openvino")


def test_the_installed_command_knows_the_shipped_calibration_recipes(installed):
    code = """if True:
        from edgeft import calibration, resources
        for name in resources.names("calibration"):
            print(calibration.load(name).id)
    """
    assert installed("-c", code).split() == sorted(
        path.stem for path in (ROOT / "calibration").glob("*.toml")
    )


def test_everything_that_is_no_module_is_in_the_wheel(wheel):
    """Weights, templates, device scripts and py.typed: what a forgotten include would lose."""
    files = [path.relative_to(ROOT) for path in (ROOT / "edgeft").rglob("*") if path.is_file()]
    files = [path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)]
    inside = set(zipfile.ZipFile(wheel).namelist())
    missing = {path.as_posix() for path in files} - inside
    assert not missing
    assert "edgeft/py.typed" in inside
    for pattern in (
        "edgeft/models/weights/*.safetensors",
        "edgeft/reporting/templates/*",
        "edgeft/device/*.py",
    ):
        assert any(Path(name).match(pattern) for name in inside), pattern


def test_nothing_else_is_in_the_wheel(wheel):
    roots = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"edgeft"}


def test_metadata_names_license_and_command(wheel):
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
    text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text and "Requires-Python: >=3.11" in text
    assert not [
        line for line in text.splitlines() if line.startswith("Requires-Dist: torch") and "extra" not in line
    ]
    [scripts] = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
    assert "edgeft = edgeft.cli.main:main" in archive.read(scripts).decode()
    [text_of_license] = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert "Apache License" in archive.read(text_of_license).decode()
