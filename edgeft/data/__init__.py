"""Data sets: image folders and scikit-learn's digits, split, decoded and identified by content. No torch."""

from edgeft.data.loading import from_manifest, load, to_manifest
from edgeft.data.samples import calibration_samples, subset
from edgeft.data.sources import Scan, scan

__all__ = ["Scan", "calibration_samples", "from_manifest", "load", "scan", "subset", "to_manifest"]
