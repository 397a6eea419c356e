"""Pretrained weights of library models, from the libraries' own addresses, where there is a network."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch

from edgeft import extras
from edgeft.errors import ModelError

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")
_TIMEOUT_SECONDS = 5
# torch's model files end in the first digits of their SHA-256.
_HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,})\.")


def pretrained(scheme: str, name: str) -> Path:
    """Return the file of a library model's default pretrained weights; downloaded once, then from torch's cache.

    Args:
        scheme: ``timm`` or ``torchvision``.
        name: The library's name of the model.

    Raises:
        ModelError: The library has no weights for it, or they cannot be had; names the alternative.
        MissingDependencyError: The library is not installed.
    """
    source = f"{scheme}:{name}"
    url = _timm_url(name, source) if scheme == "timm" else _torchvision_url(name, source)
    if not url:
        raise _missing(source, "the library knows none")
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.is_file():
        return file
    try:
        require_network(url)
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = _HASH_IN_NAME.search(file.name)
        torch.hub.download_url_to_file(url, str(file), digest.group(1) if digest else None, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise _missing(source, f"{url} cannot be had ({error})") from error
    return file


def require_network(url: str) -> None:
    """Raise `OSError` at once where a host cannot be reached; the libraries' clients retry for half a minute."""
    if any(os.environ.get(key) for key in _PROXIES):
        return
    address = urlparse(url)
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname or "", port), timeout=_TIMEOUT_SECONDS).close()


def _timm_url(name: str, source: str) -> str:
    url: str = extras.load("timm.models", f"source {source}").get_pretrained_cfg(name).url
    return url or ""


def _torchvision_url(name: str, source: str) -> str:
    models = extras.load("torchvision.models", f"source {source}")
    try:
        url: str = models.get_model_weights(name).DEFAULT.url
    except (ValueError, AttributeError):
        return ""
    return url


def _missing(source: str, reason: str) -> ModelError:
    return ModelError(
        f"model.weights is missing: {source} brings no weights of its own here: {reason}",
        'give model.weights = "FILE.safetensors", or finetune.method = "retrain" to train from scratch',
    )
