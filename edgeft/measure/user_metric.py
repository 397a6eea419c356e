"""A user's own metric: a function in a Python file of theirs, called with labels and probabilities. No torch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeft import user_code
from edgeft.errors import ConfigError
from edgeft.types import IntArray

_KEY = "evaluate.metrics"
_CALLED = "it is called with labels (N,) int64 and probabilities (N, K) float64"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMetric:
    """A function of labels (N,) and probabilities (N, K); `sha256` is that of the file's bytes, for cache keys."""

    name: str
    path: Path
    sha256: str
    function: Callable[[IntArray, npt.NDArray[np.float64]], Any]

    def __call__(self, labels: IntArray, probabilities: npt.NDArray[np.float64]) -> dict[str, float]:
        """Return the metric's value under its name, or several under ``name.key`` if it gives a dictionary.

        Raises:
            ConfigError: The function raised, or returned something else than finite numbers.
        """
        what = f"{self.name}(labels, probabilities)"
        with user_code.Blamed(self.path, what, key=_KEY, error=ConfigError, hint=_CALLED):
            returned = self.function(labels.copy(), probabilities.copy())
        values = returned if isinstance(returned, Mapping) else {"": returned}
        for key, value in values.items():
            if not isinstance(key, str) or not _is_number(value):
                where = f" under {key!r}" if isinstance(returned, Mapping) else ""
                raise ConfigError(
                    f"{_KEY}: {self.path}: {self.name} returned {_shown(value)}{where}; allowed are a finite number "
                    "or a dictionary of texts to such numbers",
                    "return float(...) of what it computes",
                )
        return {f"{self.name}.{key}" if key else self.name: float(value) for key, value in values.items()}


def load_all(specs: Sequence[str], base: Path) -> tuple[UserMetric, ...]:
    """Load every metric of a recipe as `load` does. Raises `ConfigError`, also where two have one name."""
    loaded = tuple(load(spec, base) for spec in specs)
    names = [metric.name for metric in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{_KEY}: more than one function is called {twice[0]!r}",
            "rename one: the report lists metrics by name",
        )
    return loaded


def load(spec: str, base: Path) -> UserMetric:
    """Load ``path/to/file.py:function``; a relative path starts at `base`.

    Raises:
        ConfigError: There is no such file or function, or the file cannot be imported.
    """
    found = user_code.load(spec, base, key=_KEY, error=ConfigError)
    return UserMetric(name=found.name, path=found.path, sha256=found.sha256, function=found.function)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real | np.number | np.bool_) and math.isfinite(float(value))


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"
