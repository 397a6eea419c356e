"""The Markdown summary: what a reader of the job's page sees after it is rendered."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from edgeft.errors import WorkspaceError
from edgeft.reporting.markdown import append_summary, markdown
from edgeft.types import Check, Verdict

GITHUB = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ROWS = [
    {"target": "cpu-litert", "accuracy": "91.2 %", "drop": "+0.4 [-0.2, +1.0]"},
    {"target": "cpu-openvino", "accuracy": "91.0 %", "drop": "\N{MINUS SIGN}0.2 [-0.8, +0.4]"},
]


def verdict(*checks: Check, notes: tuple[str, ...] = ()) -> Verdict:
    return Verdict(outcome="fail", reference="release 1.2", checks=checks, notes=notes)


def check(outcome: str, target: str = "cpu-litert", detail: str = "a detail") -> Check:
    return Check(name="accuracy", target=target, outcome=outcome, detail=detail)


def cells(rendered: str) -> list[str]:
    found = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", rendered, re.DOTALL)
    return [html.unescape(cell) for cell in found]


def test_outcome_tables_and_notes():
    text = markdown(
        verdict(check("pass"), check("inconclusive"), check("fail"), notes=("seed variance",)),
        title="trash",
        rows=ROWS,
        headings={"drop": "drop, points"},
    )
    rendered = GITHUB.render(text)
    assert "<h2>trash</h2>" in rendered
    assert "<strong>❌ fail</strong> against release 1.2" in rendered
    assert cells(rendered)[:6] == ["target", "accuracy", "drop, points", *ROWS[0].values()]
    outcomes = [cell for cell in cells(rendered) if cell.split()[-1] in ("pass", "fail", "inconclusive")]
    assert outcomes == ["❌ fail", "⚠️ inconclusive", "✅ pass"]
    folded = rendered[rendered.index("<details>") : rendered.index("</details>")]
    assert "1 check passed" in folded and folded.count("<tr>") == 2 and "✅ pass" in folded
    assert "<li>seed variance</li>" in rendered


def test_figures_are_aligned_to_the_right():
    rendered = GITHUB.render(markdown(verdict(), title="t", rows=ROWS))
    assert '<th style="text-align:right">accuracy</th>' in rendered
    assert '<th style="text-align:right">drop</th>' in rendered
    assert "<th>target</th>" in rendered


def test_without_rows_checks_or_reference():
    text = markdown(Verdict(outcome="no baseline", reference="", checks=()), title="t", rows=[])
    assert text.split() == ["##", "t", "**🔳", "no", "baseline**"]


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1))
def test_any_text_means_itself(text):
    rendered = GITHUB.render(markdown(verdict(check("fail", text, text), notes=(text,)), title="t", rows=[]))
    assert cells(rendered) == ["outcome", "target", "check", "detail", "❌ fail", text, "accuracy", text]
    assert html.unescape(rendered.split("<li>")[1].split("</li>")[0]) == text


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "a | b", "`x`\ny", "[l](u)", "@team #12", "&lt;", "1. x", "- x", "+"],
)
def test_text_that_looks_like_markup(text):
    rendered = GITHUB.render(markdown(verdict(check("fail", text), notes=(text,)), title=text, rows=[]))
    shown = " ".join(text.split())
    assert shown in cells(rendered)
    inline = html.escape(shown, quote=False)
    assert f"<h2>{inline}</h2>" in rendered and f"<li>{inline}</li>" in rendered


def test_summaries_of_one_job_follow_each_other(tmp_path):
    path = tmp_path / "new" / "summary.md"
    for title in ("one", "two"):
        append_summary(path, markdown(verdict(check("pass")), title=title, rows=ROWS))
    rendered = GITHUB.render(path.read_text(encoding="utf-8"))
    assert re.findall("<h2>(.*?)</h2>", rendered) == ["one", "two"]
    assert rendered.count("<table>") == 4


def test_a_summary_that_cannot_be_written(tmp_path):
    with pytest.raises(WorkspaceError, match="cannot be written"):
        append_summary(tmp_path, "text")
