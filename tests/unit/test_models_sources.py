"""Networks from the user's code, from graphs (.pt2, .onnx) and for tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeft import models, recipe
from edgeft.errors import ModelError
from edgeft.models import networks
from edgeft.preprocessing import ImagePreprocessing, NumericColumn, TabularPreprocessing

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.out = nn.Linear(6, classes)
    def forward(self, x):
        return self.out(self.body(x).mean((2, 3)))

def build(classes, *, input_shape):
    return Net(classes, input_shape[0])

def plain(classes):
    return Net(classes, 3)

def wrong(classes):
    return classes

def failing(classes):
    return nn.Linear(1 / 0, classes)
"""
IMAGES = ImagePreprocessing(size=16, resize=16, channels=1, mean=(0.5,), std=(0.5,))


def build(source: str, base: Path, classes: int = 3, preprocessing=IMAGES, **options):
    return models.build(
        recipe.Model(source=source), classes, base=base, seed=0, preprocessing=preprocessing, **options
    )


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path


def test_user_code_gets_the_hints_that_it_names(code: Path) -> None:
    built = build("net.py:build", code)
    assert built.head == "out" and built.module.body[0].in_channels == 1
    assert built.account.lines() == ["0 tensors loaded", "all 9 tensors are as net.py:build made them"]
    assert models.files(recipe.Model(source="net.py:build"), base=code) == (code / "net.py",)


def test_input_channels_are_adapted_and_said(code: Path) -> None:
    built = build("net.py:plain", code)
    assert built.account.notes[-1] == "body.0 adapted from 3 to 1 input channels"
    assert built.module(torch.zeros(1, 1, 16, 16)).shape == (1, 3)


def test_retraining_user_code_draws_fresh_values(code: Path) -> None:
    first, again = (build("net.py:build", code, fresh=True).module for _ in range(2))
    assert torch.equal(first.out.weight, again.out.weight)
    other = models.build(
        recipe.Model(source="net.py:build"), 3, base=code, seed=1, preprocessing=IMAGES, fresh=True
    )
    assert not torch.equal(first.body[0].weight, other.module.body[0].weight)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.py:build", "cannot be read"),
        ("net.py:biuld", r"no function 'biuld' \(did you mean 'build'"),
        ("net.py:wrong", "returned a int"),
        ("net.py:failing", r"line 22: failing.* raised ZeroDivisionError: division by zero"),
        ("broken.py:build", "line 1: the file raised SyntaxError"),
    ],
)
def test_broken_user_code_is_named(code: Path, source: str, message: str) -> None:
    (code / "broken.py").write_text("def build(:\n")
    with pytest.raises(ModelError, match=message):
        build(source, code)


def table(columns: int) -> TabularPreprocessing:
    return TabularPreprocessing(
        columns=tuple(NumericColumn(name=f"c{i}", mean=0.0, std=1.0) for i in range(columns))
    )


def test_mlp_takes_its_width_from_the_table() -> None:
    mlp = recipe.Model(source="builtin:mlp")
    assert models.default_preprocessing(mlp, "tabular-classification", base=Path()) is None
    built = build("builtin:mlp", Path(), preprocessing=table(7), fresh=True)
    assert built.head == "head" and built.module.features[0].linear.in_features == 7
    assert [layer.out_features for layer in built.module.modules() if isinstance(layer, nn.Linear)] == [
        64,
        32,
        3,
    ]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("builtin:mlp", "image-classification"),
        ("builtin:digitsnet", "tabular-classification"),
        ("keras:m.keras", "text-classification"),
        ("hf:folder", "tabular-classification"),
    ],
)
def test_a_source_of_another_kind_is_refused(source: str, kind: str) -> None:
    with pytest.raises(ModelError, match=f"and task.kind is {kind}") as error:
        models.default_preprocessing(recipe.Model(source=source), kind, base=Path())
    assert "use for example" in error.value.hint


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return networks.resnet8(4).eval()


def export(network: nn.Module, *, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.AUTO},) if dynamic else None
    return torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)


def test_an_exported_program_is_used_as_it_is(network: nn.Module, tmp_path: Path) -> None:
    torch.export.save(export(network, dynamic=True), tmp_path / "m.pt2")
    preprocessing = models.default_preprocessing(recipe.Model(source="pt2:m.pt2"), base=tmp_path)
    assert preprocessing.input_shape == (3, 32, 32)
    built = build("pt2:m.pt2", tmp_path, 4, preprocessing)
    assert not built.trainable and not built.prunable and "neither trains" in built.not_trainable
    x = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(built.module(x), network(x))
    with pytest.raises(ModelError, match="returns 4 values for 3 classes"):
        build("pt2:m.pt2", tmp_path, 3, preprocessing)


def test_a_fixed_batch_and_a_broken_program_are_refused(network: nn.Module, tmp_path: Path) -> None:
    torch.export.save(export(network, dynamic=False), tmp_path / "m.pt2")
    with pytest.raises(ModelError, match="batches of 2 only"):
        build("pt2:m.pt2", tmp_path)
    (tmp_path / "m.pt2").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"no whole torch\.export file"):
        build("pt2:m.pt2", tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_onnx_becomes_trainable_layers(network: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    x = torch.rand(2, 3, 32, 32)
    torch.onnx.export(
        network,
        (x,),
        tmp_path / "m.onnx",
        dynamo=False,
        opset_version=13,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )
    preprocessing = models.default_preprocessing(recipe.Model(source="onnx:m.onnx"), base=tmp_path)
    same = build("onnx:m.onnx", tmp_path, 4, preprocessing, keep_head=True)
    torch.testing.assert_close(same.module(x), network(x), atol=1e-5, rtol=1e-4)
    other = build("onnx:m.onnx", tmp_path, 9, preprocessing)
    other.module.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in other.module.parameters())
    assert torch.export.export(other.module.eval(), (x,)).module()(x).shape == (2, 9)


def test_broken_onnx_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="no whole ONNX file"):
        build("onnx:m.onnx", tmp_path)
