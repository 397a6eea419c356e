"""The calibration table: written, read, compared, applied."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgeft import calibration, quantization
from edgeft.errors import ConfigError, QuantizationError
from edgeft.preprocessing import ImagePreprocessing
from edgeft.quantization import contract
from edgeft.quantization.ranges import RangeTable, _tensor_range
from edgeft.target import Numerics
from edgeft.types import FloatModel

SIZE = 8


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        y = y + self.b(y)
        y = y + torch.relu(y)
        return self.head(y.mean([2, 3]))


def source(module: nn.Module | None = None) -> FloatModel:
    torch.manual_seed(0)
    picture = ImagePreprocessing(size=SIZE, resize=SIZE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return FloatModel(module=(module or Residual()).eval(), preprocessing=picture, labels=("a", "b", "c"))


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def calibrated(numerics: Numerics | None = None, scale: float = 1.0) -> GraphModule:
    graph = quantization.prepare(source(), numerics=numerics)
    quantization.calibrate(graph, [images() * scale], calibration.load("minmax"))
    return graph


def table() -> RangeTable:
    return quantization.range_table(calibrated())


def test_tensors_have_readable_names() -> None:
    names = list(table())
    assert names[0] == "input"
    assert names[-1] == "head:linear"
    assert {"b:conv2d", "add", "add#2", "relu", "relu#2"} <= set(names)


def test_graph_program_and_saved_program_have_one_table(tmp_path: Path) -> None:
    graph = calibrated()
    program = quantization.convert(graph, source(), images())
    assert quantization.range_table(program) == quantization.range_table(graph)
    quantization.save(program, tmp_path)
    assert quantization.read_ranges(tmp_path / "ranges.json") == quantization.range_table(graph)
    loaded = quantization.load(tmp_path, source())
    assert quantization.range_table(loaded) == quantization.range_table(graph)


def test_a_table_has_one_line_per_tensor(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    quantization.write_ranges(table(), path)
    lines = path.read_text().splitlines()
    assert sum('"tensor"' in line for line in lines) == len(table()) == len(lines) - 2
    quantization.write_ranges(quantization.read_ranges(path), tmp_path / "again.json")
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()


@pytest.mark.parametrize("numerics", [Numerics(), Numerics(symmetric_activations=True)])
def test_an_applied_table_gives_the_program_of_the_calibrated_graph(
    tmp_path: Path, numerics: Numerics
) -> None:
    graph = calibrated(numerics)
    quantization.write_ranges(quantization.range_table(graph), tmp_path / "ranges.json")
    fresh = quantization.prepare(source(), numerics=numerics)
    quantization.apply_ranges(fresh, quantization.read_ranges(tmp_path / "ranges.json"))
    assert quantization.range_table(fresh) == quantization.range_table(graph)
    expected, got = (quantization.convert(g, source(), images()).program for g in (graph, fresh))
    assert torch.equal(expected(images(1)), got(images(1)))


def test_the_contract_makes_the_same_scale_of_the_stored_ends() -> None:
    rng = np.random.default_rng(0)
    for low, high in rng.exponential(size=(3_000, 2)) * 10.0 ** rng.integers(-3, 4, (3_000, 1)):
        scale, zero_point = contract.activation_qparams(torch.tensor(-low), torch.tensor(high))
        entry = _tensor_range(float(scale), int(zero_point))
        again, zero_again = contract.activation_qparams(torch.tensor(entry.min), torch.tensor(entry.max))
        assert (float(scale), int(zero_point)) == (float(again), int(zero_again))


def test_a_difference_names_the_tensors_the_most_changed_first() -> None:
    before = table()
    after = dict(quantization.range_table(calibrated(scale=1.5)))
    del after["input"]
    after["new"] = after["b:conv2d"]
    after["relu"] = _tensor_range(before["relu"].scale * 9, before["relu"].zero_point)
    lines = quantization.diff_ranges(before, after).splitlines()
    assert lines[0].startswith("relu: [")
    assert "scale x9," in lines[0]
    assert lines[-2:] == ["input: only in the first table", "new: only in the second table"]
    assert quantization.diff_ranges(before, before) == ""


def test_a_table_of_another_network_is_refused() -> None:
    graph = quantization.prepare(source(nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())))
    with pytest.raises(QuantizationError, match=r"another network.*'0:conv2d'.*'relu'"):
        quantization.apply_ranges(graph, table())


def test_one_range_cannot_become_two() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), nn.Flatten())
    graph = quantization.prepare(source(net))
    quantization.calibrate(graph, [images()], calibration.load("minmax"))
    changed = dict(quantization.range_table(graph))
    changed["1:max_pool2d"] = changed["input"]
    with pytest.raises(QuantizationError, match=r"'1:max_pool2d'.*\n.*share a range"):
        quantization.apply_ranges(graph, changed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale": -1.0}, "positive"),
        ({"min": 0.5}, "contain 0"),
        ({"max": float("nan")}, "finite"),
        ({"max": 99.0}, "another number"),
        ({"zero": 1}, "zero"),
        ({"tensor": None}, "twice"),
    ],
)
def test_a_broken_table_is_refused_by_name(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = tmp_path / "ranges.json"
    quantization.write_ranges(table(), path)
    document = json.loads(path.read_text())
    if "tensor" in change:
        document["ranges"].append(document["ranges"][0])
    else:
        document["ranges"][1] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=told):
        quantization.read_ranges(path)


def test_a_missing_file_and_other_json_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    with pytest.raises(ConfigError, match=r"ranges\.json"):
        quantization.read_ranges(path)
    for text in ("[]", "{}", '{"schema": 2, "ranges": []}', "nonsense", '{"schema": 1, "ranges": [3]}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not a table of ranges"):
            quantization.read_ranges(path)


def test_a_graph_without_ranges_has_no_table() -> None:
    with pytest.raises(QuantizationError, match="calibrate"):
        quantization.range_table(quantization.prepare(source()))
