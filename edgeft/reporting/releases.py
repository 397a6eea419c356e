"""The records of a history: what one release reached on each of its targets."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeft.types import Outcome

SCHEMA: Final = "edgeft-history"
VERSION: Final = 1

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Part(BaseModel):
    """Further keys of the same version are let through."""

    model_config = ConfigDict(extra="allow", frozen=True)


class ReleasedTarget(_Part):
    """What one release reached on one target; `low` and `high` are the accuracy's 95 % interval."""

    accuracy: Share
    low: Share
    high: Share
    samples: Annotated[int, Field(ge=1)]
    p50_ms: Positive | None = None
    """Of a clock; None where there is none, and so is the ratio."""
    estimated_ms: Positive | None = None
    """Of the target's compiler."""
    ratio: Positive | None = None
    """Latency over that of this runtime's fastest float, with its 95 % interval."""
    ratio_low: Positive | None = None
    ratio_high: Positive | None = None
    ram_bytes: Annotated[int, Field(ge=1)] | None = None
    """Where the device's memory counts."""
    size_bytes: Annotated[int, Field(ge=1)]
    coverage: Share
    """Of MAC ops in int8."""
    outcome: Outcome | Literal["not checked"]


class Release(_Part):
    """One line of the history."""

    schema_: Annotated[Literal["edgeft-history"], Field(alias="schema")]
    version: Literal[1]
    created: str
    name: str
    release: str = ""
    commit: str = ""
    outcome: Outcome
    targets: dict[str, ReleasedTarget]

    @property
    def label(self) -> str:
        """What people call it: its version, else its commit, else its day."""
        return self.release or self.commit[:7] or self.created[:10]
