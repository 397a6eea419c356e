"""Keras files against Keras itself: equal outputs, plain torch layers, and errors that name the layer."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeft import models, recipe
from edgeft.errors import ModelError
from edgeft.models import keras_files, keras_network

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("h5py")
keras = pytest.importorskip("keras")
L = keras.layers

needs_data = pytest.mark.skipif("EDGEFT_TEST_DATA" not in os.environ, reason="EDGEFT_TEST_DATA is not set")


def shuffled(model):
    """Give every variable values that tell channels and positions apart, variances positive."""
    draw = np.random.default_rng(7)
    for variable in model.weights:
        if "seed" not in variable.path:
            values = draw.normal(0, 0.4, variable.shape)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return model


def outputs(file: Path, model, low: float = -1.0, high: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return Keras's outputs and the converted network's logits on the same inputs."""
    network = keras_network.convert(keras_files.read(file))
    pixels = np.random.default_rng(1).uniform(low, high, (3, *model.input_shape[1:])).astype(np.float32)
    reference = keras.ops.convert_to_numpy(model(pixels, training=False))
    x = torch.from_numpy(pixels)
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
    if network.std:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (network.mean, network.std))
        x = (x / 255 - mean) / std
    with torch.inference_mode():
        return reference, network.module(x).numpy()


def every_convolution():
    x = i = L.Input((19, 18, 3))
    x = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(x)
    x = L.BatchNormalization()(x)
    x = L.ReLU(6.0)(x)
    x = L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, activation="relu6")(x)
    x = L.SeparableConv2D(8, 5, padding="same", activation="swish")(x)
    x = L.ZeroPadding2D(((0, 1), (2, 0)))(x)
    x = L.Conv2D(8, 3, groups=2, dilation_rate=2, padding="same")(x)
    x = L.LeakyReLU(negative_slope=0.1)(x)
    return keras.Model(i, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def merges_and_shapes():
    x = i = L.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", activation="tanh")(x)
    gate = L.Reshape((1, 1, 4))(L.Dense(4, activation="sigmoid")(L.GlobalMaxPooling2D()(x)))
    x = L.Multiply()([x, gate])
    x = L.Add()([x, L.Conv2D(4, 1)(x), L.Conv2D(4, 5, padding="same")(x)])
    x = L.Concatenate()([x, L.Conv2D(3, 1)(i)])
    flat = L.Flatten()(x)
    flat = L.Concatenate()([flat, L.Flatten()(i)])
    x = L.Reshape((4, 8, -1))(flat)
    return keras.Model(i, L.Dense(5, activation="softmax")(L.Flatten()(x)))


def pools(kind, padding: str, size: int, stride: int):
    x = i = L.Input((9, 8, 2))
    x = kind(size, stride, padding=padding)(L.Conv2D(3, 1)(x))
    return keras.Model(i, L.Dense(2)(L.Flatten()(x)))


def flattened_sequential():
    return keras.Sequential(
        [
            L.Input((6, 5, 3)),
            L.Conv2D(4, 3),
            L.Flatten(),
            L.BatchNormalization(scale=False),
            L.Activation("hard_sigmoid"),
            L.Dropout(0.5),
            L.Dense(7, activation="elu"),
            L.BatchNormalization(center=False),
            L.Dense(3),
            L.Softmax(),
        ]
    )


def nested():
    backbone = keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization()], name="backbone")
    x = i = L.Input((8, 8, 3))
    x = L.RandomFlip()(x)
    x = backbone(L.Rescaling(1 / 127.5, offset=-1)(x))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


def shared():
    conv = L.Conv2D(3, 3, padding="same")
    x = i = L.Input((8, 8, 3))
    x = L.Rescaling(2.0, offset=0.5)(conv(L.ReLU()(conv(x))))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


def rows():
    return keras.Sequential([L.Input((12,)), L.Dense(8, activation="relu"), L.Dense(3, activation="softmax")])


MODELS = {
    "convolutions": every_convolution,
    "merges": merges_and_shapes,
    "flattened": flattened_sequential,
    "nested": nested,
    "shared": shared,
    "rows": rows,
    **{
        f"{kind.__name__}-{padding}-{size}-{stride}": (
            lambda kind=kind, padding=padding, size=size, stride=stride: pools(kind, padding, size, stride)
        )
        for kind in (L.MaxPooling2D, L.AveragePooling2D)
        for padding, size, stride in (("same", 2, 2), ("same", 3, 2), ("valid", 3, 2), ("same", 5, 3))
        # On its torch backend Keras repeats the border into an uneven "same" average; see the test below.
        if kind is L.MaxPooling2D or (padding, size) in (("same", 2), ("valid", 3))
    },
}


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_keras(tmp_path: Path, name: str, suffix: str) -> None:
    model = shuffled(MODELS[name]())
    model.save(tmp_path / f"m.{suffix}")
    reference, logits = outputs(tmp_path / f"m.{suffix}", model)
    if "softmax" in str(model.layers[-1].get_config().get("activation")) or name == "flattened":
        logits = torch.from_numpy(logits).softmax(1).numpy()
    assert np.abs(reference).max() > 1e-3
    np.testing.assert_allclose(logits, reference, atol=1e-4, rtol=1e-4)


def test_a_same_average_does_not_count_its_padding(tmp_path: Path) -> None:
    """As TensorFlow defines it: the average of the pixels that the window really holds."""
    keras.Sequential([L.Input((8, 8, 1)), L.AveragePooling2D(3, 2, padding="same"), L.Flatten()]).save(
        tmp_path / "m.keras"
    )
    module = keras_network.convert(keras_files.read(tmp_path / "m.keras")).module
    pixels = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    expected = [pixels[r : r + 3, c : c + 3].mean() for r in range(0, 8, 2) for c in range(0, 8, 2)]
    np.testing.assert_allclose(module(torch.from_numpy(pixels)[None, None])[0], expected, atol=1e-6)


def test_normalization_moves_into_the_preprocessing(tmp_path: Path) -> None:
    norm = L.Normalization(mean=[120.0, 110.0, 90.0], variance=[60.0**2, 55.0**2, 50.0**2])
    model = shuffled(keras.Sequential([L.Input((8, 8, 3)), norm, L.Conv2D(4, 3), L.GlobalAveragePooling2D()]))
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(*outputs(tmp_path / "m.keras", model, 0, 255), atol=1e-4)
    source = recipe.Model(source="keras:m.keras")
    preprocessing = models.default_preprocessing(source, base=tmp_path)
    assert preprocessing.mean == pytest.approx((120 / 255, 110 / 255, 90 / 255))
    assert preprocessing.std == pytest.approx((60 / 255, 55 / 255, 50 / 255))


def test_a_file_without_scaling_is_fed_zero_to_one(tmp_path: Path) -> None:
    shuffled(every_convolution()).save(tmp_path / "m.h5")
    source = recipe.Model(source="keras:m.h5", input_size=24)
    preprocessing = models.default_preprocessing(source, base=tmp_path)
    assert preprocessing.input_shape == (3, 24, 24)
    assert (preprocessing.mean, preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)


def test_sigmoid_of_one_unit_becomes_two_logits(tmp_path: Path) -> None:
    model = shuffled(keras.Sequential([L.Input((4,)), L.Dense(1, activation="sigmoid")]))
    model.save(tmp_path / "m.keras")
    reference, logits = outputs(tmp_path / "m.keras", model)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1)[:, 1:], reference, atol=1e-6)


def test_layers_stay_plain_and_export(tmp_path: Path) -> None:
    shuffled(every_convolution()).save(tmp_path / "m.keras")
    module = keras_network.convert(keras_files.read(tmp_path / "m.keras")).module
    kinds = [type(layer) for layer in module.modules()]
    assert kinds.count(nn.Conv2d) == 5 and kinds.count(nn.BatchNorm2d) == 1 and nn.ZeroPad2d in kinds
    x = torch.rand(2, 3, 19, 18)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    torch.testing.assert_close(exported(x.repeat(2, 1, 1, 1))[:2], module(x))


def test_weights_of_another_file_are_used(tmp_path: Path) -> None:
    model = every_convolution()
    model.save(tmp_path / "m.keras")
    shuffled(model).save_weights(tmp_path / "w.weights.h5")
    weighted = keras_network.convert(
        keras_files.read(tmp_path / "m.keras", tmp_path / "w.weights.h5")
    ).module.state_dict()
    kernel = keras.ops.convert_to_numpy(model.layers[-1].kernel)
    np.testing.assert_allclose(weighted[f"{model.layers[-1].name}.weight"].T, kernel)
    keras.Sequential([L.Input((4,)), L.Dense(1)]).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ModelError, match=r"Keras layer 'conv2d\w*' \(Conv2D\): the file has no kernel"):
        keras_network.convert(keras_files.read(tmp_path / "m.keras", tmp_path / "other.weights.h5"))


@keras.saving.register_keras_serializable("test")
class Swap(L.Layer):
    def call(self, x):
        return x + 1


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_custom_layer_is_named(tmp_path: Path, suffix: str) -> None:
    keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(2, 3), Swap(name="swap")]).save(tmp_path / f"m.{suffix}")
    with pytest.raises(ModelError, match=r"Keras layer 'swap' \(.*Swap\).*custom") as error:
        keras_network.convert(keras_files.read(tmp_path / f"m.{suffix}"))
    assert "SeparableConv2D" in error.value.message and "file.py:build" in error.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.keras", None, "does not exist"),
        ("m.keras", b"garbage", "not a whole .keras file"),
        ("m.h5", b"garbage", "not a whole HDF5 file"),
        ("m.weights.h5", b"garbage", "no whole Keras model"),
        ("m.pb", b"", "allowed are .keras and .h5"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        keras_files.read(tmp_path / name)


def test_a_model_without_architecture_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    h5py.File(tmp_path / "w.h5", "w").close()
    with pytest.raises(ModelError, match="weights without an architecture"):
        keras_files.read(tmp_path / "w.h5")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "MyModel", "config": {}}))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3"}))
    with pytest.raises(ModelError, match="holds a MyModel"):
        keras_files.read(tmp_path / "m.keras")


def test_built_for_other_classes(tmp_path: Path) -> None:
    shuffled(merges_and_shapes()).save(tmp_path / "m.keras")
    source = recipe.Model(source="keras:m.keras")
    preprocessing = models.default_preprocessing(source, base=tmp_path)
    options = {"base": tmp_path, "seed": 0, "preprocessing": preprocessing}
    built = models.build(source, 3, **options)
    assert built.trainable and built.prunable
    assert (
        set(built.account.fresh)
        == set(built.account.left_out)
        == {f"{built.head}.weight", f"{built.head}.bias"}
    )
    assert any("softmax at the end" in line for line in built.account.lines())
    assert models.blocks(built.module, built.head)[0].name.startswith("conv2d")
    fresh = models.build(source, 3, fresh=True, **options)
    assert fresh.account.loaded == () and not any(
        torch.equal(a, b) and a.std() > 0
        for a, b in zip(fresh.module.parameters(), built.module.parameters(), strict=True)
        if a.ndim > 1 and a.shape[0] != 3
    )
    assert len(models.build(source, 5, keep_head=True, **options).account.fresh) == 0
    with pytest.raises(ModelError, match="trained for 5 classes"):
        models.build(source, 3, keep_head=True, **options)


class OldDepthwise(L.DepthwiseConv2D):
    """Keras 3 does not take the `groups` that Keras 2 wrote for this layer."""

    def __init__(self, *args, groups=1, **options):
        super().__init__(*args, **options)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(("name", "high"), [("ic_resnet8", 255.0), ("vww_96", 1.0), ("sww_ref", 1.0)])
def test_real_files_of_keras_2(name: str, high: float) -> None:
    file = Path(os.environ["EDGEFT_TEST_DATA"]) / "mlperf_tiny" / f"{name}.h5"
    model = keras.models.load_model(file, compile=False, custom_objects={"DepthwiseConv2D": OldDepthwise})
    reference, logits = outputs(file, model, 0.0, high)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, reference, atol=1e-4)
    # Also where softmax is flat: the logits up to their common shift.
    kept = reference > 1e-30
    shift = np.where(kept, np.log(np.maximum(reference, 1e-30)) - logits, np.nan)
    assert np.nanmax(np.nanmax(shift, 1) - np.nanmin(shift, 1)) < 1e-3
