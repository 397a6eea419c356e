"""Image preprocessing: one frozen object, the same in training, calibration, evaluation and on the device.

It is split in two halves because they run at different places: `decode` (file -> uint8 pixels of the model's
size) happens once per sample, `normalize` (uint8 -> float32 tensor) happens at the model's door. The package's
`preprocess.json` carries this object; `example.py` beside it repeats these dozen lines with numpy and Pillow.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgeft.errors import ConfigError, DataError

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """How a picture becomes a model input.

    The shorter side is resized to `resize` pixels, the centre `size` x `size` is cropped, channels become
    grey (1) or RGB (3), and pixels are scaled to 0..1, less `mean`, over `std` per channel.

    Args:
        size: Model input height and width in pixels.
        resize: Length of the shorter side in pixels before the centre crop; at least `size`.
        channels: 1 (grey) or 3 (RGB).
        mean: Per channel, in units of 0..1.
        std: Per channel, in units of 0..1.
        interpolation: Resampling filter.
        embedded: Whether the network scales pixels itself, so that its inputs are pixels in 0..255 as they are.
    """

    size: int
    resize: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    embedded: bool = False

    kind: ClassVar[Literal["image"]] = "image"
    input_dtype: ClassVar[Literal["float32"]] = "float32"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ConfigError(
                f"preprocessing: got {self.channels} channels, {len(self.mean)} means and {len(self.std)} standard "
                "deviations; allowed is 1 or 3 channels with one of each per channel"
            )
        if not 0 < self.size <= self.resize:
            raise ConfigError(
                f"preprocessing: resize {self.resize} must be at least the input size {self.size} (> 0)"
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one model input as (C, H, W)."""
        return (self.channels, self.size, self.size)

    def load(self, source: Path | bytes, *, name: str = "") -> npt.NDArray[np.uint8]:
        """Decode an image file completely and resize its shorter side to `resize`, uncropped.

        Args:
            source: A file or its bytes.
            name: What to call it in an error; the path by default.

        Returns:
            Pixels (H, W, channels), uint8, min(H, W) == `resize`.

        Raises:
            DataError: The file is not an image, or is truncated.
        """
        from PIL import Image, ImageOps

        label = name or (str(source) if isinstance(source, Path) else "image")
        try:
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                opened.load()
                # Phones store rotation as a flag; a viewer turns the picture, so must the model's eye.
                picture = ImageOps.exif_transpose(opened).convert("L" if self.channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{label}: cannot be read as an image ({error})",
                'remove or replace it, or set task.bad_samples = "skip" to leave such files out and count them',
            ) from error
        ratio = self.resize / min(picture.size)
        width, height = (max(self.resize, round(edge * ratio)) for edge in picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), _pil_filter(self.interpolation))
        return _as_hwc(np.asarray(picture, dtype=np.uint8))

    def crop(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut the centre `size` x `size` out of pixels (H, W, C)."""
        top, left = (pixels.shape[0] - self.size) // 2, (pixels.shape[1] - self.size) // 2
        return pixels[top : top + self.size, left : left + self.size]

    def decode(self, source: Path | bytes, *, name: str = "") -> npt.NDArray[np.uint8]:
        """Return `crop(load(source))`: pixels (size, size, channels), uint8. Raises `DataError` as `load`."""
        return self.crop(self.load(source, name=name))

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn pixels (N, H, W, C) uint8 into model inputs (N, C, H, W) float32."""
        if self.embedded:
            return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def files(self) -> dict[str, str]:
        """Return the files that belong beside `to_dict`: none."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` reads it back."""
        fields = dataclasses.asdict(self)
        if not self.embedded:  # a key that readers of older versions do not know
            del fields["embedded"]
        return {"kind": self.kind, **fields}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImagePreprocessing:
        """Read what `to_dict` wrote."""
        fields = {key: value for key, value in data.items() if key != "kind"}
        return cls(**{**fields, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


def _pil_filter(name: Interpolation) -> Any:
    from PIL import Image

    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
    return filters.get(name, Image.Resampling.BICUBIC)


def _as_hwc(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
