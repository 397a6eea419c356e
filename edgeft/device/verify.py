"""Check this package where it stands: its files, this CPU, and the model's answers on this device.

Usage::

    python verify.py [FOLDER] [--json]   # FOLDER: the package, by default the one this file is in

Three checks, each only if the one before it held, so that a damaged model is never opened:

1. every file, `manifest.json` too, has its SHA-256 of `SHA256SUMS` (as ``sha256sum -c SHA256SUMS`` says);
2. this CPU has an instruction set that the integer kernels need (`isa_floor`);
3. the golden inputs give the golden outputs, to within the tolerance, through this device's own runtime.

Exit code 0 if all hold, 1 if not. Needs numpy and the package's runtime; uses `example.py` beside it.
"""

# ruff: noqa: T201 - a program on a device, which speaks by printing
from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

# A package is checked, not changed: importing example.py must not leave a __pycache__ in it.
sys.dont_write_bytecode = True

SUMS = "SHA256SUMS"
MANIFEST = "manifest.json"
CPUINFO = Path("/proc/cpuinfo")


def read_sums(text: str) -> dict[str, str]:
    """Parse the lines of `SHA256SUMS`, ``<64 hex digits>  <name>``, into name -> digest."""
    sums = {}
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator or not name:
            raise ValueError(f"{SUMS}: line {line!r} is not '<sha256>  <name>'")
        sums[name] = digest
    return sums


def check_files(folder: Path) -> list[str]:
    """Return what is wrong with the package's files; an empty list if every byte is as it was written."""
    try:
        sums = read_sums((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{SUMS} cannot be read: {error}"]
    if MANIFEST not in sums:
        return [f"{SUMS}: no line for {MANIFEST}"]
    problems = []
    for name, expected in sums.items():
        if Path(name).name != name:
            problems.append(f"{SUMS}: {name!r} is outside of the package")
        elif not (folder / name).is_file():
            problems.append(f"{name}: missing")
        elif (digest := hashlib.sha256((folder / name).read_bytes()).hexdigest()) != expected:
            problems.append(f"{name}: changed since it was packaged (sha256 {digest}, not {expected})")
    if problems:
        return problems
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["schema"] != 1:
        return [f"{MANIFEST}: schema {manifest['schema']}, this verify.py reads 1; use the package's own"]
    # A line removed from the sums would leave its file unchecked; the manifest lists every file again.
    listed = {**manifest["files"], MANIFEST: sums[MANIFEST]}
    return [] if listed == sums else [f"{SUMS} and {MANIFEST} list different files or digests"]


def cpu_flags() -> set[str] | None:
    """Return this CPU's feature flags (x86: flags, Arm: Features), or None where the system does not tell."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = (line.partition(":") for line in lines)
    return next((set(flags.split()) for key, _, flags in rows if key.strip() in ("flags", "Features")), None)


def check_cpu(manifest: dict[str, Any]) -> list[str]:
    """Return why this CPU must not run the model; an empty list if it may."""
    floor: list[str] = manifest["isa_floor"]
    if not floor:
        return []
    needed = f"this model needs a CPU with one of: {', '.join(floor)}"
    flags = cpu_flags()
    if flags is None:
        return [f"{needed}; {CPUINFO} does not tell what this one has"]
    if flags.isdisjoint(floor):
        return [f"{needed}; this one has none, and its integer kernels would lose accuracy"]
    return []


def check_answers(folder: Path, manifest: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Run the golden inputs.

    Returns:
        What is wrong, and the figures: samples, largest and mean distance from the golden outputs in LSB
        of the logits, largest distance from the Q/DQ program, and the share of equal top classes.
    """
    import numpy as np
    from example import Model  # type: ignore[import-not-found]  # the file beside this one

    with np.load(folder / "golden.npz") as golden:
        inputs, outputs, reference = golden["inputs"], golden["outputs"], golden["reference"]
    logits = Model(folder)(inputs)
    if logits.shape != outputs.shape:
        return [f"golden vectors: logits have shape {logits.shape}, expected {outputs.shape}"], {}
    lsb, limit = manifest["tolerance"]["lsb"], manifest["tolerance"]["max_lsb"]
    distance = np.abs(logits - outputs) / lsb
    figures = {
        "samples": len(inputs),
        "max_lsb": float(distance.max()),
        "mean_lsb": float(distance.mean()),
        "program_max_lsb": float(np.abs(logits - reference).max() / lsb),
        "agreement": float((logits.argmax(1) == outputs.argmax(1)).mean()),
    }
    # Half a percent of an LSB is float32 rounding. "Not at most" instead of "above" so that NaN fails.
    if not figures["max_lsb"] <= limit * 1.005:
        worst = int(distance.max(axis=1).argmax())
        text = (
            f"golden sample {worst} is {figures['max_lsb']:.2f} LSB off; allowed is {limit:g} (LSB {lsb:.6g})"
        )
        return [text], figures
    return [], figures


def verify(folder: Path) -> dict[str, Any]:
    """Check a package; the result has ``problems`` (empty: it holds) and, if the model ran, ``figures``."""
    problems = check_files(folder)
    figures: dict[str, Any] = {}
    if not problems:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        problems = check_cpu(manifest)
        if not problems:
            try:
                problems, figures = check_answers(folder, manifest)
            except (ImportError, RuntimeError, ValueError, OSError) as error:
                problems = [f"the model cannot be run here: {type(error).__name__}: {error}"]
    return {"problems": problems, "figures": figures}


def main(arguments: list[str] | None = None) -> int:
    """Verify a package and say so; return the exit code."""
    parser = argparse.ArgumentParser(description="Check a package: hashes, CPU, golden vectors.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    chosen = parser.parse_args(arguments)

    result = verify(chosen.folder)
    if chosen.json:
        print(json.dumps(result))
    elif result["problems"]:
        print("\n".join(["FAILED", *(f"  {problem}" for problem in result["problems"])]))
    else:
        figures = result["figures"]
        print(
            f"OK: files unchanged, CPU fit, {figures['samples']} golden samples"
            f" within {figures['max_lsb']:.2f} LSB"
            f" of the packaged outputs ({figures['program_max_lsb']:.2f} from the Q/DQ program's)"
        )
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
