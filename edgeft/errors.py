"""The one exception family of edgeft and the documented exit codes.

Every error that a user can cause carries a message (what, got, allowed) and a hint (do this). The CLI
prints both and exits with the class's code; nothing but the CLI decides about exit codes at run time.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every `edgeft` verb (documented in the README)."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    INTERNAL = 3
    INCONCLUSIVE = 4
    MISSING = 5
    INTERRUPTED = 130


class EdgeftError(Exception):
    """A failure with a message for people and, where one exists, the way out.

    Args:
        message: What happened, where (file and key, layer, sample), what was got and what is allowed.
        hint: What to do about it; empty if there is nothing useful to say.
    """

    exit_code = ExitCode.CHECK_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class ConfigError(EdgeftError):
    """A recipe, target or calibration file, or a command line, that cannot be used."""

    exit_code = ExitCode.USAGE


class DataError(EdgeftError):
    """A data set that cannot be used as the recipe asks."""

    exit_code = ExitCode.USAGE


class ModelError(EdgeftError):
    """A model or weights file that cannot be used as the recipe asks."""

    exit_code = ExitCode.USAGE


class WorkspaceError(EdgeftError):
    """A workspace that cannot be written or is in use by another run."""

    exit_code = ExitCode.USAGE


class MissingDependencyError(EdgeftError):
    """An optional package or a piece of hardware that this work needs and this host lacks."""

    exit_code = ExitCode.MISSING


class BudgetError(EdgeftError):
    """A budget or accuracy limit of the recipe that could not be met; names the best that was reached."""


class QuantizationError(EdgeftError):
    """A model that cannot be quantized as asked, or numerics that broke the contract."""


class ExportError(EdgeftError):
    """An exported file that differs from the Q/DQ program, or a converter that failed."""


class MeasurementError(EdgeftError):
    """A measurement that could not be taken: a worker died, a runtime refused the file."""


class RefusedError(MeasurementError):
    """A file, input, device or option that the runtime does not take; its message is the runtime's own."""

    exit_code = ExitCode.USAGE


class VerificationError(EdgeftError):
    """A package whose hashes or golden vectors do not hold."""


class PackageError(VerificationError):
    """A path that is no package, or a package that a newer edgeft wrote."""

    exit_code = ExitCode.USAGE


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest allowed word, or an empty string.

    Args:
        word: What the user wrote.
        allowed: What could have been meant.
    """
    words = list(allowed)
    # Of names in a row (npu-ethos-u55-128, -256, ...) one that begins like this is meant, however much is missing.
    longer = [each for each in words if word and each.startswith(word)]
    matches = longer or difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
