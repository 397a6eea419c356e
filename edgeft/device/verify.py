"""Check this package where it stands: its files, this CPU, and the model's answers on this device.

Usage::

    python verify.py [FOLDER] [--json]   # FOLDER: the package, by default the one this file is in

Three checks, each only if the one before it held, so that a damaged model is never opened:

1. the folder holds the files of `SHA256SUMS` and nothing else, and every byte of them, of `manifest.json` and of
   `SHA256SUMS` is as it was written (``sha256sum -c SHA256SUMS`` says the same, less thoroughly);
2. this host can run the model: an instruction set that the integer kernels need (`isa_floor`), and the runtime;
3. the golden inputs give the golden outputs, to within the tolerance, through this device's own runtime.

Exit code 0 if all hold, 1 if a file or an answer is wrong, 5 if this host cannot run the model. Needs numpy and the
package's runtime; uses `example.py` beside it.
"""

# ruff: noqa: T201 - a program on a device, which speaks by printing
from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

SCHEMA = 1
SUMS = "SHA256SUMS"
MANIFEST = "manifest.json"
CPUINFO = Path("/proc/cpuinfo")


def read_sums(content: bytes) -> dict[str, str]:
    """Read `SHA256SUMS`, lines of ``<64 hex digits>  <name>`` sorted by name, into name -> digest.

    Other bytes can read the same (a vertical tab ends a line as well), so the text is made again and compared.
    """
    lines = (line.partition("  ") for line in content.decode().splitlines())
    sums = {name: digest for digest, _, name in lines}
    if "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode() != content:
        raise ValueError("not in the form in which it was written")
    return sums


def check_files(folder: Path) -> list[str]:
    """Return what is wrong with the package's files; an empty list if every byte is as it was written."""
    try:
        sums = read_sums((folder / SUMS).read_bytes())
        found = {path.name: path for path in folder.iterdir()}
    except (OSError, ValueError) as error:
        return [f"{SUMS} cannot be read: {error}"]
    if MANIFEST not in sums:
        return [f"{SUMS}: no line for {MANIFEST}"]
    # Before anything is opened: no name may lead out of the folder, be it by its text or by a link.
    problems = [f"{SUMS}: {name!r} is outside of the package" for name in sums if Path(name).name != name]
    problems += [f"{name}: a link; packages hold plain files" for name in found if found[name].is_symlink()]
    problems += [f"{name}: missing" for name in sums if Path(name).name == name and name not in found]
    # An extra file is no decoration: Python would import a numpy.py from here before the real one.
    extra = sorted(found.keys() - sums.keys() - {SUMS})
    problems += [f"{name}: not part of the package; take it out of the folder" for name in extra]
    for name, expected in () if problems else sums.items():
        if not (folder / name).is_file():
            problems.append(f"{name}: not a file")
        elif (digest := hashlib.sha256((folder / name).read_bytes()).hexdigest()) != expected:
            problems.append(f"{name}: changed since it was packaged (sha256 {digest}, not {expected})")
    return problems


def check_manifest(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Return what is wrong with the names in the manifest of a package whose files are as they were written."""
    # A line removed from the sums would leave its file unchecked; the manifest lists every file again.
    sums = read_sums((folder / SUMS).read_bytes())
    if {**manifest["files"], MANIFEST: sums[MANIFEST]} != sums:
        return [f"{SUMS} and {MANIFEST} list different files or digests"]
    outside = [name for name in (manifest["model"]["path"], *manifest["model"]["files"]) if name not in sums]
    return [f"{MANIFEST}: model file {name!r} is not part of the package" for name in outside]


def check_contents(folder: Path) -> tuple[str, list[str]]:
    """Check everything that needs no model to run.

    Returns:
        What kind of thing is wrong, ``files`` or ``schema`` (a newer package) or nothing, and what exactly.
    """
    if problems := check_files(folder):
        return "files", problems
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            found = f"schema {manifest['schema']}, this verify.py reads {SCHEMA}"
            return "schema", [f"{MANIFEST}: {found}; use the package's own, or a newer edgeft"]
        problems = check_manifest(folder, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems = [f"{MANIFEST}: not a package's manifest: {error!r}"]
    return ("files" if problems else ""), problems


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

    # A package is checked, not changed: importing example.py must not leave a __pycache__ in it.
    sys.dont_write_bytecode = True
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
    """Check a package.

    Returns:
        ``problems``, empty if it holds; ``failed``, the check that did not hold: files, schema, host, answers or
        nothing; and, if the model ran, ``figures``.
    """
    failed, problems = check_contents(folder)
    figures: dict[str, Any] = {}
    if not failed:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        failed, problems = "host", check_cpu(manifest)
        if not problems:
            failed = "answers"
            try:
                problems, figures = check_answers(folder, manifest)
            except ImportError as error:
                failed, problems = "host", [f"the model cannot be run here: {error}"]
            except (RuntimeError, ValueError, OSError) as error:
                problems = [f"the model cannot be run here: {type(error).__name__}: {error}"]
    return {"problems": problems, "failed": failed if problems else "", "figures": figures}


def main(arguments: list[str] | None = None) -> int:
    """Verify a package and say so; return the exit code (no 1 is written here that a flipped bit would make a 0)."""
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
    return 5 if result["failed"] == "host" else int(bool(result["failed"]))


# Not `== "__main__"`: a flipped bit in that would make a program that does nothing, successfully.
if __name__ != "verify":
    sys.exit(main())
