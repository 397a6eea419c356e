"""No preprocessing: models made elsewhere, of which nothing is known but the tensor that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgeft.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayPreprocessing:
    """Arrays that are fed as they are, in the file's own layout; what makes them is up to the user's program.

    Args:
        shape: Of one sample, without the batch; every size at least 1.
        dtype: Real values, which a quantized file turns into its integers, or ids.
    """

    shape: tuple[int, ...]
    dtype: Literal["float32", "int32"] = "float32"

    kind: ClassVar[Literal["array"]] = "array"

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ConfigError(f"preprocessing: arrays of shape {self.shape}; every size is at least 1")
        if self.dtype not in ("float32", "int32"):
            raise ConfigError(f"preprocessing: arrays of {self.dtype!r}; allowed are float32 and int32")

    @property
    def input_dtype(self) -> Literal["float32", "int32"]:
        """Of the model inputs."""
        return self.dtype

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one model input."""
        return self.shape

    def load(self, paths: Sequence[Path]) -> npt.NDArray[Any]:
        """Read .npy files, each one sample or several, into (N, *shape).

        Raises:
            DataError: A file is no array, of another shape or kind of number, or holds NaN or infinity.
        """
        found = [self._load(path) for path in paths]
        return np.concatenate(found) if found else np.empty((0, *self.shape), self.dtype)

    def _load(self, path: Path) -> npt.NDArray[Any]:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not an array file ({error})", "write it with numpy.save") from error
        samples = array[None] if array.shape == self.shape else array
        kind = "f" if self.dtype == "float32" else "iu"
        if samples.shape[1:] != self.shape or samples.dtype.kind not in kind:
            raise DataError(
                f"{path}: {array.dtype} {array.shape}; the model takes {self.dtype} {self.shape}, "
                f"or (N, {', '.join(map(str, self.shape))})"
            )
        if samples.dtype.kind == "f" and not np.isfinite(samples).all():
            raise DataError(f"{path}: holds NaN or infinity")
        return np.asarray(samples, self.dtype)

    def files(self) -> dict[str, str]:
        """Return the files that belong beside `to_dict`: none."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` reads it back."""
        return {"kind": self.kind, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArrayPreprocessing:
        """Read what `to_dict` wrote."""
        return cls(shape=tuple(data["shape"]), dtype=data["dtype"])
