"""Import optional packages with an error that says how to get them, and report versions without importing."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from types import ModuleType
from typing import Any

from edgeft.errors import MissingDependencyError

# Importable module -> (distribution, extra of pyproject.toml that brings it).
_PACKAGES = {
    "torch": ("torch", "train"),
    "torchao": ("torchao", "train"),
    "torch_pruning": ("torch-pruning", "train"),
    "lightning": ("lightning", "train"),
    "torchmetrics": ("torchmetrics", "train"),
    "sklearn": ("scikit-learn", "train"),
    "safetensors": ("safetensors", "train"),
    "onnxscript": ("onnxscript", "train"),
    "onnxruntime": ("onnxruntime", ""),
    "openvino": ("openvino", "openvino"),
    "litert_torch": ("litert-torch", "tflite"),
    "ai_edge_litert": ("ai-edge-litert", "tflite"),
    "timm": ("timm", "vision"),
    "torchvision": ("torchvision", "vision"),
}


def is_installed(module: str) -> bool:
    """Return whether `module` (top-level name) can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def missing_error(module: str, purpose: str) -> MissingDependencyError:
    """Return the error for an absent optional package, with the pip line that installs it."""
    distribution, extra = _PACKAGES.get(module, (module, ""))
    line = f"pip install 'edgeft[{extra}]'" if extra else f"pip install {distribution}"
    return MissingDependencyError(
        f"{purpose} needs the package {distribution!r}, which is not installed", line
    )


def require(module: str, purpose: str) -> None:
    """Raise `MissingDependencyError` with the pip line if `module` cannot be imported; imports nothing."""
    if not is_installed(module.partition(".")[0]):
        raise missing_error(module.partition(".")[0], purpose)


def load(module: str, purpose: str) -> Any:
    """Import and return `module`.

    Args:
        module: Dotted module path.
        purpose: What needs it, for the message ("source timm:resnet18").

    Raises:
        MissingDependencyError: It is not installed.
    """
    require(module, purpose)
    if module.partition(".")[0] in ("torchvision", "timm", "torchmetrics", "lightning"):
        declare_torchvision_ops()
    return importlib.import_module(module)


_declared: list[Any] = []


def declare_torchvision_ops() -> None:
    """Let torchvision import beside a torch build that its compiled ops do not match.

    PyPI's torchvision next to a CPU torch dies with "operator torchvision::nms does not exist" because its
    Python code registers fake kernels for ops that its library could not load. Declaring the two schemas first
    is enough; nothing in edgeft calls them. lightning and torchmetrics import torchvision as well.
    """
    if _declared or not (is_installed("torchvision") and is_installed("torch")):
        return
    torch: ModuleType = importlib.import_module("torch")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        try:
            library.define(schema)
        except RuntimeError:
            continue  # this torchvision brings the op itself
    _declared.append(library)


def versions(*modules: str) -> dict[str, str]:
    """Return the installed versions of distributions behind `modules`; absent ones are left out."""
    found = {}
    for module in modules:
        distribution = _PACKAGES.get(module, (module, ""))[0]
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found
