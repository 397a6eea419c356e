"""The device package: the model file, everything a device needs to use it, and the proof that it works.

A package is a plain folder (DESIGN: section 8)::

    <model file(s)>  manifest.json  labels.txt  preprocess.json  golden.npz  model_card.md  example.py  verify.py
    SHA256SUMS

`example.py` and `verify.py` are the files of `edgeft/device/`, copied as they are: they read everything about
the model from the manifest, and on a device they need numpy and the one runtime only. That folder is data to
this package and is never imported from here.
"""

from edgeft.package.archive import SUFFIX as ARCHIVE_SUFFIX
from edgeft.package.card import Origin
from edgeft.package.layout import MANIFEST, SCHEMA, SUMS, sha256
from edgeft.package.prediction import Prediction, predict
from edgeft.package.reading import Package, pack, read
from edgeft.package.verification import Verification, verify
from edgeft.package.writing import MAX_LSB, write

__all__ = [
    "ARCHIVE_SUFFIX",
    "MANIFEST",
    "MAX_LSB",
    "SCHEMA",
    "SUMS",
    "Origin",
    "Package",
    "Prediction",
    "Verification",
    "pack",
    "predict",
    "read",
    "sha256",
    "verify",
    "write",
]
