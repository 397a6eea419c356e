"""The README tells the truth: its recipe is valid, its commands exist, its Python runs as it stands there."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgeft import pytest_plugin, schema, target
from edgeft.recipe import Recipe
from edgeft.target import TargetProfile

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def block_with(text: str) -> str:
    (code,) = (code for code in blocks("python") if text in code)
    return code


def commands() -> list[list[str]]:
    text = "\n".join(blocks("sh")) + "\n" + "\n".join(re.findall(r"`(edgeft [a-z][^`]*)`", README))
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and line[0] == "edgeft"]


def test_recipes_are_valid():
    found = [tomllib.loads(text) for text in blocks("toml")]
    whole = [recipe for recipe in found if "task" in recipe]
    assert [schema.validate(recipe, Recipe, "README").name for recipe in whole] == ["flowers", "questions"]
    cpu = target.load("cpu-litert").model_dump(mode="json", by_alias=True)
    for part in (part for part in found if "task" not in part):
        if "runtime" in part:
            schema.validate(cpu | {"runtime": cpu["runtime"] | part["runtime"]}, TargetProfile, "README")
        else:
            schema.validate(whole[0] | part, Recipe, "README")


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command_exists_with_these_options(command):
    verb = command[1].rstrip(",")
    shown = subprocess.run(
        [sys.executable, "-m", "edgeft", verb, "--help"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0
    for option in (word for word in command if word.startswith("--")):
        assert option in shown.stdout


def test_python_runs(tmp_path, monkeypatch, capsys):
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    y = torch.arange(160) % 2
    x = 0.3 * torch.randn(160, 3, 32, 32) + (2.0 * y - 1).reshape(-1, 1, 1, 1)
    train = DataLoader(TensorDataset(x[:128], y[:128]), batch_size=32, shuffle=True)
    val = DataLoader(TensorDataset(x[128:], y[128:]), batch_size=32)
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)),
    )
    code = block_with("edgeft.FloatModel(")
    names = {"net": net, "train": train, "val": val, "inputs": x[:8].numpy().astype(np.float32)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["artifact"].coverage.ratio == 1.0
    assert names["latency"].p50_ms > 0
    assert "int8_mac_ops=3" in capsys.readouterr().out


def test_surgery_runs():
    import torch

    from edgeft import extras

    code = block_with("replace_head")
    net = extras.load("torchvision.models", "this test").mobilenet_v2(width_mult=0.25)
    names = {"net": net, "torch": torch}
    exec(compile(code, "README.md", "exec"), names)
    assert names["head"] == "classifier.1" and net.classifier[1].out_features == 5
    assert names["frozen"] and not net.features[10].conv[0][0].weight.requires_grad
    assert net.features[11].conv[0][0].weight.requires_grad and net.features[0][0].in_channels == 1
    assert names["features"](torch.zeros(1, 3, 224, 224)).shape[2:] == (7, 7)


def test_the_fixture_takes_what_is_shown():
    (call,) = (
        node for node in ast.walk(ast.parse(block_with("def test_release"))) if isinstance(node, ast.Call)
    )
    taken = inspect.signature(pytest_plugin.EdgeftGate.__call__)
    taken.bind(None, *call.args, **{keyword.arg: keyword.value for keyword in call.keywords})
