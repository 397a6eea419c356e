"""What the runner and a peer say to each other, so that a peer can live in an environment of its own (no edgeft there).

A peer is a script that is started as ``python PEER.py --model FILE --calibration FILE.npy --output FILE --result
FILE.json --variant NAME``. It quantizes the float model with the samples, (N, C, H, W) float32, and tells how long
that took (its imports do not count) and with which settings.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


def serve(quantize: Callable[[Path, Samples, Path, str], dict[str, Any]], *distributions: str) -> None:
    """Run a peer's `quantize(model, samples, output, variant) -> settings` as the command line asks for it."""
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "output", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    asked = parser.parse_args()
    samples = np.load(asked.calibration)
    started = time.monotonic()
    settings = quantize(asked.model, samples, asked.output, asked.variant)
    reply = {
        "seconds": time.monotonic() - started,
        "settings": settings,
        "versions": {name: metadata.version(name) for name in distributions},
    }
    asked.result.write_text(json.dumps(reply, indent=1) + "\n", encoding="utf-8")
