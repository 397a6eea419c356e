"""JUnit XML: valid by the schema that CI systems go by, whatever names and messages hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from edgeft.reporting.junit import junit
from edgeft.types import Check, Verdict

# Of Jenkins' xUnit plugin, MIT licence; as pytest's own tests carry it.
SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parent / "schemas" / "junit-10.xsd"))
OUTCOMES = ("pass", "fail", "inconclusive", "no baseline")


def check(outcome: str, target: str = "cpu-litert", detail: str = "drop 0.10 points") -> Check:
    return Check(name="accuracy", target=target, outcome=outcome, detail=detail)


def verdict(*checks: Check, notes: tuple[str, ...] = ()) -> Verdict:
    return Verdict(outcome="fail", reference="release 1.2", checks=checks, notes=notes)


def parsed(text: str) -> etree._Element:
    root = etree.fromstring(text.encode())
    SCHEMA.assertValid(root)
    (suite,) = root
    return suite


def test_every_outcome_has_its_element():
    suite = parsed(junit(verdict(*map(check, OUTCOMES), notes=("a note",)), suite="trash"))
    assert [[child.tag for child in case] for case in suite.iter("testcase")] == [
        [], ["failure"], ["error"], ["skipped"],
    ]  # fmt: skip
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "errors", "skipped")} == {
        "name": "trash", "tests": "4", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip
    failure = suite.find("testcase/failure")
    assert failure.get("message") == failure.text == "drop 0.10 points"
    assert failure.getparent().attrib == {"classname": "cpu-litert", "name": "accuracy", "time": "0"}
    assert suite.findtext("system-err") == "a note"
    assert "pass: cpu-litert, accuracy: drop 0.10 points" in suite.findtext("system-out")


def test_what_the_user_lets_pass_is_not_shown_in_red():
    suite = parsed(junit(verdict(check("inconclusive")), suite="trash", inconclusive="pass"))
    assert suite.find("testcase/skipped").get("type") == "inconclusive"
    assert suite.get("errors") == "0"


def test_no_check_is_a_valid_file_with_one_test():
    suite = parsed(junit(verdict(), suite=" \n"))
    assert (suite.get("tests"), suite.get("skipped"), suite.get("name")) == ("1", "1", "edgeft gate")


def test_why_nothing_was_compared_is_a_test_that_was_skipped():
    suite = parsed(junit(verdict(notes=("base.json does not exist",)), suite="trash"))
    (case,) = suite.iter("testcase")
    assert (case.get("name"), [child.tag for child in case]) == ("baseline", ["skipped"])
    assert case.find("skipped").get("message") == "base.json does not exist"


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("a < b & \"c\" ]]> 'd'", "a < b & \"c\" ]]> 'd'"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("\ud800 \ufffe", "\\ud800 \\ufffe"),
        ("日本語 \U0001f600", "日本語 \U0001f600"),
    ],
)
def test_characters_that_xml_knows_or_does_not_know(given_text, shown):
    suite = parsed(junit(verdict(check("fail", given_text, given_text)), suite=given_text))
    assert suite.get("name") == suite.find("testcase").get("classname") == shown
    assert suite.findtext("testcase/failure") == shown


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=())), st.sampled_from(OUTCOMES))
def test_any_text_gives_a_valid_file(text, outcome):
    parsed(junit(verdict(check(outcome, text, text), notes=(text,)), suite=text))


def test_lines_of_a_detail_survive_in_the_text():
    failure = parsed(junit(verdict(check("fail", detail="one\ntwo")), suite="s")).find("testcase/failure")
    assert (failure.get("message"), failure.text) == ("one two", "one\ntwo")
