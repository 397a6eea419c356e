"""Check a package with the very program that travels in it."""

from __future__ import annotations

import functools
import json
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from edgeft.errors import PackageError, VerificationError
from edgeft.package import archive
from edgeft.package.layout import DEVICE_FILES, SCHEMA, SUMS

_SECONDS: Final = 600

Failure = Literal["", "files", "schema", "host", "answers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What checking a package found out.

    `failed` is what did not hold: ``files`` (damaged, or a file too many), ``host`` (this CPU is below the ISA floor,
    or the runtime is not installed), ``answers`` (the golden vectors), or nothing. `figures` are those of the golden
    vectors: ``samples``, ``max_lsb`` and ``mean_lsb`` from the packaged outputs, ``program_max_lsb`` from the Q/DQ
    program's, ``agreement`` of the top class (0..1). They are absent if an earlier check failed, because a damaged
    or unfit model is not run.
    """

    folder: Path
    problems: tuple[str, ...]
    figures: Mapping[str, float]
    failed: Failure = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require(self) -> None:
        """Raise `VerificationError` if something is wrong."""
        if self.problems:
            raise VerificationError(
                f"{self.folder}: " + "; ".join(self.problems), "write the package again, or copy it again"
            )


def verify(path: Path) -> Verification:
    """Check a package, a folder or an archive, in a fresh process: hashes, ISA floor, golden vectors.

    The check is this installation's own `verify.py`; the one in the folder is among what is checked.

    Raises:
        PackageError: There is no package at `path`, or one of a newer schema.
        VerificationError: The check could not be carried out.
    """
    folder = opened(path)
    command = [sys.executable, str(DEVICE_FILES / "verify.py"), str(folder), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise VerificationError(f"{path}: the model did not answer within {_SECONDS} s") from error
    try:
        # A runtime may print lines of its own before the answer.
        answer = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except json.JSONDecodeError as error:
        tail = " ".join(done.stderr.strip().splitlines()[-3:])
        raise VerificationError(
            f"{path}: the check died with exit code {done.returncode}: {tail}",
            "the files are as they were written; the runtime of this host cannot run them",
        ) from error
    refuse_newer(path, answer["failed"])
    return Verification(
        folder=path, problems=tuple(answer["problems"]), figures=answer["figures"], failed=answer["failed"]
    )


def opened(path: Path) -> Path:
    """Return the folder of a package; an archive is unpacked into one that lives as long as this process.

    Raises:
        PackageError: There is no package at `path`.
        VerificationError: An archive that is damaged, or that `pack` did not write.
    """
    folder = archive.unpacked(path) if path.is_file() else path
    if not (folder / SUMS).is_file():
        raise PackageError(
            f"{path}: " + (f"not a package (no {SUMS} in it)" if path.exists() else "no such file or folder"),
            "give the folder of one target, e.g. runs/NAME/packages/TARGET, or what `edgeft pack` made of it",
        )
    return folder


def check_contents(folder: Path) -> tuple[Failure, tuple[str, ...]]:
    """Return which kind of thing is wrong with a package's files, and what, as its `verify.py` says; runs no model."""
    failed, problems = _program()["check_contents"](folder)
    return failed, tuple(problems)


@functools.cache
def _program() -> dict[str, Any]:
    return runpy.run_path(str(DEVICE_FILES / "verify.py"), run_name="verify")


def refuse_newer(path: Path, failed: Failure) -> None:
    """Raise `PackageError` if a package's schema is not the one that is read here."""
    if failed == "schema":
        raise PackageError(
            f"{path}: a package of a newer schema; this edgeft reads schema {SCHEMA}",
            "update edgeft (pip install --upgrade edgeft), or run the package's own verify.py",
        )
