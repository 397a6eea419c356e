"""The pytest plugin: a fixture that fails a test when a package is worse than its baseline.

::

    def test_release(edgeft_gate):
        edgeft_gate("packages/cpu-litert", "data/test", baseline="baseline.json")

pytest finds it by itself where edgeft is installed, and loads nothing else of edgeft until the fixture is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pytest

if TYPE_CHECKING:
    from edgeft.benchmarking.package_gate import Judgement
    from edgeft.types import Verdict

Location = str | PathLike[str]
_INCONCLUSIVE = ("fail", "skip", "pass")


class EdgeftGate(Protocol):
    """What the fixture `edgeft_gate` is."""

    def __call__(
        self,
        package: Location,
        data: Location,
        baseline: Location,
        *,
        margin: float | None = None,
        inconclusive: Literal["fail", "skip", "pass"] = "fail",
        columns: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> Verdict:
        """Score a package on labelled data, and fail the test unless it is as good as the baseline.

        The test is skipped where there is no baseline yet: ``pytest --edgeft-update`` writes it. Relative paths are
        looked up in pytest's root folder.

        Args:
            package: A package, folder or archive.
            data: A folder of class folders, or a table.
            baseline: A baseline file, of ``edgeft gate --update`` or ``pytest --edgeft-update``.
            margin: Largest acceptable accuracy drop, 0..1; by default that of the baseline's recipe, else 0.01.
            inconclusive: What becomes of a test whose samples cannot decide.
            columns: What a table calls its columns ``label``, ``path`` and ``text``.
            workers: Processes at a time; by default one per core.

        Returns:
            The verdict, for further assertions.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes baselines."""
    parser.getgroup("edgeft").addoption(
        "--edgeft-update",
        action="store_true",
        help="write the baselines of edgeft_gate that are missing, and move on those whose package passes",
    )


@pytest.fixture
def edgeft_gate(pytestconfig: pytest.Config) -> EdgeftGate:
    """Judge a package against a baseline; see `EdgeftGate`."""

    def gate(
        package: Location,
        data: Location,
        baseline: Location,
        *,
        margin: float | None = None,
        inconclusive: Literal["fail", "skip", "pass"] = "fail",
        columns: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> Verdict:
        from edgeft import package as packages
        from edgeft.benchmarking.labelled import Columns
        from edgeft.benchmarking.package_gate import gate_package
        from edgeft.errors import ConfigError, EdgeftError

        path, problem = pytestconfig.rootpath / baseline, ""
        try:
            if inconclusive not in _INCONCLUSIVE:
                raise ConfigError(
                    f"inconclusive = {inconclusive!r}; allowed are {', '.join(map(repr, _INCONCLUSIVE))}"
                )
            known = [field.name for field in dataclasses.fields(Columns)]
            if unknown := sorted(set(columns or {}) - set(known)):
                raise ConfigError(f"columns: {', '.join(unknown)}; allowed are {', '.join(known)}")
            judgement = gate_package(
                packages.read(pytestconfig.rootpath / package),
                pytestconfig.rootpath / data,
                path,
                margin=margin,
                columns=Columns(**columns) if columns else None,
                workers=workers,
            )
            if pytestconfig.getoption("--edgeft-update"):
                return _updated(judgement, path)
        except EdgeftError as error:
            problem = f"edgeft_gate: {error}"
        if problem:  # not while the error is handled: pytest would tell of both
            pytest.fail(problem, pytrace=False)
        _conclude(judgement.verdict, inconclusive)
        return judgement.verdict

    return gate


def _conclude(verdict: Verdict, inconclusive: Literal["fail", "skip", "pass"]) -> None:
    """End the test as the verdict says; a return lets it go on."""
    text = _text(verdict)
    match verdict.outcome:
        case "fail":
            pytest.fail(text, pytrace=False)
        case "no baseline":
            pytest.skip(f"{text}\n(pytest --edgeft-update writes it)")
        case "inconclusive" if inconclusive == "fail":
            pytest.fail(text, pytrace=False)
        case "inconclusive" if inconclusive == "skip":
            pytest.skip(text)


def _updated(judgement: Judgement, path: Path) -> Verdict:
    """Move the baseline on to a package that passes, and return the verdict; fail the test if it does not."""
    from edgeft import gating
    from edgeft.errors import ConfigError

    verdict, known = judgement.verdict, judgement.baseline
    if verdict.outcome not in ("pass", "no baseline"):
        pytest.fail(f"{_text(verdict)}\n(not updated: the package does not pass)", pytrace=False)
    others = set(known.release.targets) - set(judgement.candidate.release.targets) if known else set()
    if others:
        raise ConfigError(
            f"{path}: holds other targets besides this package's: {', '.join(sorted(others))}",
            "move it on with the report of a run: edgeft gate REPORT --baseline FILE --update",
        )
    gating.write_baseline(gating.updated(known, judgement.candidate), path)
    return verdict


def _text(verdict: Verdict) -> str:
    against = f" against {verdict.reference}" if verdict.reference else ""
    lines = [f"edgeft_gate: {verdict.outcome}{against}"]
    lines += [f"  {check.outcome}: {check.target}, {check.name}: {check.detail}" for check in verdict.checks]
    return "\n".join([*lines, *(f"  note: {note}" for note in verdict.notes)])
