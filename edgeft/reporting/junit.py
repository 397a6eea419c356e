"""JUnit XML: what every CI system shows as a list of tests, from a verdict.

There is no standard. The file is valid by both schemas in use, that of Jenkins' xUnit plugin (which pytest also
writes for) and Apache Ant's, the stricter one: https://github.com/windyroad/JUnit-Schema.

A check becomes a test case of its target. One that fails is a ``failure``. One that is **inconclusive is an
``error``**: JUnit's word for a test that could not come to an answer, which Jenkins and GitLab show in red. Only
where the user lets such verdicts pass, it is ``skipped``, because the job is green then and the list must not
contradict it; so is a check without a baseline. Where nothing was compared at all, one skipped test says why: of a
list without any, a CI system makes an error of its own, or silence.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal
from xml.etree import ElementTree

from edgeft.types import Check, Outcome, Verdict

Inconclusive = Literal["fail", "pass"]

_FAILURE: dict[Outcome, str] = {"fail": "failure", "inconclusive": "error", "no baseline": "skipped"}
# All that XML 1.0 cannot hold, not even escaped (https://www.w3.org/TR/xml/#charsets).
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(verdict: Verdict, *, suite: str, inconclusive: Inconclusive = "fail", accepted: str = "") -> str:
    """Return a verdict as a JUnit XML document.

    Args:
        verdict: The gate's decision; its reference, outcome and notes become properties and output of the suite.
        suite: Name of the test suite: what was judged.
        inconclusive: What the gate's caller makes of a check that could not be decided.
        accepted: Why the release is taken although not every check passes: these are skipped, then.
    """
    why = "; ".join(verdict.notes) or "nothing was compared"
    checks = verdict.checks or (Check(name="baseline", target="", outcome="no baseline", detail=why),)
    kinds = [_kind(check, inconclusive) for check in checks]
    if accepted:
        kinds = ["skipped" if kind else "" for kind in kinds]
        checks = tuple(
            replace(check, detail=f"accepted: {accepted}: {check.detail}")
            if check.outcome in ("fail", "inconclusive")
            else check
            for check in checks
        )
    counts = Counter(kinds)
    root = ElementTree.Element("testsuites")
    element = ElementTree.SubElement(
        root,
        "testsuite",
        name=_line(suite) or "edgeft gate",
        package="edgeft",
        id="0",
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname=_line(platform.node()) or "localhost",
        tests=str(len(checks)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time="0",
    )
    properties = ElementTree.SubElement(element, "properties")
    for name, value in (("outcome", verdict.outcome), ("reference", verdict.reference)):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    for check, kind in zip(checks, kinds, strict=True):
        _add_case(element, check, kind)
    # Ant's schema has no place for the output of a test that passed: all details are listed below the tests.
    lines = [f"{check.outcome}: {check.target}, {check.name}: {check.detail}" for check in verdict.checks]
    ElementTree.SubElement(element, "system-out").text = _clean("\n".join(lines))
    ElementTree.SubElement(element, "system-err").text = _clean("\n".join(verdict.notes))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def junit_error(message: str, *, suite: str) -> str:
    """Return a JUnit XML document of one error: the gate came to no verdict at all.

    Args:
        message: What went wrong.
        suite: Name of the test suite.
    """
    check = Check(name="verdict", target="", outcome="inconclusive", detail=message)
    return junit(Verdict(outcome="inconclusive", reference="", checks=(check,), notes=()), suite=suite)


def _kind(check: Check, inconclusive: Inconclusive) -> str:
    """Return the element that says why a check did not pass; empty if it did."""
    if check.outcome == "inconclusive" and inconclusive == "pass":
        return "skipped"
    return _FAILURE.get(check.outcome, "")


def _add_case(suite: ElementTree.Element, check: Check, kind: str) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=_line(check.target) or "all", name=_line(check.name), time="0"
    )
    if kind:
        # Some viewers show the attribute alone, some the text alone.
        reason = ElementTree.SubElement(case, kind, type=check.outcome, message=_line(check.detail))
        reason.text = _clean(check.detail)


def _line(text: str) -> str:
    return " ".join(_clean(text).split())


def _clean(text: str) -> str:
    r"""Write characters that XML cannot hold as Python would: ``\x1b``."""
    return _NO_XML.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
