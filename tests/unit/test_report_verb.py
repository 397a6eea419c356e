"""`edgeft report`: the page again, from the stored report and nothing else."""

import json
from pathlib import Path

import pytest
from test_reporting import _report as make_report

from edgeft import reporting
from edgeft.cli.main import main
from edgeft.errors import ExitCode


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "trash"
    reporting.write_json(make_report(), folder / "report.json")
    reporting.write_html(reporting.read_json(folder / "report.json"), folder / "first.html")
    return folder


def test_it_writes_the_same_page_again(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    assert main(["report", "runs/trash"]) == ExitCode.OK
    assert capsys.readouterr().out == "report: runs/trash/report.html\n"
    assert (run / "report.html").read_bytes() == (run / "first.html").read_bytes()


def test_a_file_and_another_place(run, capsys):
    page = run.parent / "elsewhere" / "page.html"
    assert main(["report", str(run / "report.json"), "-o", str(page), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == {"page": str(page)}
    assert page.read_bytes() == (run / "first.html").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text(path.read_text()[:-100]), "not valid JSON"),
        (lambda path: path.write_text('{"schema": "edgeft-report", "version": 9}'), "report version 9"),
    ],
)
def test_what_is_no_report_leaves_the_old_page_alone(run, capsys, damage, message):
    (run / "report.html").write_text("the old page")
    damage(run / "report.json")
    assert main(["report", str(run)]) == ExitCode.USAGE
    assert message in capsys.readouterr().err
    assert (run / "report.html").read_text() == "the old page"
