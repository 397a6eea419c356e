"""The Python API on a user's own module and loaders: every stage works, and their module stays as it is."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import TARGETS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgeft
from edgeft.errors import ConfigError
from edgeft.types import FloatModel, QuantModel

CLASSES = ("circle", "square", "stripe")
SETTINGS = {"batch_size": 16, "augment": "none"}


class OwnNet(nn.Module):
    """What a user may bring: plain layers, dropout, a skip connection, and nothing of edgeft."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(32, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.stem(x))
        x = torch.relu(x + self.branch(x))
        return self.head(self.drop(x.mean(dim=(2, 3))))


def pictures(count: int, seed: int) -> TensorDataset:
    """Return noisy circles, squares and stripes: (N, 1, 16, 16) float32, already normalised."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] - 7.5
    shapes = np.stack([np.hypot(x, y) < 5, np.maximum(abs(x), abs(y)) < 4, (x // 2) % 2 == 0]).astype(
        np.float32
    )
    labels = np.arange(count) % len(CLASSES)
    noisy = 2 * shapes[labels] - 1 + rng.normal(0, 0.4, (count, 16, 16))
    return TensorDataset(torch.from_numpy(noisy[:, None].astype(np.float32)), torch.from_numpy(labels))


@pytest.fixture(scope="module")
def train() -> DataLoader:
    return DataLoader(
        pictures(240, 0), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture(scope="module")
def val() -> DataLoader:
    return DataLoader(pictures(60, 1), batch_size=32)


@pytest.fixture(scope="module")
def own() -> FloatModel:
    """The user's untrained network, left in training mode as a constructor leaves it."""
    torch.manual_seed(0)
    preprocessing = edgeft.ImagePreprocessing(size=16, resize=16, channels=1, mean=(0.5,), std=(0.5,))
    return FloatModel(module=OwnNet(), preprocessing=preprocessing, labels=CLASSES)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Check that a call changes no tensor, no training flag, no hook and no gradient of the caller's module."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flags = {name: part.training for name, part in module.named_modules()}
    types = {name: type(part) for name, part in module.named_modules()}
    wanted = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    gradients = {name: _copied(parameter.grad) for name, parameter in module.named_parameters()}
    yield
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert {name: type(part) for name, part in module.named_modules()} == types
    assert {name: parameter.requires_grad for name, parameter in module.named_parameters()} == wanted
    for name, parameter in module.named_parameters():
        before_grad, after_grad = gradients[name], parameter.grad
        assert (before_grad is None) == (after_grad is None), name
        assert before_grad is None or torch.equal(before_grad, after_grad), name
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(part, kind) for part in module.modules() for kind in hooks)


def _copied(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


def accuracy(model: FloatModel | QuantModel, val: DataLoader) -> float:
    network = model.module if isinstance(model, FloatModel) else model.program
    with torch.inference_mode():
        right = [(network(inputs).argmax(1) == labels).float() for inputs, labels in val]
    return float(torch.cat(right).mean())


@pytest.fixture(scope="module")
def tuned(own: FloatModel, train: DataLoader, val: DataLoader) -> FloatModel:
    with unchanged(own.module):
        return edgeft.finetune(own, train, val, method="retrain", epochs=3, learning_rate=5e-3, **SETTINGS)


@pytest.fixture(scope="module")
def pruned(tuned: FloatModel, train: DataLoader, val: DataLoader) -> FloatModel:
    with unchanged(tuned.module):
        return edgeft.prune(tuned, train, val, budget={"macs": 0.6}, epochs=2, learning_rate=2e-3, **SETTINGS)


@pytest.fixture(scope="module")
def program(pruned: FloatModel, train: DataLoader, val: DataLoader) -> QuantModel:
    with unchanged(pruned.module):
        return edgeft.quantize(pruned, train, val, method="qat", epochs=2, **SETTINGS)


def test_finetune_learns(own: FloatModel, tuned: FloatModel, val: DataLoader):
    assert own.module.training and not tuned.module.training
    assert accuracy(tuned, val) > 0.9
    record = tuned.history[-1]
    assert record.name == "finetune" and record.results["val_accuracy"] == pytest.approx(accuracy(tuned, val))
    assert own.history == (), "what the user holds is not written to"


def test_prune_gives_a_smaller_network_of_plain_layers(
    tuned: FloatModel, pruned: FloatModel, val: DataLoader
):
    plan = pruned.history[-1].results["plan"]
    assert plan["macs_after"] <= 0.6 * plan["macs_before"]
    assert pruned.module.stem[0].out_channels < 16 or pruned.module.branch[0].out_channels < 32
    assert type(pruned.module) is OwnNet
    assert accuracy(pruned, val) > 0.85


def test_quantize_gives_integer_layers(program: QuantModel, val: DataLoader):
    assert len(program.layers) == 4 and not program.float_ops
    assert all(layer.weight.dtype == np.int8 for layer in program.layers)
    assert accuracy(program, val) > 0.85
    assert [record.name for record in program.history] == ["finetune", "prune", "quantize"]


def test_ptq_trains_nothing(tuned: FloatModel, train: DataLoader, val: DataLoader):
    with unchanged(tuned.module):
        calibrated = edgeft.quantize(tuned, train, val, method="ptq", **SETTINGS)
    assert accuracy(calibrated, val) > 0.85
    assert "epochs" not in calibrated.history[-1].results


@pytest.mark.parametrize("target", TARGETS)
def test_export_and_benchmark(
    program: QuantModel, pruned: FloatModel, val: DataLoader, tmp_path: Path, target: str
):
    inputs = next(iter(val))[0].numpy()
    with unchanged(pruned.module):
        artifact = edgeft.export(program, target, tmp_path / "int8")
    assert artifact.coverage.ratio == 1.0 and artifact.path.is_file()
    latency = edgeft.benchmark(artifact, target, inputs, rounds=2, min_runs=5, min_seconds=0.02)
    assert len(latency.samples_ms) == 2 and latency.p50_ms > 0
    assert set(latency.runtime.mac_precision) == {"int8"}


def test_a_float_model_exports_too(tuned: FloatModel, tmp_path: Path):
    with unchanged(tuned.module):
        artifact = edgeft.export(tuned, "cpu-onnxruntime", tmp_path)
    assert artifact.scheme == "float32" and artifact.coverage.int8_mac_ops == 0


def test_a_network_in_training_mode_gives_what_it_gives_in_evaluation_mode(
    tuned: FloatModel, train: DataLoader, val: DataLoader, tmp_path: Path
):
    """A user's module may come in either mode: the result is the same, and the mode stays."""
    noisy = dataclasses.replace(tuned, module=copy.deepcopy(tuned.module).train())
    with unchanged(noisy.module):
        as_trained = edgeft.finetune(noisy, train, val, method="none")
        assert as_trained.history[-1].results["val_accuracy"] == pytest.approx(accuracy(tuned, val))
        artifact = edgeft.export(noisy, "cpu-onnxruntime", tmp_path / "train")
    expected = edgeft.export(tuned, "cpu-onnxruntime", tmp_path / "eval")
    assert "Dropout" not in [node.op_type for node in onnx.load(artifact.path).graph.node]
    assert artifact.sha256 == expected.sha256
    with unchanged(noisy.module):
        calibrated = edgeft.quantize(noisy, train, val, method="ptq", **SETTINGS)
    assert calibrated.history[-1].results["val_accuracy_float"] == pytest.approx(accuracy(tuned, val))
    with unchanged(noisy.module):
        cut = edgeft.prune(noisy, train, val, budget={"macs": 0.6}, epochs=1, **SETTINGS)
    assert not cut.module.training


@pytest.mark.parametrize(
    ("verb", "settings", "told"),
    [
        ("finetune", {"epoch": 3}, "did you mean 'epochs'"),
        ("prune", {"budget": {"mac": 0.5}}, "did you mean 'macs'"),
        ("quantize", {"metod": "ptq"}, "did you mean 'method'"),
        ("finetune", {"epochs": 0}, "epochs"),
        ("quantize", {"method": "magic"}, "'ptq'"),
    ],
)
def test_a_wrong_setting_is_explained(
    own: FloatModel, train: DataLoader, val: DataLoader, verb, settings, told
):
    with unchanged(own.module), pytest.raises(ConfigError) as raised:
        getattr(edgeft, verb)(own, train, val, **settings)
    assert told in str(raised.value) and f"edgeft.{verb}" in str(raised.value)


def test_an_unknown_target_is_told_the_nearest(tuned: FloatModel, tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'cpu-onnxruntime'"):
        edgeft.export(tuned, "cpu-onnx-runtime", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_too_few_calibration_samples_are_an_error(tuned: FloatModel, val: DataLoader):
    few = DataLoader(pictures(30, 3), batch_size=10)
    with (
        unchanged(tuned.module),
        pytest.raises(edgeft.EdgeftError, match="asks for 128 samples, there are 30"),
    ):
        edgeft.quantize(tuned, few, val, method="ptq")
