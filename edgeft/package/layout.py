"""What stands where in a package, and the canonical forms of what is text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
LABELS: Final = "labels.txt"
PREPROCESS: Final = "preprocess.json"
GOLDEN: Final = "golden.npz"
CARD: Final = "model_card.md"

DEVICE_FILES: Final = Path(__file__).resolve().parents[1] / "device"
"""The programs that travel in every package; data to edgeft, never imported from there."""


def canonical_json(data: Mapping[str, Any]) -> str:
    """Return JSON with sorted keys, fixed separators, and a newline at the end. Raises `ValueError` for NaN."""
    text = json.dumps(
        data, sort_keys=True, separators=(",", ": "), indent=1, ensure_ascii=False, allow_nan=False
    )
    return text + "\n"


def canonical_sums(sums: Mapping[str, str]) -> str:
    """Return the one text of `SHA256SUMS` that name -> digest has; ``sha256sum -c`` reads it."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
