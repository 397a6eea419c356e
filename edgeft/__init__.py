"""edgeft: from a pretrained model and a small data set to a verified, device-ready package.

Everything public is here and is imported when it is first used, so that `import edgeft` costs next to nothing
and a machine without torch can read reports and verify packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeft.benchmarking import benchmark, compare
    from edgeft.errors import EdgeftError
    from edgeft.gating import gate
    from edgeft.pipeline import check, run
    from edgeft.preprocessing import ImagePreprocessing, TabularPreprocessing, TextPreprocessing
    from edgeft.recipe import Recipe
    from edgeft.stages import export, finetune, prune, quantize
    from edgeft.types import FloatModel, QuantModel

_HOMES = {
    "EdgeftError": "edgeft.errors",
    "FloatModel": "edgeft.types",
    "ImagePreprocessing": "edgeft.preprocessing",
    "QuantModel": "edgeft.types",
    "Recipe": "edgeft.recipe",
    "TabularPreprocessing": "edgeft.preprocessing",
    "TextPreprocessing": "edgeft.preprocessing",
    "benchmark": "edgeft.benchmarking",
    "check": "edgeft.pipeline",
    "compare": "edgeft.benchmarking",
    "export": "edgeft.stages",
    "finetune": "edgeft.stages",
    "gate": "edgeft.gating",
    "prune": "edgeft.stages",
    "quantize": "edgeft.stages",
    "run": "edgeft.pipeline",
}

__all__ = [
    "EdgeftError",
    "FloatModel",
    "ImagePreprocessing",
    "QuantModel",
    "Recipe",
    "TabularPreprocessing",
    "TextPreprocessing",
    "__version__",
    "benchmark",
    "check",
    "compare",
    "export",
    "finetune",
    "gate",
    "prune",
    "quantize",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home at first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeft' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
