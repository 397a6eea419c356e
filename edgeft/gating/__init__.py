"""The gate: is this release as good as the last one? Pass, fail, inconclusive, or no baseline. No torch.

`gate` judges the report of a run against a baseline file (the last release, and an anchor that stays, so that small
drops cannot add up); `judge` is the verdict that a run gives itself, against its own float model. Both make
`types.Verdict` from the same checks (`gating.checks`):

- **accuracy** by non-inferiority on the same samples (`edgeft.measure.noninferiority`),
- **latency** by the interval of an interleaved comparison (`edgeft compare`), never from two reports,
- **size, MACs, memory, int8 coverage, parity** exactly.
"""

from edgeft.gating.baseline import Baseline, find_baseline, read_baseline, write_baseline
from edgeft.gating.checks import DEFAULT_MARGIN, SEED_NOTE, overall
from edgeft.gating.exact import Limits
from edgeft.gating.judging import accuracy_margin, judge
from edgeft.gating.release import Candidate, commit_of, from_package, from_report, read_document, read_report
from edgeft.gating.releasing import compare_releases, gate
from edgeft.gating.samples import SampleSet
from edgeft.gating.timing import TimingRecord, read_timing
from edgeft.gating.updating import changes, updated

__all__ = [
    "DEFAULT_MARGIN",
    "SEED_NOTE",
    "Baseline",
    "Candidate",
    "Limits",
    "SampleSet",
    "TimingRecord",
    "accuracy_margin",
    "changes",
    "commit_of",
    "compare_releases",
    "find_baseline",
    "from_package",
    "from_report",
    "gate",
    "judge",
    "overall",
    "read_baseline",
    "read_document",
    "read_report",
    "read_timing",
    "updated",
    "write_baseline",
]
