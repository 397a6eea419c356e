"""What OpenVINO's Model API and DL Streamer want to know of a classifier: the IR's rt_info ``model_info``."""

from __future__ import annotations

from edgeft.preprocessing import ImagePreprocessing, Interpolation
from edgeft.types import QuantModel

_INTERPOLATIONS: dict[Interpolation, str] = {"nearest": "NEAREST", "bilinear": "LINEAR", "bicubic": "CUBIC"}


def model_info(model: QuantModel) -> dict[str, str]:
    """Return the entries of ``model_info``: labels, pixel statistics and resizing of a picture classifier.

    Model API scales and crops in its own way, without Pillow's antialiasing: the statistics are exact, the pixels
    nearly the same. It separates labels by spaces, so that a space in a label becomes an underscore. Frames are taken
    as OpenCV reads them, blue first.

    Returns:
        Name -> value; empty for texts and tables, which Model API does not know.
    """
    picture = model.preprocessing
    if not isinstance(picture, ImagePreprocessing):
        return {}
    statistics = {
        "mean_values": " ".join(f"{255 * mean:.9g}" for mean in picture.mean),
        "scale_values": " ".join(f"{255 * std:.9g}" for std in picture.std),
    }
    return {
        "model_type": "Classification",
        "labels": " ".join("_".join(label.split()) for label in model.labels),
        **({} if picture.embedded else statistics),
        "reverse_input_channels": str(picture.channels == 3),
        "resize_type": "crop",
        "interpolation_mode": _INTERPOLATIONS[picture.interpolation],
    }
