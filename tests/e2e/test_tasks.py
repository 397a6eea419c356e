"""Every kind of task, model source and training method through the command line, on tiny data."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import TARGETS, assert_is_one_clear_message, environment, run_edgeft
from tiny_tasks import (
    write_bert,
    write_fruit,
    write_keras_files,
    write_pictures,
    write_recipe,
    write_sentences,
)

from edgeft import extras
from edgeft import package as packages
from edgeft import recipe as recipes
from edgeft.benchmarking import labelled, scoring
from edgeft.benchmarking.package_gate import gate_package

PTQ = '[quantize]\nmethod = "ptq"\ncalibration = "./few.toml"'
FRUIT = 'kind = "tabular-classification"\ndata = "fruit.csv"'
PHOTOS = 'data = "photos.csv"'
NETWORK = 'source = "networks.py:build"\ninput_size = 32'
METRICS = """
import numpy as np

def mean_chance(labels, probabilities):
    return float(probabilities[np.arange(len(labels)), labels].mean())

def shares(labels, probabilities):
    return {"first": (probabilities.argmax(1) == 0).mean(), "samples": len(labels)}
"""


def run(recipe: Path, *options: str, verb: str = "run") -> dict[str, Any]:
    """Run a recipe to its end and return the report (nothing where the verb ends before one)."""
    done = run_edgeft(verb, recipe.name, "--json", *options, cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    strange = [line for line in done.stderr.splitlines() if not line.startswith(("✓", "!", "ok"))]
    assert not strange, "nothing of the libraries, no traceback"
    report: dict[str, Any] = json.loads(done.stdout)["report"] or {}
    return report


def stage_results(recipe: Path, stage: str) -> dict[str, Any]:
    stored = recipe.parent / "runs" / recipe.stem / "stages" / stage / "results.json"
    results: dict[str, Any] = json.loads(stored.read_text())["results"]
    return results


def in_package(package: Path, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program of a package, far from the package."""
    return subprocess.run(
        [sys.executable, package / program, *arguments],
        capture_output=True,
        text=True,
        cwd=package.anchor,
        env=environment(),
        timeout=60,
        check=False,
    )


def chances(package: Path, sample: str) -> dict[str, float]:
    """Return what example.py prints about a sample: percent by class."""
    done = in_package(package, "example.py", sample)
    assert done.returncode == 0, done.stderr
    printed = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {name: float(percent.rstrip("%")) for percent, name in printed}


# -- tables ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A table's recipe and its report: numbers and a category, full int8 for three runtimes."""
    folder = tmp_path_factory.mktemp("fruit")
    write_fruit(folder / "fruit.csv")
    (folder / "own.py").write_text(METRICS)
    recipe = write_recipe(
        folder,
        "fruit",
        task=FRUIT,
        model='source = "builtin:mlp"',
        stages=f'[finetune]\nmethod = "retrain"\nepochs = 3\nbatch_size = 8\nlearning_rate = 1e-2\n{PTQ}',
        targets=TARGETS,
        evaluate='metrics = ["own.py:mean_chance", "own.py:shares"]',
    )
    return recipe, run(recipe)


def test_table_in_full_int8_for_three_runtimes(fruit: tuple[Path, dict[str, Any]]):
    recipe, report = fruit
    assert report["data"]["classes"] == ["apple", "banana", "melon"]
    for result in report["targets"]:
        coverage = result["artifact"]["coverage"]
        assert coverage["int8_mac_ops"] == coverage["mac_ops"] == 3
        assert result["accuracy"]["value"] > 0.7
        assert result["parity"]["within_2_lsb"] == 1.0
        package = recipe.parent / "runs/fruit/packages" / result["target"]
        assert in_package(package, "verify.py").returncode == 0
        printed = chances(package, "weight=152,colour=red,length=6.5")
        assert max(printed, key=lambda name: printed[name]) == "apple"
        assert printed.keys() == {"apple", "banana", "melon"}


def test_a_package_scored_on_the_data_answers_as_in_the_report(fruit: tuple[Path, dict[str, Any]]):
    recipe, report = fruit
    folder = recipe.parent
    baseline = folder / "baseline.json"
    written = run_edgeft("gate", "runs/fruit", "--baseline", "baseline.json", "--update", cwd=folder)
    assert written.returncode == 0, written.stderr
    for result in report["targets"]:
        made = packages.read(folder / "runs/fruit/packages" / result["target"])
        # The baseline knows which rows of the table were the test split, and what the file said of each.
        judged = gate_package(made, folder / "fruit.csv", baseline)
        assert judged.verdict.outcome == "pass"
        accuracy = next(check for check in judged.verdict.checks if check.name == "accuracy")
        assert accuracy.detail == "the same file, runtime and predictions"
    samples = labelled.read(made, folder / "fruit.csv")
    again, _ = scoring.score(made, labelled.select(samples, report["samples"]["ids"], "fruit.csv"))
    assert again.predictions.tolist() == report["targets"][-1]["accuracy"]["predictions"]
    assert again.labels.tolist() == report["samples"]["labels"]


@pytest.mark.parametrize(
    ("sample", "named"),
    [("weight=152,color=red,length=6", "'colour'"), ("weight=heavy,colour=red,length=6", "'heavy'")],
)
def test_example_tells_what_is_wrong_with_a_row(fruit: tuple[Path, dict[str, Any]], sample: str, named: str):
    done = in_package(fruit[0].parent / "runs/fruit/packages/cpu-onnxruntime", "example.py", sample)
    assert done.returncode == 2
    assert named in done.stderr and "Traceback" not in done.stderr


def test_own_metrics_are_in_the_report(fruit: tuple[Path, dict[str, Any]]):
    recipe, report = fruit
    for result in report["targets"]:
        for key in ("user_metrics", "baseline_user_metrics"):
            assert result[key].keys() == {"mean_chance", "shares.first", "shares.samples"}
            assert 0.3 < result[key]["mean_chance"] <= 1.0
            assert result[key]["shares.samples"] == report["data"]["counts"]["test"]
    assert "mean_chance" in (recipe.parent / "runs/fruit/report.html").read_text()


@pytest.mark.slow
def test_a_trained_network_is_taken_as_it_is(fruit: tuple[Path, dict[str, Any]]):
    recipe, _ = fruit
    again = write_recipe(
        recipe.parent,
        "again",
        task=FRUIT,
        model='source = "builtin:mlp"\nweights = "runs/fruit/stages/01-finetune/model.safetensors"',
        stages='[finetune]\nmethod = "none"',
    )
    report = run(again)
    kept, trained = stage_results(again, "01-finetune"), stage_results(recipe, "01-finetune")
    assert kept["val_accuracy"] == trained["val_accuracy"]
    assert kept["tensors_fresh"] == 0
    (result,) = report["targets"]
    assert result["artifact"]["scheme"] == "float32"
    assert result["parity"]["agreement"] == 1.0


@pytest.mark.slow
def test_imbalance_is_met_by_weights_or_by_sampling(tmp_path: Path):
    write_fruit(tmp_path / "fruit.csv", counts=(120, 14, 120))

    def recall(imbalance: str) -> float:
        recipe = write_recipe(
            tmp_path,
            imbalance,
            task=FRUIT,
            model='source = "builtin:mlp"',
            stages=f'[finetune]\nmethod = "retrain"\nepochs = 2\nbatch_size = 8\nlearning_rate = 3e-3\n'
            f'imbalance = "{imbalance}"',
        )
        (result,) = run(recipe)["targets"]
        banana = result["metrics"]["per_class"][1]
        assert banana["name"] == "banana"
        return float(banana["recall"]["value"])

    ignored = recall("none")
    assert recall("weighted-loss") > ignored
    assert recall("weighted-sampling") > ignored


# -- texts ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_texts_in_float_give_equal_answers_in_three_runtimes(tmp_path: Path):
    pytest.importorskip("transformers")
    write_bert(tmp_path / "bert")
    write_sentences(tmp_path / "sentences.jsonl")
    recipe = write_recipe(
        tmp_path,
        "sentences",
        task='kind = "text-classification"\ndata = "sentences.jsonl"',
        model='source = "hf:bert"',
        stages="[finetune]\nepochs = 6\nbatch_size = 8\nlearning_rate = 3e-3\nhead_lr_multiplier = 1",
        targets=TARGETS,
    )
    report = run(recipe)
    answers = [result["accuracy"]["predictions"] for result in report["targets"]]
    assert answers[0] == answers[1] == answers[2]
    for result in report["targets"]:
        assert result["artifact"]["scheme"] == "float32"
        assert result["parity"]["agreement"] == 1.0
        assert result["accuracy"]["value"] >= 0.9
        package = tmp_path / "runs/sentences/packages" / result["target"]
        printed = chances(package, "where is the dog ?")
        assert max(printed, key=lambda name: printed[name]) == "question"


# -- Keras ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and Keras files in one folder."""
    if not (extras.is_installed("keras") and extras.is_installed("h5py")):
        pytest.skip("needs keras and h5py")
    folder = tmp_path_factory.mktemp("keras")
    write_keras_files(folder)
    write_pictures(folder, count=40, edge=16)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_keras_file_is_tuned_pruned_and_quantized(keras_folder: Path, suffix: str):
    recipe = write_recipe(
        keras_folder,
        f"net-{suffix}",
        task=PHOTOS,
        model=f'source = "keras:net.{suffix}"',
        stages="""
[finetune]
epochs = 1
batch_size = 8
learning_rate = 1e-2
[prune]
epochs = 1
batch_size = 8
[quantize]
epochs = 1
batch_size = 8
calibration = "./few.toml"
""",
    )
    (result,) = (report := run(recipe))["targets"]
    coverage = result["artifact"]["coverage"]
    assert coverage["int8_mac_ops"] == coverage["mac_ops"] == 3
    assert report["model"]["macs"]["after"] < report["model"]["macs"]["before"]
    assert stage_results(recipe, "01-finetune")["tensors_fresh"] == 2
    assert result["parity"]["within_2_lsb"] >= 0.99
    assert result["accuracy"]["value"] >= 0.8


# -- pictures from a table, and methods -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, networks.py, and a recipe for both that is trained already."""
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder)
    teacher = write_recipe(
        folder,
        "teacher",
        task=PHOTOS,
        model='source = "networks.py:large"\ninput_size = 32',
        stages="[finetune]\nepochs = 2\nbatch_size = 8\nlearning_rate = 1e-2",
    )
    run(teacher, verb="finetune")
    return folder


@pytest.mark.slow
def test_features_of_pictures_from_a_table(photos: Path):
    recipe = write_recipe(
        photos,
        "features",
        task=PHOTOS,
        model=NETWORK,
        stages=f'[finetune]\nmethod = "feature-extraction"\nepochs = 3\nlearning_rate = 1e-2\n{PTQ}',
    )
    (result,) = run(recipe)["targets"]
    assert result["accuracy"]["value"] >= 0.9
    results = stage_results(recipe, "01-finetune")
    assert results["feature_seconds"] > 0
    assert len(results["epochs"]) == 3
    picture = photos / "pictures/green-1.png"
    printed = chances(photos / "runs/features/packages/cpu-onnxruntime", str(picture))
    assert printed["green"] > 50


@pytest.mark.slow
def test_a_teacher_of_an_earlier_run_is_followed(photos: Path):
    recipe = write_recipe(
        photos,
        "student",
        task=PHOTOS,
        model=NETWORK,
        stages="""
[finetune]
method = "distill"
epochs = 2
batch_size = 8
learning_rate = 1e-2
feature_weight = 0.5
[finetune.teacher]
source = "networks.py:large"
weights = "runs/teacher/stages/01-finetune/model.safetensors"
""",
    )
    (result,) = run(recipe)["targets"]
    assert result["accuracy"]["value"] >= 0.9
    # What the run has written as its recipe is one, the teacher included.
    written = recipes.load(photos / "runs/student/recipe.toml").finetune
    assert written is not None and written.teacher is not None
    assert written.teacher.source == "networks.py:large"


def test_explain_says_what_would_be_trained_and_writes_nothing(photos: Path):
    weights = "runs/teacher/stages/01-finetune/model.safetensors"
    recipe = write_recipe(
        photos,
        "explained",
        task=PHOTOS,
        model=f'source = "networks.py:large"\ninput_size = 32\nweights = "{weights}"',
        stages="[finetune]\nepochs = 2\ntrain_blocks = 1",
    )
    before = sorted(photos.rglob("*"))
    done = run_edgeft("run", recipe.name, "--explain", cwd=photos)
    assert done.returncode == 0, done.stderr
    assert sorted(photos.rglob("*")) == before
    lines = done.stdout.splitlines()
    account = [line.partition(": networks.py:large: ")[2] for line in lines if line.startswith("model: ")]
    assert "12 tensors loaded" in account
    assert "2 left out: head.bias, head.weight" in account
    assert "2 fresh: head.weight, head.bias" in account
    states = {
        line.split(":")[0]: line.rpartition(", ")[2] for line in lines if line.startswith(("block", "head"))
    }
    assert states == {"block stem.0": "frozen", "block block.0": "trained", "head head": "trained"}
    assert lines[-1].startswith("stages: data, finetune, export")


def test_a_gpu_that_is_not_there(fruit: tuple[Path, dict[str, Any]]):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    recipe, _ = fruit
    done = run_edgeft("run", recipe.name, "--device", "cuda", "--workspace", "elsewhere", cwd=recipe.parent)
    message = assert_is_one_clear_message(done, 5)
    assert "device 'cuda'" in message and "--device cpu" in message
    assert not list((recipe.parent / "elsewhere").rglob("stages/*"))
