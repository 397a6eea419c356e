"""The shape of what the gate reads of a run's report; where a report differs, the error names the place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeft.gating.baseline import Count
from edgeft.types import BudgetName


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class _File(_Part):
    name: str
    sha256: str


class _Coverage(_Part):
    ratio: float


class _Artifact(_Part):
    files: list[_File]
    scheme: str
    size_bytes: Count
    coverage: _Coverage


class _Accuracy(_Part):
    predictions: list[int]


class _Parity(_Part):
    samples: Annotated[Count, Field(ge=1)]
    flips: Count
    confident_flips: Count


class _Details(_Part):
    host: dict[str, Any] | None = None
    """Of a board."""


class _Runtime(_Part):
    runtime: str
    version: str
    details: _Details = _Details()


class _Latency(_Part):
    p50_ms: float
    p90_ms: float
    threads: Count
    evidence: str
    runtime: _Runtime


class _Estimate(_Part):
    cycles: Count
    ms: float
    source: str


class _Memory(_Part):
    ram_bytes: Count
    flash_bytes: Count


class Budget(_Part):
    """A budget of the target's profile, as it was checked."""

    name: BudgetName
    value: float
    limit: float
    unit: Literal["bytes", "ms", "ops"]
    met: bool
    culprit: str


class Target(_Part):
    """What was found out about one target."""

    target: str
    artifact: _Artifact
    baseline: _Artifact
    accuracy: _Accuracy
    parity: _Parity
    executed: _Runtime | None = None
    latency: _Latency | None
    estimate: _Estimate | None = None
    memory: _Memory | None = None
    budgets: list[Budget] = []


class Check(_Part):
    """One line of the run's own verdict."""

    name: str
    target: str
    values: dict[str, Any] = {}


class _Verdict(_Part):
    outcome: str
    checks: list[Check]


class _Samples(_Part):
    ids: list[str]
    labels: list[int]


class _Data(_Part):
    classes: list[str]
    fingerprint: str
    preprocessing: dict[str, Any] | None = None


class _Column(_Part):
    type: str
    name: str


class Table(_Part):
    """As much of a table's preprocessing as the gate compares."""

    columns: list[_Column]


class _Macs(_Part):
    after: Count | None = None


class _Model(_Part):
    macs: _Macs = _Macs()


class _Finetune(_Part):
    method: str = "none"


class _Quantize(_Part):
    method: str = "ptq"


class _Recipe(_Part):
    finetune: _Finetune | None = None
    prune: dict[str, Any] | None = None
    quantize: _Quantize | None = None
    gate: dict[str, Any] | None = None
    """Validated by itself: a newer recipe may have keys that only a newer edgeft knows."""

    @property
    def trains(self) -> bool:
        """Whether any stage trains weights."""
        methods = (self.finetune or _Finetune()).method, (self.quantize or _Quantize()).method
        return methods != ("none", "ptq") or bool(self.prune)


class _Stage(_Part):
    name: str


class Report(_Part):
    """As much of a report as the gate reads."""

    name: str
    created: str
    recipe: _Recipe
    recipe_hash: str
    data: _Data
    about_model: _Model = Field(alias="model")
    samples: _Samples
    stages: list[_Stage]
    targets: list[Target]
    verdict: _Verdict
    host: dict[str, Any]
    versions: dict[str, str]
