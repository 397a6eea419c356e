"""How often `edgeft compare` errs: the same file compared with itself, and with one that is really 10 % slower.

Usage::

    python bench/compare_error_rates.py slower model.onnx slower.onnx --inputs inputs.npy
    python bench/compare_error_rates.py record model.onnx --inputs inputs.npy --minutes 20 --to traces.jsonl
    python bench/compare_error_rates.py record model.onnx --inputs inputs.npy --minutes 10 --load 1 --to traces.jsonl
    python bench/compare_error_rates.py record model.onnx --head slower.onnx --inputs inputs.npy --to traces.jsonl
    python bench/compare_error_rates.py replay traces.jsonl
    python bench/compare_error_rates.py simulate

`slower` adds an op to an ONNX file. `record` appends rounds of real processes, interleaved as `edgeft compare` does,
for as long as it is told. `replay` cuts every recording into comparisons one after the other, each of which begins
where the one before was decided, and hands their rounds with their recorded clock to the very function that decides in
`edgeft compare`. So no process counts in two comparisons, rounds stay in the order of time with whatever drift there
was, and no comparison goes on into another recording; what the end of a recording leaves undecided is not counted.

Where a file was compared with itself, `replay` also cuts the recordings into disjoint windows of the time limit and
decides each many times, with base and head exchanged in rounds drawn at random: as the order of processes is drawn,
this is what might as well have been recorded on that machine on that day. Replays of one window are no independent
comparisons, so the interval is that of as many as there are windows, which is on the safe side.

`simulate` needs no trace: it compares intervals by how often they miss the true ratio under noise of known kinds.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy import signal

from edgeft.benchmarking.comparison import LIMIT, TIME_LIMIT_SECONDS
from edgeft.benchmarking.interleaving import Interleaving
from edgeft.benchmarking.subjects import subject
from edgeft.measure import sequential
from edgeft.measure.host import host_fingerprint
from edgeft.measure.sequential import Decision, Process, Round
from edgeft.measure.statistics import bootstrap_ratio, score_interval, wilson_interval

Array = npt.NDArray[np.float64]
OUTCOMES = ("pass", "fail", "inconclusive")


def main() -> None:
    parser = argparse.ArgumentParser(description="Error rates of edgeft compare.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("slower", help="add an op to an ONNX file")
    verb.add_argument("base", type=Path)
    verb.add_argument("out", type=Path)
    verb.add_argument("--inputs", type=Path, required=True, help=".npy of samples")
    verb.add_argument("--share", type=float, default=0.1, help="of the file's latency")
    verb = verbs.add_parser("record", help="append a trace of real rounds")
    verb.add_argument("base")
    verb.add_argument("--head", help="base itself by default")
    verb.add_argument("--to", dest="traces", type=Path, required=True, help="the file of traces")
    verb.add_argument("--inputs", type=Path, help="samples; a package's golden vectors by default")
    verb.add_argument("--minutes", type=float, default=20.0)
    verb.add_argument("--load", type=int, default=0, help="processes that each keep a core busy meanwhile")
    verb = verbs.add_parser("replay", help="cut traces into comparisons")
    verb.add_argument("traces", type=Path)
    verb.add_argument("--exchanges", type=int, default=50, help="of base and head, per window")
    verb = verbs.add_parser("simulate", help="miss rates of intervals under known noise")
    verb.add_argument("--repetitions", type=int, default=1000)
    chosen = parser.parse_args()
    {"slower": _slower, "record": _record, "replay": _replay, "simulate": _simulate}[chosen.verb](chosen)


def _slower(chosen: argparse.Namespace) -> None:
    """Write the file with as many Tanh over its input as cost the wanted share, their mean added to the output."""
    sample = np.load(chosen.inputs)[:1]
    _write_with_chain(chosen.base, chosen.out, 8)
    base_ms, slower_ms = _quiet_ms([chosen.base, chosen.out], sample)
    length = max(1, round(8 * chosen.share * base_ms / (slower_ms - base_ms)))
    _write_with_chain(chosen.base, chosen.out, length)
    base_ms, slower_ms = _quiet_ms([chosen.base, chosen.out], sample)
    print(
        f"{chosen.out}: {length} Tanh, {slower_ms:.4f} ms for {base_ms:.4f}: ratio {slower_ms / base_ms:.3f}"
    )


def _write_with_chain(source: Path, path: Path, length: int) -> None:
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["before_extra" if name == output else name for name in node.output]
    names = [graph.input[0].name, *(f"extra_{i}" for i in range(length))]
    # Multiplied by next to nothing: the result stays as it is, and no optimizer can tell.
    graph.initializer.append(numpy_helper.from_array(np.array(1e-30, np.float32), "extra_factor"))
    graph.node.extend(
        [helper.make_node("Tanh", [one], [other]) for one, other in itertools.pairwise(names)]
        + [
            helper.make_node("ReduceMean", [names[-1]], ["extra_mean"], keepdims=0),
            helper.make_node("Mul", ["extra_mean", "extra_factor"], ["extra_nothing"]),
            helper.make_node("Add", ["before_extra", "extra_nothing"], [output]),
        ]
    )
    onnx.save(model, path)


def _quiet_ms(paths: list[Path], sample: npt.NDArray[Any]) -> list[float]:
    """Return the tenth percentile of each file's latency, in turns within one process: what it costs undisturbed."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    sessions = [ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"]) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(400):
        for session, taken in zip(sessions, times, strict=True):
            for _ in range(3):
                start = time.perf_counter()
                session.run(None, {session.get_inputs()[0].name: sample})
                taken.append(1e3 * (time.perf_counter() - start))
    return [float(np.percentile(taken, 10)) for taken in times]


def _record(chosen: argparse.Namespace) -> None:
    base = subject(chosen.base, inputs=chosen.inputs)
    head = subject(chosen.head or chosen.base, inputs=chosen.inputs)
    what = f"{base.name} x {head.name if chosen.head else 'itself'}, load {chosen.load}"
    with chosen.traces.open("a") as file, _load(chosen.load):
        header = {"trace": what, "same": chosen.head is None, "host": host_fingerprint()}
        print(json.dumps(header), file=file)
        interleaving = Interleaving(base, head, seed=time.time_ns())
        for n, measured in enumerate(interleaving.rounds(60 * chosen.minutes), 1):
            print(json.dumps(asdict(measured)), file=file, flush=True)
            print(f"\r{what}: {2 * n} pairs", end="")
    print()


@contextlib.contextmanager
def _load(processes: int) -> Iterator[None]:
    """Keep as many cores busy as there are processes."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Recordings of one pair of files under one load; `same` if the two are one file."""

    same: bool
    recordings: list[list[Round]]


def _replay(chosen: argparse.Namespace) -> None:
    heads = (*(f"{outcome} [%]" for outcome in OUTCOMES), "median s", "longest s")
    table = Table("trace", "pairs", "ratio", "comparisons", *heads, "windows", "fail when exchanged [%]")
    for what, trace in _read(chosen.traces).items():
        rounds = [one for recording in trace.recordings for one in recording]
        ratio = sequential.ratio_interval(sequential.log_ratios(rounds, "p50_ms"), 0.05)
        ends = [end for recording in trace.recordings for end in _comparisons(recording)]
        seconds = [end.seconds for end in ends] or [np.nan]
        windows = [window for recording in trace.recordings for window in _windows(recording)]
        table.add_row(
            what,
            f"{2 * len(rounds)}",
            f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            f"{len(ends)}",
            *(_share(sum(end.outcome == outcome for end in ends), len(ends)) for outcome in OUTCOMES),
            f"{np.median(seconds):.0f}",
            f"{max(seconds):.0f}",
            f"{len(windows)}",
            _exchanged_fails(windows, chosen.exchanges) if trace.same else "",
        )
    Console(width=200).print(table)


def _read(path: Path) -> dict[str, Trace]:
    """Return the recordings of every trace, by its name."""
    traces: dict[str, Trace] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "trace" in record:
            trace = traces.setdefault(record["trace"], Trace(same=record["same"], recordings=[]))
            trace.recordings.append([])
            continue
        sides = {side: (Process(**record[side][0]), Process(**record[side][1])) for side in ("base", "head")}
        trace.recordings[-1].append(Round(**sides, seconds=record["seconds"]))
    return traces


def _comparisons(recording: list[Round]) -> list[Decision]:
    """Decide one comparison after the other, each from the first round that none has used."""
    found: list[Decision] = []
    while 2 * len(recording) >= sequential.FEWEST_PAIRS:
        end = _decide(recording)
        if end.outcome == "inconclusive" and end.pairs == 2 * len(recording):
            break  # the recording ended before the time was up
        found.append(end)
        recording = recording[end.pairs // 2 :]
    return found


def _windows(recording: list[Round]) -> list[list[Round]]:
    """Cut a recording into what a comparison may take at most; the rest at its end is left out."""
    found = []
    while len(window := list(_within_time(recording))) < len(recording):
        found.append(window)
        recording = recording[len(window) :]
    return found


def _exchanged_fails(windows: list[list[Round]], exchanges: int) -> str:
    """Return the share of "fail" over windows with base and head exchanged in rounds drawn at random."""
    random, fails = np.random.default_rng(0), 0
    for window, _ in itertools.product(windows, range(exchanges)):
        exchanged = [
            replace(one, base=one.head, head=one.base) if random.integers(2) else one for one in window
        ]
        fails += _decide(exchanged).outcome == "fail"
    if not windows:
        return "-"
    low, high = score_interval(fails / (len(windows) * exchanges), len(windows))
    share = 100 * fails / (len(windows) * exchanges)
    return f"{share:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def _decide(rounds: list[Round]) -> Decision:
    return sequential.decide(_within_time(rounds), limit=LIMIT, time_limit_seconds=TIME_LIMIT_SECONDS)


def _within_time(rounds: list[Round]) -> Iterator[Round]:
    """Yield rounds until another would not end in time, as `Interleaving` does."""
    passed = longest = 0.0
    for taken, measured in enumerate(rounds):
        if 2 * taken >= sequential.FEWEST_PAIRS and passed + longest >= TIME_LIMIT_SECONDS:
            return
        passed, longest = passed + measured.seconds, max(longest, measured.seconds)
        yield measured


def _share(count: int, total: int) -> str:
    if not total:
        return "-"
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _simulate(chosen: argparse.Namespace) -> None:
    """Print how often intervals miss the true ratio, and how wide they are, with 12 and 40 pairs."""
    table = Table("pairs", "miss [%]", "noise", *(f"{name}: miss [%], width" for name in METHODS))
    random = np.random.default_rng(0)
    for pairs, error in ((12, 0.05), (12, 0.01), (40, 0.01)):
        for noise in NOISES:
            cells = []
            drawn = [noise(random, 4 * (pairs // 2)).reshape(-1, 4) for _ in range(chosen.repetitions)]
            for method in METHODS.values():
                bounds = np.array([method(_interleaved(one), error, i) for i, one in enumerate(drawn)])
                missed = np.mean((bounds[:, 0] > 0.0) | (bounds[:, 1] < 0.0))
                cells.append(f"{100 * missed:.1f}, {np.median(np.diff(bounds)):.3f}")
            table.add_row(str(pairs), f"{100 * error:g}", noise.__name__, *cells)
    Console(width=160).print(table)


def _interleaved(logs: Array) -> Array:
    """Return the logs of (base, head) of each pair, (N, 2), from those of rounds in time (R, 4), ABBA and BAAB."""
    logs = logs.copy()
    logs[1::2] = logs[1::2][:, [1, 0, 3, 2]]
    return np.concatenate([logs[:, [0, 1]], logs[:, [3, 2]]])


def quiet(random: np.random.Generator, n: int) -> Array:
    return 0.03 * random.standard_normal(n)


def heavy_tails(random: np.random.Generator, n: int) -> Array:
    return 0.02 * random.standard_t(2, n)


def one_sided(random: np.random.Generator, n: int) -> Array:
    return 0.05 * np.exp(random.standard_normal(n))


def two_layouts(random: np.random.Generator, n: int) -> Array:
    return 0.08 * (random.random(n) < 0.4) + 0.005 * random.standard_normal(n)


def outliers(random: np.random.Generator, n: int) -> Array:
    return 0.6 * (random.random(n) < 0.1) + 0.01 * random.standard_normal(n)


def wandering(random: np.random.Generator, n: int) -> Array:
    speed: Array = signal.lfilter([np.sqrt(1 - 0.9**2)], [1.0, -0.9], 0.1 * random.standard_normal(n))
    return speed + 0.01 * random.standard_normal(n)


def busy_neighbour(random: np.random.Generator, n: int) -> Array:
    start, length = random.integers(n), random.integers(n // 4, n)
    busy = (np.arange(n) >= start) & (np.arange(n) < start + length)
    return 0.6 * busy * (random.random(n) < 0.5) + 0.02 * random.standard_normal(n)


def _percentile(logs: Array, error: float, seed: int) -> tuple[float, float]:
    """The ratio of medians, as a report's speed-up is given."""
    _, low, high = bootstrap_ratio(
        np.exp(logs[:, 1]), np.exp(logs[:, 0]), confidence=1 - error, resamples=2000, seed=seed
    )
    return float(np.log(low)), float(np.log(high))


def _studentized_mean(logs: Array, error: float, seed: int) -> tuple[float, float]:
    d = logs[:, 1] - logs[:, 0]
    drawn = d[np.random.default_rng(seed).integers(len(d), size=(2000, len(d)))]
    t = (drawn.mean(1) - d.mean()) / np.maximum(drawn.std(1), 1e-12)
    low, high = d.mean() - d.std() * np.quantile(t, [1 - error / 2, error / 2])
    return low, high


def _signed_rank(logs: Array, error: float, seed: int) -> tuple[float, float]:
    d = logs[:, 1] - logs[:, 0]
    i, j = np.triu_indices(len(d))
    walsh = np.sort((d[i] + d[j]) / 2)
    chances = np.ones(1)
    for rank in range(1, len(d) + 1):
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    cut = int(np.searchsorted(np.cumsum(chances), error / 2, side="right")) - 1
    return walsh[cut], walsh[-1 - cut]


def _trimmed(logs: Array, error: float, seed: int) -> tuple[float, float]:
    """What `edgeft compare` uses."""
    found = sequential.ratio_interval(logs[:, 1] - logs[:, 0], error)
    return float(np.log(found.low)), float(np.log(found.high))


NOISES = (quiet, heavy_tails, one_sided, two_layouts, outliers, wandering, busy_neighbour)
METHODS: dict[str, Callable[[Array, float, int], tuple[float, float]]] = {
    "ratio of medians": _percentile,
    "mean": _studentized_mean,
    "signed rank": _signed_rank,
    "trimmed mean": _trimmed,
}


if __name__ == "__main__":
    main()
