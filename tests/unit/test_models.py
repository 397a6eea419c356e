"""Sources, weight files and heads; nothing is loaded that does not fit, and no code is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeft import data, models, recipe, training
from edgeft.errors import ModelError
from edgeft.models.sources import shipped_weights

DIGITSNET = recipe.Model(source="builtin:digitsnet")
HERE = Path()


def build(model: recipe.Model, classes: int = 6, base: Path = HERE, seed: int = 0, **options):
    options.setdefault("preprocessing", models.default_preprocessing(model, base=base))
    return models.build(model, classes, base=base, seed=seed, **options)


def weights(**options) -> recipe.Model:
    return recipe.Model(source="builtin:digitsnet", **options)


def shipped() -> dict[str, torch.Tensor]:
    path = shipped_weights("builtin:digitsnet")
    assert path is not None and path.stat().st_size < 700_000
    return load_file(path)


def test_shipped_weights_know_the_digits_zero_to_four() -> None:
    task = recipe.Task(data="builtin:digits-source")
    preprocessing = models.default_preprocessing(DIGITSNET, base=HERE)
    splits = data.load(task, preprocessing, base=HERE, seed=0)
    network = build(DIGITSNET, 5, keep_head=True).module
    logits, labels = training.predict(network, training.loader(splits.test, preprocessing, batch_size=64))
    assert (logits.argmax(1) == labels).mean() >= 0.97


def test_digitsnet_is_of_embedded_size() -> None:
    network = build(DIGITSNET, 5).module
    macs = 0

    def count(layer, inputs, output) -> None:
        nonlocal macs
        macs += layer.weight[0].numel() * output[0].numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 1, 32, 32))
    assert 10e6 < macs < 25e6
    assert sum(p.numel() for p in network.parameters()) < 150_000


def test_the_head_is_fresh_and_the_backbone_is_not() -> None:
    built, file = build(DIGITSNET, 5), shipped()
    state = built.module.state_dict()
    assert built.head == "head" and not built.module.training
    assert set(built.account.left_out) == set(built.account.fresh) == {"head.bias", "head.weight"}
    assert torch.equal(state["features.stem.conv.weight"], file["features.stem.conv.weight"])
    assert not torch.equal(state["head.weight"], file["head.weight"])


def test_fresh_values_follow_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first, again, other = (build(DIGITSNET, seed=seed, fresh=True).module.head.weight for seed in (3, 3, 4))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_backbone_file_without_head_loads(tmp_path: Path) -> None:
    save_file({n: t for n, t in shipped().items() if not n.startswith("head")}, tmp_path / "b.safetensors")
    assert build(weights(weights="b.safetensors"), base=tmp_path).account.left_out == ()
    with pytest.raises(ModelError, match=r"head\.weight: not in the file"):
        build(weights(weights="b.safetensors"), base=tmp_path, keep_head=True)


def test_a_pth_of_tensors_loads_also_wrapped(tmp_path: Path) -> None:
    torch.save({"state_dict": shipped()}, tmp_path / "w.pth")
    torch.save(shipped(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    for name in ("w.pth", "w.pt"):
        assert len(build(weights(weights=name), base=tmp_path).account.loaded) == len(shipped()) - 2


def test_another_architecture_is_refused_with_the_first_clashes(tmp_path: Path) -> None:
    save_file(
        build(recipe.Model(source="builtin:resnet8"), fresh=True).module.state_dict(),
        tmp_path / "r.safetensors",
    )
    with pytest.raises(ModelError, match=r"(?s)tensors clash.*features\.stem\.conv\.weight"):
        build(weights(weights="r.safetensors"), base=tmp_path)


@pytest.mark.parametrize("drop", ["features.block1.body.0.conv.weight", "features.last.bn.running_mean"])
def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path, drop: str) -> None:
    tensors = shipped()
    removed = tensors.pop(drop)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"{drop}: not in the file"):
        build(weights(weights="w.safetensors"), base=tmp_path)
    save_file({**tensors, drop: removed[:3].clone()}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"1 tensors clash.*\n  {drop}: 3"):
        build(weights(weights="w.safetensors"), base=tmp_path)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["EDGEFT_EVIL"]),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFT_EVIL", str(tmp_path / "ran"))
    torch.save({"weight": torch.zeros(1), "evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"evil\.pth holds more than tensors") as error:
        build(weights(weights="evil.pth"), base=tmp_path)
    assert "safetensors" in error.value.hint and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.safetensors", None, "does not exist"),
        ("w.h5", b"x", r"allowed are \.safetensors"),
        ("w.safetensors", b"garbage" * 20, "not a whole safetensors file"),
        ("w.pth", b"garbage" * 20, "no PyTorch file"),
        ("w.pth", b"PK\x03\x04garbage", "cannot be read"),
        ("w.pth", b"\x80\x02garbage", "w.pth"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        build(weights(weights=name), base=tmp_path)


def test_a_list_of_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "w.pt")
    with pytest.raises(ModelError, match="named tensors"):
        build(weights(weights="w.pt"), base=tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("builtin:digitnet", "did you mean 'digitsnet'"),
        ("timn:resnet18", "did you mean 'timm'"),
        ("digitnet", "did you mean 'digitsnet'"),
        ("builtin:", "allowed are builtin:NAME"),
    ],
)
def test_unknown_sources_name_the_nearest(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.default_preprocessing(recipe.Model(source=source), base=HERE)
    with pytest.raises(ModelError, match=message):
        build(recipe.Model(source=source), preprocessing=models.default_preprocessing(DIGITSNET, base=HERE))


def test_a_missing_weights_file_is_not_replaced_by_random_values() -> None:
    with pytest.raises(ModelError, match="brings no weights") as error:
        build(recipe.Model(source="builtin:resnet8"))
    assert "retrain" in error.value.hint


def test_preprocessing_scales_with_the_input_size() -> None:
    grey = models.default_preprocessing(DIGITSNET, base=HERE)
    assert (grey.size, grey.resize, grey.channels) == (32, 32, 1)
    pytest.importorskip("timm")
    plain = models.default_preprocessing(recipe.Model(source="timm:mobilenetv3_small_100"), base=HERE)
    small = models.default_preprocessing(
        recipe.Model(source="timm:mobilenetv3_small_100", input_size=112), base=HERE
    )
    assert (plain.size, plain.resize, plain.interpolation) == (224, 256, "bicubic")
    assert (small.size, small.resize) == (112, 128)


@pytest.mark.parametrize(
    ("source", "head"),
    [
        ("torchvision:mobilenet_v2", "classifier.1"),
        ("torchvision:squeezenet1_1", "classifier.1"),
        ("torchvision:resnet18", "fc"),
        ("timm:mobilenetv3_small_050", "classifier"),
        ("builtin:resnet8", "head"),
    ],
)
def test_heads_are_found_and_sized(source: str, head: str) -> None:
    if not source.startswith("builtin"):
        pytest.importorskip(source.partition(":")[0])
    model = recipe.Model(source=source)
    built = build(model, 7, fresh=True)
    assert built.head == head
    assert built.module(
        torch.zeros(1, *models.default_preprocessing(model, base=HERE).input_shape)
    ).shape == (1, 7)


def test_an_input_too_small_for_the_strides_is_refused_with_a_size_that_works() -> None:
    pytest.importorskip("torchvision")
    model = recipe.Model(source="torchvision:mobilenet_v2", input_size=8)
    for use in (
        lambda: build(model, fresh=True),
        lambda: models.check_input(model, models.default_preprocessing(model, base=HERE), base=HERE),
    ):
        with pytest.raises(ModelError, match="cannot take 8 x 8") as error:
            use()
        assert "32 or more" in error.value.hint
    fine = recipe.Model(source="torchvision:mobilenet_v2", input_size=96)
    models.check_input(fine, models.default_preprocessing(fine, base=HERE), base=HERE)


@pytest.mark.data
@pytest.mark.skipif("EDGEFT_TEST_DATA" not in os.environ, reason="EDGEFT_TEST_DATA is not set")
def test_real_imagenet_weights() -> None:
    pytest.importorskip("torchvision")
    base = Path(os.environ["EDGEFT_TEST_DATA"]) / "weights"
    mobilenet = {"source": "torchvision:mobilenet_v2"}
    built = build(recipe.Model(**mobilenet, weights="mobilenet_v2_1.0_imagenet.safetensors"), base=base)
    assert len(built.account.loaded) == 312 and len(built.account.left_out) == 2
    with pytest.raises(
        ModelError, match=r"features\.0\.0\.weight: 16x3x3x3 in the file, 32x3x3x3 in the network"
    ):
        build(recipe.Model(**mobilenet, weights="mobilenet_v2_0.35_backbone_imagenet.safetensors"), base=base)
    squeezenet = recipe.Model(
        source="torchvision:squeezenet1_1", weights="squeezenet1_1_imagenet.safetensors"
    )
    assert len(build(squeezenet, base=base).account.loaded) == 50
