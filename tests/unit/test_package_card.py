"""The model card: every figure is one of the records, and nothing breaks its tables."""

import dataclasses
from pathlib import Path

from tiny_packages import any_host, target_result, write, write_onnx

from edgeft import package, target
from edgeft.types import QuantCoverage


def _card(tmp_path: Path, *, profile=None, origin=None, **changes) -> str:
    write_onnx(tmp_path / "m.onnx")
    result = target_result("onnxruntime", [tmp_path / "m.onnx"])
    result = dataclasses.replace(result, artifact=dataclasses.replace(result.artifact, **changes))
    more = {"origin": origin} if origin else {}
    return (write(tmp_path / "p", result, profile or any_host(), **more) / "model_card.md").read_text()


def test_figures_come_from_the_records(tmp_path: Path):
    card = _card(tmp_path)
    assert "| accuracy | 75.0 % [30.0 %, 95.0 %] | 75.0 % [30.0 %, 95.0 %] |" in card
    assert "p50 1.05 ms" in card and "(evidence: measured)" in card
    assert "0.500 [0.450, 0.550] (95 %, 6 pairs" in card
    assert "100.0 % of 4 samples" in card and "3 classes apart: cat, dog, élan" in card
    assert "ops in int8: 1 of 1" in card and "In float" not in card


def test_limits_are_named(tmp_path: Path):
    coverage = QuantCoverage(mac_ops=2, int8_mac_ops=1, float_ops=("head",), float_islands=("norm",))
    floor = target.load("cpu-onnxruntime")
    card = _card(tmp_path, profile=floor, coverage=coverage, deviations=("conv-add at block1",))
    assert "In float: head, norm" in card and "needs one of avx512_vnni" in card
    assert "without rounding where the program rounds: conv-add at block1." in card


def test_the_origin_is_told(tmp_path: Path):
    origin = package.Origin(
        name="pets",
        model="timm:tiny",
        data="data/pets",
        counts={"train": 1234, "test": 4},
        steps=["trained by 'fine-tune'"],
        notes=["2 samples could not be read and were left out."],
    )
    card = _card(tmp_path, origin=origin)
    assert card.startswith("# pets for ONNX Runtime") and "- trained by 'fine-tune'" in card
    assert "1,234 train, 4 test" in card and "- 2 samples could not be read" in card
    assert package.read(tmp_path / "p").manifest["name"] == "pets"
