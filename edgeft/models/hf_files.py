"""Folders of transformers: where they are, and the preprocessing that is written beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from edgeft import extras
from edgeft.errors import ModelError
from edgeft.models.hub import require_network
from edgeft.preprocessing import TOKENIZER_FILE, ImagePreprocessing, TextPreprocessing

Kind = Literal["text", "image"]

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_NO_CONFIG: Mapping[str, Any] = MappingProxyType({})


def resolve(name: str, base: Path) -> Path:
    """Return the local folder of a model: a path, or a hub name's snapshot (downloaded where there is a network).

    Raises:
        ModelError: Neither a folder with a config.json nor a name that can be had.
        MissingDependencyError: transformers is not installed.
    """
    extras.require("transformers", f"source hf:{name}")
    folder = base / name
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.source: {folder} has no config.json",
                "give a folder that transformers' save_pretrained() wrote",
            )
        return folder
    hub = extras.load("huggingface_hub", f"source hf:{name}")
    hub_errors = extras.load("huggingface_hub.errors", f"source hf:{name}")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
    except hub_errors.HFValidationError as error:
        raise ModelError(f"model.source: {folder} does not exist, and {name!r} is no hub name") from error
    except hub_errors.LocalEntryNotFoundError:
        pass  # not here yet
    try:
        require_network(hub.constants.ENDPOINT)
        return Path(hub.snapshot_download(name, allow_patterns=_FILES))
    except (hub_errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise _unreachable(name, folder, reason) from error


def image_preprocessing(name: str, *, base: Path, size: int | None) -> ImagePreprocessing:
    """Return the preprocessing that the folder's weights were made with.

    Args:
        name: Folder (relative to `base`) or hub name.
        base: Folder of the recipe.
        size: Height and width instead of the model's.
    """
    return _image_preprocessing(resolve(name, base), size)


def text_preprocessing(
    name: str, *, base: Path, max_length: int | None, tokenizer: str | None
) -> TextPreprocessing:
    """Return the preprocessing that the folder's weights were made with.

    Args:
        name: Folder (relative to `base`) or hub name.
        base: Folder of the recipe.
        max_length: Tokens per text; None leaves it open (0).
        tokenizer: A tokenizer.json or its folder instead of the model's.

    Raises:
        ModelError: There is no tokenizer, or one of another vocabulary than the model's own.
    """
    folder = resolve(name, base)
    own = folder / TOKENIZER_FILE
    chosen = own if tokenizer is None else base / tokenizer
    content, pad_id = read_tokenizer(chosen, read_json(folder / "config.json"))
    if (
        tokenizer is not None
        and own.is_file()
        and _vocabulary(content, chosen) != _vocabulary(_read_text(own), own)
    ):
        raise ModelError(
            f"model.tokenizer: {chosen} has another vocabulary than the model's own {own}: its ids mean other words",
            "leave model.tokenizer out",
        )
    return TextPreprocessing(tokenizer=content, max_length=max_length or 0, pad_id=pad_id)


def read_tokenizer(path: Path, config: Mapping[str, Any] = _NO_CONFIG) -> tuple[str, int]:
    """Return the contents of a tokenizer.json and the id of its padding token.

    Args:
        path: The file, or its folder.
        config: The model's config.json, for a ``pad_token_id`` that the tokenizer does not name.

    Raises:
        ModelError: No such file, no tokenizer, or no padding token.
    """
    path = path / TOKENIZER_FILE if path.is_dir() else path
    if not path.is_file():
        raise ModelError(
            f"model.tokenizer: {path} does not exist",
            "give the tokenizer.json of this model (AutoTokenizer.save_pretrained() writes it)",
        )
    content = _read_text(path)
    return content, _pad_id(content, path, config)


def _image_preprocessing(folder: Path, size: int | None) -> ImagePreprocessing:
    path = folder / "preprocessor_config.json"
    config = read_json(path) if path.is_file() else {}
    given = (
        config.get("crop_size")
        or config.get("size")
        or read_json(folder / "config.json").get("image_size", 224)
    )
    own, resize = _edge(given), _edge(config.get("size") or given)
    size = size or own
    channels = 3
    mean = (
        tuple(config.get("image_mean", (0.5,) * channels)) if config.get("do_normalize", True) else (0.0,) * 3
    )
    std = (
        tuple(config.get("image_std", (0.5,) * channels)) if config.get("do_normalize", True) else (1.0,) * 3
    )
    return ImagePreprocessing(
        size=size,
        resize=max(size, round(size * max(resize, own) / own)),
        channels=channels,
        mean=mean,
        std=std,
        interpolation="bicubic" if config.get("resample") == 3 else "bilinear",
    )


def _edge(value: Any) -> int:
    """Return the edge that an image processor's size means: a number, or a dictionary of edges."""
    if isinstance(value, dict):
        return int(value.get("shortest_edge") or min(value["height"], value["width"]))
    return int(value)


def _pad_id(content: str, path: Path, config: Mapping[str, Any]) -> int:
    data = _tokenizer_json(content, path)
    padding = data.get("padding") or {}
    if "pad_id" in padding:
        return int(padding["pad_id"])
    if config.get("pad_token_id") is not None:
        return int(config["pad_token_id"])
    for token in data.get("added_tokens", ()):
        if token["content"].lower() in ("[pad]", "<pad>"):
            return int(token["id"])
    raise ModelError(
        f"model.tokenizer: {path} names no padding token, and neither does the model's config.json",
        "set pad_token_id in config.json",
    )


def _vocabulary(content: str, path: Path) -> Any:
    return _tokenizer_json(content, path).get("model", {}).get("vocab")


def _tokenizer_json(content: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ModelError(f"model.tokenizer: {path} is no tokenizer.json ({error})") from error
    if not isinstance(data, dict) or "model" not in data:
        raise ModelError(
            f"model.tokenizer: {path} is no tokenizer.json: it has no entry 'model'",
            "give the tokenizer.json of this model (AutoTokenizer.save_pretrained() writes it)",
        )
    return data


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one for other JSON. Raises `ModelError` for what cannot be read."""
    try:
        data = json.loads(_read_text(path))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON file ({error})") from error
    return data if isinstance(data, dict) else {}


def _unreachable(name: str, folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"model.source hf:{name}: there is no folder {folder}, and the hub does not give it ({reason})",
        "download it where there is a network (AutoModel.from_pretrained(...).save_pretrained('FOLDER')) and give "
        "model.source = 'hf:FOLDER'",
    )
