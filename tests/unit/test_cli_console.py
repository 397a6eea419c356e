import io

import pytest
from rich.console import Console

from edgeft.cli import console

ROWS = [
    {
        "target": target,
        "accuracy float": "98.2 %",
        "accuracy int8": "97.9 % [96.1, 99.0]",
        "latency": "0.41 ms (2.3x)",
        "size": "48 KiB",
        "agreement": "99.8 %",
    }
    for target in ("cpu-litert", "cpu-onnxruntime", "cpu-openvino")
]


def rendered(width: int, show, *arguments) -> str:
    file = io.StringIO()
    show(*arguments, Console(file=file, width=width, markup=False, highlight=False))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_table_is_never_cut_and_never_too_wide(width):
    text = rendered(width, console.print_table, ROWS)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text and "..." not in text
    for row in ROWS:
        for key, value in row.items():
            assert key in text and value in text


def test_the_layout_follows_the_width():
    wide, middle, narrow = (rendered(width, console.print_table, ROWS) for width in (140, 80, 40))
    assert all(value in wide for value in ("cpu-litert", "48 KiB"))
    heads = [line for line in middle.splitlines() if all(row["target"] in line for row in ROWS)]
    assert len(heads) == 1  # turned on its side
    assert sum(line.startswith("target") for line in narrow.splitlines()) == 3  # one block each


def test_no_rows_no_table():
    assert rendered(80, console.print_table, []) == ""


def test_a_single_column_and_markup_like_text():
    text = rendered(80, console.print_table, [{"target": "[bold]x[/bold]"}])
    assert "[bold]x[/bold]" in text


def test_a_verdict_shows_outcome_checks_and_notes():
    checks = [
        {
            "target": "cpu-litert",
            "name": "accuracy",
            "outcome": "pass",
            "detail": "drop 0.2 points [-0.4, 0.8]",
        },
        {"target": "cpu-openvino", "name": "size", "outcome": "fail", "detail": "1.2x of float"},
    ]
    verdict = {"outcome": "fail", "reference": "the float model", "checks": checks, "notes": ["one seed"]}
    text = rendered(80, console.print_verdict, verdict)
    assert "verdict: FAIL (against the float model)" in text
    assert (
        "drop 0.2 points [-0.4, 0.8]" in text and "✗ cpu-openvino  size" in text and "note: one seed" in text
    )


def test_marks_are_ascii_where_the_terminal_is():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console.print_table(ROWS, Console(file=file, width=140))
    log = console.StageLog(Console(file=file, width=80))
    log.stage_finished("x", 1.0, "")
    file.flush()
    assert "ok x" in file.buffer.getvalue().decode("ascii")


def test_a_terminal_gets_a_live_display_that_leaves_one_line_per_stage():
    file = io.StringIO()
    terminal = Console(file=file, width=80, force_terminal=True, markup=False, color_system=None)
    with console.StageLog(terminal) as log:
        log.stage_started("finetune", "Fine-tune [all]")
        log.stage_progress("epoch [1]", done=1, total=2)
        log.stage_finished("finetune", 2.0, "done")
    assert "Fine-tune [all]" in file.getvalue() and "2.0 s" in file.getvalue()


def test_paths_are_shown_as_one_would_type_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert console.shown(tmp_path / "runs" / "x") == "runs/x"
    assert console.shown(tmp_path.parent / "y") == str(tmp_path.parent / "y")
