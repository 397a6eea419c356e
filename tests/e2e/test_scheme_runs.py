"""A whole run of the digits for every scheme that needs neither training nor calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import TARGETS, digits_recipe, run_edgeft

pytestmark = pytest.mark.slow


def unpruned(targets: tuple[str, ...], scheme: str) -> str:
    """Return a recipe whose files differ from the float ones by the scheme alone."""
    text = digits_recipe(targets=targets, quantize=f'scheme = "{scheme}"')
    before, _, rest = text.partition("[prune]")
    return before + rest[rest.index("[quantize]") :]


@pytest.mark.parametrize(
    ("scheme", "stored", "share"),
    [
        ("fp16", "float16", 0.65),
        ("int8-weights", "int8-weights", 0.45),
        ("int8-dynamic", "int8-dynamic", 1.0),
    ],
)
def test_a_run_stores_weights_as_the_scheme_says(scheme: str, stored: str, share: float, tmp_path: Path):
    targets = TARGETS if scheme != "int8-dynamic" else ("cpu-onnxruntime",)
    recipe = tmp_path / "digits.toml"
    recipe.write_text(unpruned(targets, scheme))
    done = run_edgeft("run", recipe, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    (workspace,) = (tmp_path / "runs").iterdir()
    report = json.loads((workspace / "report.json").read_text())
    assert [result["target"] for result in report["targets"]] == list(targets)
    for result in report["targets"]:
        assert result["artifact"]["scheme"] == stored
        assert result["parity"]["agreement"] >= 0.99
        assert abs(result["accuracy"]["value"] - result["baseline_accuracy"]["value"]) <= 0.01
        if result["target"] != "cpu-openvino":  # whose graph is a text of its own size
            assert result["artifact"]["size_bytes"] <= share * result["baseline"]["size_bytes"]
        checks = {c["name"] for c in report["verdict"]["checks"] if c["target"] == result["target"]}
        assert checks == {"accuracy", "size", "parity", "speed"}, "coverage is for int8 alone"
        assert (workspace / "packages" / result["target"] / "manifest.json").is_file()


def test_a_scheme_that_a_target_cannot_run_is_found_beforehand(tmp_path: Path):
    recipe = tmp_path / "digits.toml"
    recipe.write_text(unpruned(TARGETS, "int8-dynamic"))
    done = run_edgeft("check", recipe, cwd=tmp_path)
    assert done.returncode != 0
    text = " ".join((done.stdout + done.stderr).split())
    assert "cpu-openvino: openvino files of openvino cannot hold scheme 'int8-dynamic'" in text
    assert not (tmp_path / "runs").exists()
