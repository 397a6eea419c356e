"""Read Keras files without Keras: the architecture's JSON and the weights of each layer.

Three formats: ``.keras`` (a zip of config.json and model.weights.h5, Keras 3), legacy ``.h5`` of a whole model
(Keras 2 and 3), and ``.weights.h5`` (weights alone, of either layout).
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import extras
from edgeft.errors import ModelError

Array = npt.NDArray[np.float32]
Variables = dict[str, Array]

_COPY_AGAIN = "copy or download the file again"
_MODELS = ("Functional", "Model", "Sequential")


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasFile:
    """A Keras model as its file has it.

    `config` is the model's ``{"class_name": ..., "config": {"layers": [...]}}``, `version` Keras's own (2.4.0), and
    `variables` the weights: dotted path of layer names (nested models included) -> variable's name -> array.
    """

    config: dict[str, Any]
    version: str
    variables: dict[str, Variables]


def is_weights(path: Path) -> bool:
    """Return whether the name says that the file holds a Keras network's weights alone."""
    return path.name.endswith(".weights.h5")


def read(path: Path, weights: Path | None = None) -> KerasFile:
    """Read a whole model, with its weights or those of another file.

    Args:
        path: A ``.keras`` or ``.h5`` file.
        weights: A ``.weights.h5`` of the same network.

    Raises:
        ModelError: No such file, another format, a broken file, no architecture in it, or weights that do not
            belong to the layers.
        MissingDependencyError: h5py is not installed.
    """
    if path.suffix not in (".keras", ".h5") or is_weights(path):
        raise ModelError(
            f"model.source keras:{path.name} is no whole Keras model; allowed are .keras and .h5",
            "save the model, not its weights: model.save('model.keras')",
        )
    _require_file(path, "model.source")
    if path.suffix == ".keras":
        config, version, content = _read_archive(path)
    else:
        config, version, content = _read_legacy(path)
    if weights is not None:
        _require_file(weights, "model.weights")
        content = weights.read_bytes()
    label = path if weights is None else weights
    try:
        variables = _read_variables(content, config, label)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"{label} cannot be read ({error})", _COPY_AGAIN) from error
    return KerasFile(config=config, version=version, variables=variables)


def layers_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the layer entries of a model's config, in its order."""
    inner = config["config"]
    return list(inner if isinstance(inner, list) else inner["layers"])  # Keras 2.0 kept a bare list


def is_model(entry: dict[str, Any]) -> bool:
    """Return whether a layer entry is a model of its own (a nested backbone)."""
    return entry["class_name"] in _MODELS


def name_of(entry: dict[str, Any]) -> str:
    """Return the name of a layer entry."""
    return str(entry.get("name") or entry["config"]["name"])


def _require_file(path: Path, key: str) -> None:
    if not path.is_file():
        raise ModelError(
            f"{key}: {path} does not exist", "give a file; its path is relative to the recipe's folder"
        )


def _read_archive(path: Path) -> tuple[dict[str, Any], str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            version = str(json.loads(archive.read("metadata.json"))["keras_version"])
            return _whole(config, path), version, archive.read("model.weights.h5")
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise ModelError(f"{path} is not a whole .keras file ({error})", _COPY_AGAIN) from error


def _read_legacy(path: Path) -> tuple[dict[str, Any], str, bytes]:
    h5py = extras.load("h5py", f"source keras:{path.name}")
    try:
        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                raise ModelError(
                    f"model.source: {path} holds weights without an architecture",
                    "save the whole model with model.save(), and give this file as model.weights (named .weights.h5)",
                )
            config = json.loads(_text(file.attrs["model_config"]))
            version = _text(file.attrs.get("keras_version", "2"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a whole HDF5 file ({error})", _COPY_AGAIN) from error
    return _whole(config, path), version, path.read_bytes()


def _whole(config: Any, path: Path) -> dict[str, Any]:
    if not isinstance(config, dict) or config.get("class_name") not in _MODELS:
        found = config.get("class_name") if isinstance(config, dict) else type(config).__name__
        raise ModelError(
            f"model.source: {path} holds a {found}; allowed are Sequential and Functional models",
            "a subclassed model's architecture is code: rebuild it with Keras's functional API",
        )
    return config


def _read_variables(content: bytes, config: dict[str, Any], label: Path) -> dict[str, Variables]:
    h5py = extras.load("h5py", f"source keras:{label.name}")
    with h5py.File(io.BytesIO(content), "r") as file:
        legacy = file.get("model_weights", file)
        if "layer_names" in legacy.attrs:
            return dict(_by_name(legacy, config))
        return dict(_by_position(file, config, "", label))


def _by_name(group: Any, config: dict[str, Any]) -> Iterator[tuple[str, Variables]]:
    """Yield the weights of the legacy layout: a group per layer, variables named ``layer/kernel:0``."""
    for entry in layers_of(config):
        name = name_of(entry)
        if name not in group:
            continue
        stored = group[name]
        arrays = [
            (_text(key).split("/"), np.asarray(stored[_text(key)], dtype=np.float32))
            for key in stored.attrs["weight_names"]
        ]
        if not is_model(entry):
            yield name, {parts[-1].partition(":")[0]: array for parts, array in arrays}
            continue
        for path in _leaf_paths(entry, name):
            # Keras 2 names a nested layer's variables without the model around it.
            leaf = path.rpartition(".")[2].split("/")
            found = {
                parts[-1].partition(":")[0]: array
                for parts, array in arrays
                if parts[-1 - len(leaf) : -1] == leaf
            }
            yield path, found


def _leaf_paths(entry: dict[str, Any], prefix: str) -> Iterator[str]:
    for inner in layers_of(entry):
        path = f"{prefix}.{name_of(inner)}"
        yield from _leaf_paths(inner, path) if is_model(inner) else (path,)


def _by_position(
    group: Any, config: dict[str, Any], prefix: str, label: Path
) -> Iterator[tuple[str, Variables]]:
    """Yield the weights of Keras 3's layout: layers/<class name>_<count>/vars/<position>."""
    counts: Counter[str] = Counter()
    for entry in layers_of(config):
        base = _snake_case(entry["class_name"])
        key = f"{base}_{counts[base]}" if counts[base] else base
        counts[base] += 1
        path = f"{prefix}{name_of(entry)}"
        stored = group.get(f"layers/{key}")
        if stored is None:
            continue
        if is_model(entry):
            yield from _by_position(stored, entry, f"{path}.", label)
            continue
        values = stored.get("vars", {})
        arrays = [np.asarray(values[str(i)], dtype=np.float32) for i in range(len(values))]
        names = variable_names(entry)
        if len(arrays) not in (0, len(names)):
            raise ModelError(
                f"{label}: layer {path!r} ({entry['class_name']}) has {len(arrays)} variables in the file; "
                f"expected are {len(names)}: {', '.join(names)}",
                "give the weights of the same network",
            )
        yield path, dict(zip(names, arrays, strict=False))


def variable_names(entry: dict[str, Any]) -> list[str]:
    """Return the names of a layer's variables in the order in which Keras 3 stores them."""
    config = entry["config"]
    bias = ["bias"] if config.get("use_bias") else []
    match entry["class_name"]:
        case "Conv2D" | "Dense":
            return ["kernel", *bias]
        case "DepthwiseConv2D":
            # Keras 3 calls it kernel in the attribute and depthwise_kernel in some legacy files.
            return ["kernel", *bias]
        case "SeparableConv2D":
            return ["depthwise_kernel", "pointwise_kernel", *bias]
        case "BatchNormalization":
            scale = ["gamma"] if config.get("scale", True) else []
            center = ["beta"] if config.get("center", True) else []
            return [*scale, *center, "moving_mean", "moving_variance"]
        case "Normalization":
            return ["mean", "variance", "count"]
        case "Dropout" | "SpatialDropout2D":
            return ["seed_generator_state"]
        case _:
            return []


def _snake_case(name: str) -> str:
    """Spell a class name as Keras does for the groups of its files (Conv2D: conv2d, ReLU: re_lu)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
