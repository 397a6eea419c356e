"""The shape of what the gate reads of a run's report; where a report differs, the error names the place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeft.types import BudgetName


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _File(_Part):
    name: str
    sha256: str


class _Coverage(_Part):
    ratio: float


class _Artifact(_Part):
    files: list[_File]
    scheme: str
    size_bytes: int
    coverage: _Coverage


class _Accuracy(_Part):
    predictions: list[int]


class _Parity(_Part):
    samples: Annotated[int, Field(ge=1)]
    flips: int
    confident_flips: int


class _Runtime(_Part):
    runtime: str
    version: str


class _Latency(_Part):
    p50_ms: float
    p90_ms: float
    threads: int
    evidence: str
    runtime: _Runtime


class _Estimate(_Part):
    cycles: int
    ms: float
    source: str


class _Memory(_Part):
    ram_bytes: int
    flash_bytes: int


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


class _Stage(_Part):
    name: str


class Report(_Part):
    """As much of a report as the gate reads."""

    name: str
    created: str
    recipe: dict[str, Any]
    recipe_hash: str
    data: _Data
    about_model: dict[str, Any] = Field(alias="model")
    samples: _Samples
    stages: list[_Stage]
    targets: list[Target]
    verdict: _Verdict
    host: dict[str, Any]
    versions: dict[str, str]
