"""Measure exported files where they run: predictions, accuracy and more, parity, latency; and the statistics of it.

Every file runs in a fresh worker process with nothing but its one runtime (DESIGN: sections 9, 10). No torch.
"""

from edgeft.measure import classification, gallery, memory, user_metric
from edgeft.measure.budgets import check_budgets
from edgeft.measure.devices import check_device, devices, find_device, missing_device
from edgeft.measure.host import (
    check_host,
    check_isa_floor,
    host_fingerprint,
    host_state,
    host_warnings,
    int8_warning,
)
from edgeft.measure.latency import Variant, latencies, ratio, throughputs, write_inputs
from edgeft.measure.layer_times import operation_times
from edgeft.measure.predicting import predict_on_all_cores
from edgeft.measure.quality import accuracy, parity, predict
from edgeft.measure.session import Session
from edgeft.measure.transports import connect

__all__ = [
    "Session",
    "Variant",
    "accuracy",
    "check_budgets",
    "check_device",
    "check_host",
    "check_isa_floor",
    "classification",
    "connect",
    "devices",
    "find_device",
    "gallery",
    "host_fingerprint",
    "host_state",
    "host_warnings",
    "int8_warning",
    "latencies",
    "memory",
    "missing_device",
    "operation_times",
    "parity",
    "predict",
    "predict_on_all_cores",
    "ratio",
    "throughputs",
    "user_metric",
    "write_inputs",
]
