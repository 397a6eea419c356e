"""Write and read `report.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from edgeft import documents
from edgeft.files import write_text
from edgeft.reporting.document import SCHEMA, VERSION, Document
from edgeft.types import ArtifactScheme, Evidence, Outcome

_HINT = "a run writes report.json when it is finished; an older report is read by the edgeft that wrote it"
# An array of numbers or strings, spread over lines by json.dumps. A line break inside a JSON string is
# written as \n, so the real ones that this looks for are always between values.
_FLAT_ARRAY = re.compile(r"\[\n\s*([^\[\]{}]*?)\n\s*\]")


def write_json(report: Mapping[str, Any], path: Path) -> Path:
    """Write the document, complete or not at all; flat arrays take one line each. Returns `path`.

    Raises:
        WorkspaceError: It cannot be written.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    return write_text(path, _FLAT_ARRAY.sub(lambda m: "[" + re.sub(r"\n\s*", " ", m[1]) + "]", text) + "\n")


def read_json(path: Path) -> Document:
    """Read a report that `write_json` wrote, and check that it is one.

    Raises:
        ConfigError: The file is missing, not JSON, not a report, of another version, or incomplete.
    """
    report = documents.read(path, schema=SCHEMA, version=VERSION, hint=_HINT)
    require_whole(report, str(path))
    return report


def require_whole(report: Mapping[str, Any], where: str) -> None:
    """Check that a document has all that the table, the page and a history show of it.

    Args:
        report: The document.
        where: What it was read from, for messages.

    Raises:
        ConfigError: It is damaged or incomplete.
    """
    documents.validated(
        _Report, dict(report), where, "the report is damaged or incomplete: run the recipe again"
    )


class _Part(BaseModel):
    """A part of the document: what readers rely on; further keys of the same version are let through."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _Samples(_Part):
    ids: list[str]
    labels: list[int]


class _Coverage(_Part):
    mac_ops: int
    int8_mac_ops: int
    ratio: float


class _Artifact(_Part):
    path: str
    format: str
    scheme: ArtifactScheme
    size_bytes: int
    coverage: _Coverage


class _Interval(_Part):
    value: float
    low: float
    high: float


class _Accuracy(_Interval):
    samples: int
    predictions: list[int]


class _Parity(_Part):
    agreement: float
    within_2_lsb: float
    flips: int


class _Runtime(_Part):
    runtime: str
    version: str
    mac_precision: dict[str, int]


class _Latency(_Part):
    label: str
    evidence: Evidence
    p10_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_ms: list[list[float]]
    runtime: _Runtime


class _Ratio(_Part):
    base: str
    head: str
    ratio: float
    low: float
    high: float


class _Layer(_Part):
    name: str
    op: str
    cycles: int
    macs: int
    sram_bytes: int
    utilisation: float


class _Estimate(_Part):
    source: str
    cycles: int
    ms: float
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    npu_ops: int
    fallback_ops: list[str]
    layers: list[_Layer]


class _Memory(_Part):
    ram_bytes: int
    flash_bytes: int
    ram_layer: str
    flash_layer: str
    source: str


class _Budget(_Part):
    name: str
    value: float
    limit: float
    unit: str
    met: bool
    culprit: str


class _ClassMetrics(_Part):
    name: str
    support: int
    precision: _Interval
    recall: _Interval
    f1: _Interval
    undefined: list[str]


class _ReliabilityBin(_Part):
    samples: int
    confidence: float
    accuracy: float


class _Metrics(_Part):
    samples: int
    accuracy: _Interval
    balanced_accuracy: _Interval
    macro_precision: _Interval
    macro_recall: _Interval
    macro_f1: _Interval
    calibration_error: _Interval
    top5_accuracy: _Interval | None
    roc_auc: _Interval | None
    per_class: list[_ClassMetrics]
    confusion: list[list[int]]
    reliability: list[_ReliabilityBin]


class _Exhibit(_Part):
    name: str
    label: str
    prediction: str
    probability: float
    label_probability: float
    png: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
    text: str


class _Confusion(_Part):
    label: str
    prediction: str
    count: int
    support: int
    exhibits: list[_Exhibit]


class _Gallery(_Part):
    hardest: list[_Exhibit]
    confusions: list[_Confusion]


class _Target(_Part):
    target: str
    title: str
    evidence: Evidence
    artifact: _Artifact
    baseline: _Artifact
    accuracy: _Accuracy
    baseline_accuracy: _Accuracy
    drop: _Interval
    parity: _Parity
    executed: _Runtime | None = None
    latency: _Latency | None
    baseline_latency: _Latency | None
    other_float: list[_Latency]
    ratio: _Ratio | None
    estimate: _Estimate | None = None
    memory: _Memory | None = None
    budgets: list[_Budget] = []
    metrics: _Metrics | None = None
    baseline_metrics: _Metrics | None = None
    user_metrics: dict[str, float] | None = None
    baseline_user_metrics: dict[str, float] | None = None
    gallery: _Gallery | None = None


class _Check(_Part):
    name: str
    target: str
    outcome: Outcome
    detail: str


class _Verdict(_Part):
    outcome: Outcome
    reference: str
    checks: list[_Check]
    notes: list[str]


class _Stage(_Part):
    name: str
    seconds: float
    config: dict[str, Any]
    results: dict[str, Any]


class _Finetune(_Part):
    method: str | None
    seconds: float
    feature_seconds: float | None
    epochs: list[dict[str, float | None]]


class _Report(_Part):
    """Version 1 of the document, as far as `table`, the page and the gate read it."""

    name: str
    created: str
    recipe: dict[str, Any]
    recipe_hash: str
    data: dict[str, Any]
    about_model: dict[str, Any] = Field(alias="model")
    samples: _Samples
    stages: list[_Stage]
    finetune: _Finetune | None = None
    targets: list[_Target]
    verdict: _Verdict
    host: dict[str, Any]
    versions: dict[str, str]
    notes: list[str]
