"""Does throughput grow with streams? A file with one and with several inferences at a time, in turns.

Usage::

    python bench/stream_scaling.py FILE_OR_PACKAGE... [--streams 2] [--processes 10] [--seconds 2]

One thread per inference. The gain is the ratio of inferences per second with a 95 % interval over pairs of processes;
at most the number of streams, if there are as many idle cores and memory is not the limit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from edgeft import measure
from edgeft.benchmarking import Subject, subject
from edgeft.benchmarking.subjects import is_package
from edgeft.measure.statistics import bootstrap_ratio

Doubles = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput with one and with several streams.")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--processes", type=int, default=10, help="with each number of streams")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each process")
    chosen = parser.parse_args()
    table = Table("file", "1 stream [1/s]", f"{chosen.streams} streams [1/s]", "gain [95 %]")
    for name in chosen.files:
        fed = None if is_package(Path(name)) else "random"
        one, several = _rates(subject(name, threads=1, inputs=fed), chosen)
        gain, low, high = bootstrap_ratio(several, one)
        table.add_row(
            "/".join(Path(name).parts[-2:]),
            f"{np.median(one):,.0f}",
            f"{np.median(several):,.0f}",
            f"{gain:.2f} [{low:.2f}, {high:.2f}]",
        )
    Console().print(table)


def _rates(model: Subject, chosen: argparse.Namespace) -> tuple[Doubles, Doubles]:
    """Return inferences per second of processes with one and with several streams, which took turns."""
    variant = measure.Variant(
        label=model.name, artifact=model.artifact, profile=model.profile, inputs=model.inputs
    )
    rates: dict[int, list[float]] = {1: [], chosen.streams: []}
    for turn in range(chosen.processes):
        for streams in list(rates) if turn % 2 == 0 else list(rates)[::-1]:
            (result,) = measure.throughputs(
                [variant], streams=streams, rounds=1, min_runs=50, min_seconds=chosen.seconds
            )
            rates[streams] += result.per_second
    return np.array(rates[1]), np.array(rates[chosen.streams])


if __name__ == "__main__":
    main()
