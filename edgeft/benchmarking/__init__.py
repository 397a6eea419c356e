"""What is measured of packages and model files from outside a run: latency, comparisons, accuracy. No torch."""

from edgeft.benchmarking.bench import Bench, Measured, StopRule, benchmark, benchmark_all, record
from edgeft.benchmarking.comparison import Comparison, compare
from edgeft.benchmarking.subjects import Subject, subject

__all__ = [
    "Bench",
    "Comparison",
    "Measured",
    "StopRule",
    "Subject",
    "benchmark",
    "benchmark_all",
    "compare",
    "record",
    "subject",
]
