"""Measure exported files where they run: predictions, accuracy and more, parity, latency; and the statistics of it.

Every file runs in a fresh worker process with nothing but its one runtime (DESIGN: sections 9, 10). No torch.
"""

from edgeft.measure import classification, gallery, user_metric
from edgeft.measure.host import check_isa_floor, host_fingerprint
from edgeft.measure.latency import Variant, latencies, ratio
from edgeft.measure.quality import accuracy, parity, predict

__all__ = [
    "Variant",
    "accuracy",
    "check_isa_floor",
    "classification",
    "gallery",
    "host_fingerprint",
    "latencies",
    "parity",
    "predict",
    "ratio",
    "user_metric",
]
