"""`edgeft quantize`: sensitivity, layers in float by name, and auto, as far as the report."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from command_line import Finished, assert_is_one_clear_message, digits_recipe, run_edgeft

ONE = ("cpu-onnxruntime",)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The sensitivity of a small network that has hardly been trained."""
    folder = tmp_path_factory.mktemp("sensitivity")
    recipe = digits_recipe(targets=ONE, finetune="epochs = 1", quantize='method = "ptq"')
    recipe = recipe.replace('[prune]\nepochs = 4\naugment = "crop"\n', "")
    (folder / "digits.toml").write_text(recipe)
    done = run_edgeft("quantize", "digits.toml", "--sensitivity", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Finished(folder=folder, report=json.loads(done.stdout), stderr=done.stderr)


def test_sensitivity_is_written_and_printed(measured: Finished):
    (table,) = measured.report["sensitivity"]
    stored = json.loads((measured.workspace / "sensitivity.json").read_text())
    assert table == stored
    assert (stored["schema"], stored["version"], stored["numerics"]) == ("edgeft-sensitivity", 1, "")
    layers = stored["layers"]
    assert len(layers) > 3
    assert all(layer["kl"] >= 0 and 0 <= layer["range_use"] <= 1 for layer in layers)
    assert sum(layer["mac_share"] for layer in layers) == pytest.approx(1)
    picture = ET.parse(measured.workspace / "sensitivity.svg")
    assert picture.getroot().tag.endswith("svg")
    stages = [path.name for path in (measured.workspace / "stages").iterdir()]
    assert not any("quantize" in name for name in stages), "it was asked to measure, not to quantize"

    done = run_edgeft("quantize", "digits.toml", "--sensitivity", cwd=measured.folder)
    assert done.returncode == 0, done.stderr
    worst = max(layers, key=lambda layer: layer["kl"])["layer"]
    rows = [line for line in done.stdout.splitlines() if any(layer["layer"] in line for layer in layers)]
    assert worst in rows[-len(layers)]
    assert "sensitivity.svg" in done.stdout


@pytest.mark.slow
def test_layers_stay_float_by_name_and_the_report_says_so(measured: Finished):
    layers = [layer["layer"] for layer in measured.report["sensitivity"][0]["layers"]]
    recipe = measured.folder / "digits.toml"
    named = [layers[0], layers[-1]]
    text = recipe.read_text().replace('method = "ptq"', f'method = "ptq"\nfloat_layers = {json.dumps(named)}')
    recipe.write_text(text)
    done = run_edgeft("run", "digits.toml", "--json", cwd=measured.folder)
    assert done.returncode == 0, done.stderr
    assert "2 taken back to float" in done.stderr
    report = json.loads(done.stdout)["report"]
    (target,) = report["targets"]
    coverage = target["artifact"]["coverage"]
    assert (coverage["int8_mac_ops"], coverage["mac_ops"]) == (len(layers) - 2, len(layers))
    assert target["parity"]["agreement"] > 0.99
    (record,) = report["quantize"]
    assert record["float_layers"] == named
    assert [layer["layer"] for layer in record["sensitivity"]] == layers
    page = (measured.workspace / "report.html").read_text()
    assert "Layers in float" in page
    assert all(f"<code>{name}</code>" in page for name in named)


@pytest.mark.slow
def test_auto_says_what_it_tried(tmp_path: Path):
    recipe = digits_recipe(targets=ONE, finetune="epochs = 2", quantize='method = "auto"')
    (tmp_path / "digits.toml").write_text(recipe.replace('[prune]\nepochs = 4\naugment = "crop"\n', ""))
    done = run_edgeft("quantize", "digits.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    workspace = tmp_path / "runs" / "digits"
    assert "max_accuracy_drop = 0.01" in (workspace / "recipe.toml").read_text()
    (folder,) = (workspace / "stages").glob("*-quantize*")
    results = json.loads((folder / "results.json").read_text())["results"]
    assert results["attempts"][0]["method"] == "ptq"
    chosen = [attempt for attempt in results["attempts"] if attempt["holds"]][-1]
    assert chosen["val_accuracy"] == results["val_accuracy"]
    assert results["val_accuracy_float"] - results["val_accuracy"] <= 0.01 + 1e-9
    assert results["method"] in done.stdout


def test_a_name_that_is_no_layer_is_one_clear_message(tmp_path: Path):
    recipe = digits_recipe(
        targets=ONE, finetune='method = "none"', quantize='method = "ptq"\nfloat_layers = ["heat"]'
    )
    recipe = recipe.replace('augment = "crop"\n', "", 1).replace(
        '[prune]\nepochs = 4\naugment = "crop"\n', ""
    )
    (tmp_path / "digits.toml").write_text(recipe)
    done = run_edgeft("quantize", "digits.toml", cwd=tmp_path)
    message = assert_is_one_clear_message(done, 2)
    assert "no int8 layer is called 'heat'" in message
    assert "--sensitivity" in message
