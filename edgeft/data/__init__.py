"""Data sets of images, texts and table rows: read, split and identified by content. No torch."""

from edgeft.data.loading import load
from edgeft.data.manifest import from_manifest, to_manifest
from edgeft.data.samples import calibration_samples, embed_normalization, subset
from edgeft.data.scanning import Scan, scan

__all__ = [
    "Scan",
    "calibration_samples",
    "embed_normalization",
    "from_manifest",
    "load",
    "scan",
    "subset",
    "to_manifest",
]
