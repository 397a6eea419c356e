"""What is found out about packages and model files from outside a run: latency, comparisons, accuracy, device costs.

No torch.
"""

from edgeft.benchmarking.bench import Bench, Measured, StopRule, benchmark, benchmark_all, record
from edgeft.benchmarking.comparison import Comparison, compare
from edgeft.benchmarking.device_costs import DeviceCost, device_cost, has_clock
from edgeft.benchmarking.device_costs import record as cost_record
from edgeft.benchmarking.packing import pack_file
from edgeft.benchmarking.subjects import Subject, subject

__all__ = [
    "Bench",
    "Comparison",
    "DeviceCost",
    "Measured",
    "StopRule",
    "Subject",
    "benchmark",
    "benchmark_all",
    "compare",
    "cost_record",
    "device_cost",
    "has_clock",
    "pack_file",
    "record",
    "subject",
]
