"""What a user can get wrong: one clear message, the right exit code, no traceback, and nothing left behind."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, assert_is_one_clear_message, run_edgeft
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40)}
CALIBRATION = """
schema = 1
id = "few"
title = "The extremes of a few samples"
observer = "minmax"
samples = 16
sampling = "stratified"
"""

Recipe = Callable[..., Path]


def picture(name: str, index: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """Return a noisy picture of a class's colour."""
    rng = np.random.default_rng([index, *name.encode()])
    noise = rng.integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(noise + COLOURS[name], 0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two class folders with 24 pictures each."""
    for name in COLOURS:
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(24):
            picture(name, index).save(folder / f"{index:02}.jpg")
    return tmp_path / "photos"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Write a recipe for `photos` beside it, with other lines where asked."""

    def write(
        *,
        top: str = "",
        targets: str = '["cpu-onnxruntime"]',
        task: str = "",
        model: str = 'source = "builtin:resnet8"',
        finetune: str = 'method = "retrain"\nepochs = 3\nbatch_size = 8\nlearning_rate = 3e-3',
    ) -> Path:
        (tmp_path / "few.toml").write_text(CALIBRATION)
        path = tmp_path / "photos.toml"
        path.write_text(f"""{top}
name = "photos"
targets = {targets}
[task]
data = "photos"
{task}
[model]
{model}
[finetune]
{finetune}
[quantize]
method = "ptq"
calibration = "./few.toml"
[measure]
rounds = 2
min_runs = 5
min_seconds = 0.02
""")
        return path

    return write


def refused(recipe: Path, *, code: int = 2, **environment: str) -> str:
    """Run a recipe that must be refused before any work; return the message."""
    done = run_edgeft("run", recipe.name, cwd=recipe.parent, **environment)
    message = assert_is_one_clear_message(done, code)
    runs = recipe.parent / "runs"
    assert not list(runs.rglob("stages/*")), "nothing was begun"
    assert "  -> " in message or "did you mean" in message, "it says what to do"
    return message


# -- data -----------------------------------------------------------------------------------------------------


def test_missing_folder(recipe: Recipe):
    message = refused(recipe())
    assert "task.data: photos does not exist" in message


def test_empty_folder(recipe: Recipe, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    message = refused(recipe())
    assert "photos is empty" in message and "folder of its own" in message


def test_a_folder_without_class_folders(recipe: Recipe, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    picture("red", 0).save(tmp_path / "photos/0.png")
    assert "0.png" in refused(recipe())


def test_a_class_with_one_image(recipe: Recipe, photos: Path):
    (photos / "lonely").mkdir()
    picture("red", 99).save(photos / "lonely/1.png")
    message = refused(recipe())
    assert "class 'lonely' has 1 image(s); at least 3" in message


def test_a_text_file_among_the_images(recipe: Recipe, photos: Path):
    (photos / "red/notes.txt").write_text("buy milk")
    message = refused(recipe())
    assert "red/notes.txt" in message and 'bad_samples = "skip"' in message


def test_a_truncated_image_is_named(recipe: Recipe, photos: Path):
    whole = (photos / "green/03.jpg").read_bytes()
    (photos / "green/03.jpg").write_bytes(whole[: len(whole) // 2])
    done = run_edgeft("run", recipe().name, cwd=photos.parent)
    message = assert_is_one_clear_message(done, 2)
    assert "green/03.jpg" in message and "truncated" in message.lower() and 'bad_samples = "skip"' in message
    assert not list(photos.parent.glob("runs/photos/stages/[0-9]*"))


def test_a_text_file_that_calls_itself_an_image(recipe: Recipe, photos: Path):
    (photos / "green/not-a-photo.jpg").write_text("hello")
    done = run_edgeft("run", recipe().name, cwd=photos.parent)
    message = assert_is_one_clear_message(done, 2)
    assert "green/not-a-photo.jpg" in message


def test_everything_that_a_picture_may_be_and_skipped_ones(recipe: Recipe, tmp_path: Path):
    """Modes, rotations, suffixes and names of all kinds; what is broken is left out, named and counted."""
    red, green = tmp_path / "photos/red apples", tmp_path / "photos/grüne Äpfel 🍏"
    for name, folder in (("red", red), ("green", green)):
        folder.mkdir(parents=True)
        for index in range(40):
            picture(name, index).save(folder / f"{index:02}.png")
        picture(name, 50).convert("RGBA").save(folder / "rgba.png")
        picture(name, 51).convert("P").save(folder / "palette.png")
        picture(name, 52).convert("P").save(folder / "palette.gif")
        picture(name, 53).convert("CMYK").save(folder / "cmyk.jpg")
        picture(name, 54).convert("L").save(folder / "grey.png")
        picture(name, 55).convert("1").save(folder / "bits.png")
        picture(name, 56).convert("I;16").save(folder / "sixteen bits.png")
        picture(name, 57).save(folder / "UPPER.JPG")
        picture(name, 58).save(folder / "photo.webp")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        picture(name, 59, size=(64, 36)).save(folder / "turned.jpg", exif=exif)
        picture(name, 60, size=(300, 33)).save(folder / "wide.png")
        picture(name, 61, size=(2, 2)).save(folder / "tiny.png")
        (folder / ".hidden").write_text("of the system")
    whole = (red / "UPPER.JPG").read_bytes()
    (red / "broken.jpeg").write_bytes(whole[: len(whole) // 2])
    (green / "notes.txt").write_text("not a picture")

    path = recipe(task='bad_samples = "skip"')
    done = run_edgeft("run", path.name, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["data"]["classes"] == sorted(["red apples", "grüne Äpfel 🍏"])
    assert sum(report["data"]["counts"].values()) == 2 * (40 + 12)
    assert len(report["data"]["skipped"]) == 2
    for named in ("red apples/broken.jpeg", "grüne Äpfel 🍏/notes.txt"):
        assert any(named in line for line in report["data"]["skipped"])
        assert any(named in line for line in report["notes"])
    (result,) = report["targets"]
    assert result["accuracy"]["value"] >= 0.8, "red and green are easy to tell"
    page = (tmp_path / "runs/photos/report.html").read_text()
    assert "grüne Äpfel 🍏" in page and "broken.jpeg" in page

    package = tmp_path / "runs/photos/packages/cpu-onnxruntime"
    for photo, expected in ((green / "03.png", "grüne Äpfel 🍏"), (red / "turned.jpg", "red apples")):
        shown = subprocess.run(
            [sys.executable, str(package / "example.py"), str(photo)],
            cwd=ROOT.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert expected in shown.stdout.splitlines()[0]


# -- models and weights ---------------------------------------------------------------------------------------


def test_weights_of_another_architecture(recipe: Recipe, photos: Path):
    import torch
    from safetensors.torch import save_file

    save_file({"conv1.weight": torch.zeros(8, 3, 3, 3)}, photos.parent / "other.safetensors")
    message = refused(
        recipe(model='source = "builtin:resnet8"\nweights = "other.safetensors"', finetune="epochs = 1")
    )
    assert "other.safetensors" in message and "builtin:resnet8" in message
    assert "not in the file" in message and "same architecture" in message


class _System:
    """Unpickling it runs a command: what a malicious weights file does."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (self.command,))


@pytest.mark.parametrize("form", ["torch.save", "pickle"])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(
    recipe: Recipe, photos: Path, tmp_path: Path, form: str
):
    import torch

    proof, weights = tmp_path / "ran", tmp_path / "weights.pth"
    if form == "torch.save":
        torch.save({"head.weight": _System(f"touch {proof}")}, weights)
    else:
        weights.write_bytes(pickle.dumps(_System(f"touch {proof}"), protocol=2))
    # The bomb is live: plain unpickling of the same content runs it.
    pickle.loads(pickle.dumps(_System(f"touch {proof}")))
    assert proof.exists()
    proof.unlink()

    message = refused(
        recipe(model='source = "builtin:resnet8"\nweights = "weights.pth"', finetune="epochs = 1")
    )
    assert not proof.exists(), "the code in the file must not run"
    assert "weights.pth holds more than tensors" in message and "safetensors" in message


def test_a_corrupt_safetensors_file(recipe: Recipe, photos: Path):
    import torch
    from safetensors.torch import save_file

    path = photos.parent / "cut.safetensors"
    save_file({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    message = refused(
        recipe(model='source = "builtin:resnet8"\nweights = "cut.safetensors"', finetune="epochs = 1")
    )
    assert "cut.safetensors is not a whole safetensors file" in message


def test_missing_weights(recipe: Recipe, photos: Path):
    message = refused(recipe(model='source = "builtin:resnet8"\nweights = "gone.pth"', finetune="epochs = 1"))
    assert "gone.pth does not exist" in message
    message = refused(recipe(finetune="epochs = 1"))
    assert "brings no weights" in message and "retrain" in message


def test_an_unknown_network_is_told_the_nearest(recipe: Recipe, photos: Path):
    assert "did you mean 'resnet8'" in refused(recipe(model='source = "builtin:resnet9"'))


def test_an_input_that_is_too_small_for_the_network(recipe: Recipe, photos: Path):
    message = refused(recipe(model='source = "torchvision:mobilenet_v2"\ninput_size = 8'))
    assert "8 x 8" in message and "input_size" in message


# -- recipe, targets, host ------------------------------------------------------------------------------------


def test_a_misspelt_key_names_file_key_and_the_nearest(recipe: Recipe, photos: Path):
    path = recipe(finetune='method = "retrain"\nepoch = 3')
    message = refused(path)
    assert "photos.toml: unknown key 'finetune.epoch' (did you mean 'epochs'?)" in message


def test_a_missing_recipe_and_one_that_is_not_toml(tmp_path: Path):
    done = run_edgeft("run", "nowhere.toml", cwd=tmp_path)
    assert "nowhere.toml: no such file" in assert_is_one_clear_message(done, 2)
    (tmp_path / "broken.toml").write_text("name = \n")
    done = run_edgeft("run", "broken.toml", cwd=tmp_path)
    message = assert_is_one_clear_message(done, 2)
    assert "broken.toml: not valid TOML" in message and "line 1" in message
    assert not (tmp_path / "runs").exists()


def test_an_unknown_target_is_told_the_nearest(recipe: Recipe, photos: Path):
    message = refused(recipe(targets='["cpu-litter"]'))
    assert "cpu-litter" in message and "did you mean 'cpu-litert'" in message


def test_calibration_that_asks_for_more_than_there_is(recipe: Recipe, photos: Path):
    path = recipe()
    path.write_text(path.read_text().replace("./few.toml", "minmax"))
    message = refused(path)
    assert "128 samples" in message and "'minmax'" in message


@pytest.mark.parametrize(
    ("target", "module", "extra"),
    [("cpu-openvino", "openvino", "openvino"), ("cpu-litert", "litert_torch", "tflite")],
)
def test_a_missing_package_is_told_with_its_pip_line(
    recipe: Recipe, photos: Path, tmp_path: Path, target: str, module: str, extra: str
):
    """Python finds no such module, as where the extra is not installed; all else is as it is."""
    hider = tmp_path / "hider"
    hider.mkdir()
    (hider / "sitecustomize.py").write_text(f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
""")
    path = recipe(targets=f'["cpu-onnxruntime", "{target}"]')
    message = refused(path, code=5, PYTHONPATH=str(hider))
    assert f"target {target} needs the package" in message
    assert f"pip install 'edgeft[{extra}]'" in message
    checked = run_edgeft("check", path.name, "--json", cwd=tmp_path, PYTHONPATH=str(hider))
    assert checked.returncode == 5
    assert any(f"edgeft[{extra}]" in finding["hint"] for finding in json.loads(checked.stdout)["findings"])


@pytest.mark.parametrize("workspace", ["a-file/run", "/proc/edgeft-run"])
def test_an_output_folder_that_cannot_be_written(recipe: Recipe, photos: Path, workspace: str):
    """Below a file and in /proc: no permission bits, which root passes, but the same refusal."""
    (photos.parent / "a-file").write_text("in the way")
    done = run_edgeft("run", recipe().name, "--workspace", workspace, cwd=photos.parent)
    message = assert_is_one_clear_message(done, 2)
    assert workspace.partition("/run")[0] in message and "--workspace" in message
    assert (photos.parent / "a-file").read_text() == "in the way"


def test_a_folder_of_something_else_is_not_used_as_a_workspace(recipe: Recipe, photos: Path):
    before = sorted(photos.rglob("*"))
    done = run_edgeft("run", recipe().name, "--workspace", "photos", cwd=photos.parent)
    message = assert_is_one_clear_message(done, 2)
    assert "neither empty nor a workspace" in message
    assert sorted(photos.rglob("*")) == before


def test_check_says_everything_at_once(recipe: Recipe, photos: Path):
    path = recipe(targets='["cpu-litter"]', model='source = "builtin:resnet9"')
    path.write_text(path.read_text().replace("./few.toml", "minmax"))
    done = run_edgeft("check", path.name, cwd=photos.parent)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for told in ("cpu-litert", "resnet8", "128 samples"):
        assert told in done.stdout
    assert not (photos.parent / "runs").exists()


def test_check_as_json_with_an_error(recipe: Recipe, tmp_path: Path):
    done = run_edgeft("check", recipe().name, "--json", cwd=tmp_path)
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    errors = [finding for finding in answer["findings"] if finding["level"] == "error"]
    assert len(errors) == 1, "what is wrong with the data is said once"
    assert "does not exist" in errors[0]["text"]


def test_errors_as_json(recipe: Recipe, tmp_path: Path):
    done = run_edgeft("run", recipe().name, "--json", cwd=tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "DataError" and error["exit_code"] == 2
    assert "does not exist" in error["message"] and error["hint"]
