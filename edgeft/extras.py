"""Import optional packages with an error that says how to get them, and report versions without importing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

from edgeft.errors import MissingDependencyError

PACKAGES = {
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
    "tflite_micro": ("tflite_micro", "npu"),
    "ethosu": ("ethos-u-vela", "npu"),
    "timm": ("timm", "vision"),
    "torchvision": ("torchvision", "vision"),
    "transformers": ("transformers", "text"),
    "tokenizers": ("tokenizers", "text"),
    "h5py": ("h5py", "keras"),
    "onnx2torch": ("onnx2torch", "onnx"),
    "onnxruntime_qnn": ("onnxruntime-qnn", "qnn"),
    "neural_compressor": ("neural_compressor_pt", "neural-compressor"),
}
"""Importable module -> (distribution, extra of edgeft that brings it; empty for the core)."""
_WITH_TORCHAO = ("torchao", "transformers")
# These import torchvision, themselves or on the way.
_WITH_TORCHVISION = ("torchvision", "timm", "torchmetrics", "lightning", "transformers", "onnx2torch")


def is_installed(module: str) -> bool:
    """Return whether `module` (top-level name) can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def missing_error(module: str, purpose: str) -> MissingDependencyError:
    """Return the error for an absent optional package, with the pip line that installs it."""
    distribution, extra = PACKAGES.get(module, (module, ""))
    line = f"pip install 'edgeft[{extra}]'" if extra else f"pip install {distribution}"
    return MissingDependencyError(
        f"{purpose} needs the package {distribution!r}, which is not installed", line
    )


_DEVICE_CURES = {
    (
        "onnxruntime",
        "cuda",
    ): "use a host with an NVIDIA GPU that nvidia-smi lists, and there: pip uninstall onnxruntime; "
    "pip install 'onnxruntime-gpu[cuda,cudnn]' (the two share a folder)",
    ("torch-cuda", "cuda"): "use a host with an NVIDIA GPU that nvidia-smi lists, and there torch with CUDA "
    "(https://pytorch.org/get-started/locally)",
    (
        "openvino",
        "gpu",
    ): "use a host with an Intel GPU and its compute runtime (intel-opencl-icd), and let this user "
    "open /dev/dri/renderD* (group render)",
    ("openvino", "npu"): "use a host with an Intel Core Ultra and its NPU driver (intel-level-zero-npu, "
    "intel-driver-compiler-npu), and let this user open /dev/accel/accel0 (group render)",
    (
        "qnn",
        "htp",
    ): "on x86-64 Linux, onnxruntime-qnn brings a simulator of the HTP: pip install --force-reinstall "
    "onnxruntime-qnn",
}


def missing_device(runtime: str, device: str, message: str) -> MissingDependencyError:
    """Return the error for a device that is not there, with what a host needs to have it.

    Args:
        runtime: A runtime of target profiles.
        device: Its name of a device; a number behind it (``GPU.1``) does not matter.
        message: What was found out.
    """
    cure = _DEVICE_CURES.get(
        (runtime, device.lower().partition(".")[0]), "use a host that has one, or another target"
    )
    return MissingDependencyError(message, cure)


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
    top = module.partition(".")[0]
    if top in _WITH_TORCHVISION:
        declare_torchvision_ops()
    with _quiet_torchao() if top in _WITH_TORCHAO else contextlib.nullcontext():
        return importlib.import_module(module)


@contextlib.contextmanager
def _quiet_torchao() -> Iterator[None]:
    """Import torchao without what it says about CUDA libraries and enums that nobody here can act on."""
    # Its compiled kernels are for GPUs and low-bit formats; each one that does not load would be a warning.
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
        distribution = PACKAGES.get(module, (module, ""))[0]
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found
