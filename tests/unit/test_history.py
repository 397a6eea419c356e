"""The history of releases: lines that are appended whole or not at all, and the page made of them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from edgeft.errors import ConfigError, WorkspaceError
from edgeft.reporting import history
from edgeft.types import Check, Verdict


def report(
    targets: tuple[str, ...] = ("cpu-litert", "cpu-openvino"), *, accuracy: float = 0.91, day: int = 1
) -> dict:
    return {
        "name": "trash",
        "created": f"2026-11-{day:02}T10:00:00+00:00",
        "targets": [
            {
                "target": name,
                "accuracy": {
                    "value": accuracy,
                    "low": accuracy - 0.02,
                    "high": accuracy + 0.02,
                    "samples": 431,
                },
                "latency": {"p50_ms": 2.5},
                "ratio": {"ratio": 0.31, "low": 0.3, "high": 0.33},
                "artifact": {"size_bytes": 1_312_345, "coverage": {"ratio": 0.98}},
            }
            for name in targets
        ],
    }


def verdict(outcome: str = "pass", target: str = "cpu-litert") -> Verdict:
    check = Check(name="accuracy", target=target, outcome=outcome, detail="")
    return Verdict(outcome=outcome, reference="", checks=(check,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def test_every_release_is_one_line_and_comes_back(path):
    assert history.append(path, report(), verdict(), release="1.0", commit="3f2a9c1d0e")
    assert history.append(path, report(accuracy=0.89, day=2), verdict("fail"), release="1.1")
    assert len(path.read_text().splitlines()) == 2
    first, second = history.read(path)
    assert (first.label, first.name, first.commit, first.outcome) == ("1.0", "trash", "3f2a9c1d0e", "pass")
    assert second.targets["cpu-litert"].model_dump() == {
        "accuracy": 0.89, "low": 0.87, "high": 0.91, "samples": 431, "p50_ms": 2.5, "ratio": 0.31, "ratio_low": 0.3,
        "ratio_high": 0.33, "size_bytes": 1_312_345, "coverage": 0.98, "outcome": "fail",
        "estimated_ms": None, "ram_bytes": None,
    }  # fmt: skip
    assert second.targets["cpu-openvino"].outcome == "not checked"


def test_a_device_without_a_clock_has_its_memory_in_the_history(path):
    on_device = report(("mcu-tflm", "npu"))
    for each in on_device["targets"]:
        each |= {"latency": None, "ratio": None, "memory": {"ram_bytes": 36_912, "flash_bytes": 76_000}}
    on_device["targets"][1]["estimate"] = {"ms": 0.82}
    assert history.append(path, on_device, verdict())
    (release,) = history.read(path)
    assert [(t.p50_ms, t.ram_bytes, t.estimated_ms) for t in release.targets.values()] == [
        (None, 36_912, None), (None, 36_912, 0.82),
    ]  # fmt: skip
    page = history.trend_page(path)
    assert "RAM, KB" in page and "0.820 (estimated)" in page and "latency over fastest float" not in page


def test_older_lines_stay_as_they_are_to_the_byte(path):
    history.append(path, report(), verdict(), release="1.0")
    before = path.read_bytes()
    history.append(path, report(day=2), verdict(), release="1.1")
    assert path.read_bytes().startswith(before)
    path.write_bytes(before.removesuffix(b"\n"))  # an editor that ends files without a line break
    history.append(path, report(day=2), verdict(), release="1.1")
    assert path.read_bytes().startswith(before) and len(history.read(path)) == 2


def test_a_job_that_runs_again_adds_nothing(path):
    assert history.append(path, report(), verdict(), release="1.0")
    history.append(path, report(day=2), verdict(), release="1.1")
    before = path.read_bytes()
    assert not history.append(path, report(), verdict(), release="1.0")
    assert path.read_bytes() == before


def test_names_may_hold_what_others_take_for_line_breaks(path):
    for name in ("a\nb", "a\u2028b", "a\x85b"):
        history.append(path, report() | {"name": name}, verdict())
    assert [release.name for release in history.read(path)] == ["a\nb", "a\u2028b", "a\x85b"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "history.jsonl:2: not JSON"),
        (lambda text: text + "\n", "history.jsonl:3: not JSON"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "history version 2, this edgeft reads 1"),
        (lambda text: text.replace("edgeft-history", "other"), "not a release"),
        (lambda text: "[]\n" + text, "history.jsonl:1: not a release"),
        (lambda text: text.replace("0.91", "91"), "targets.cpu-litert.accuracy: Input should be less than"),
        (lambda text: text.replace('"low"', '"lower"'), "targets.cpu-litert.low: Field required"),
        (lambda text: text.replace("1312345", "null"), "size_bytes"),
        (lambda text: text.replace("2.5", "NaN"), "NaN is no JSON number"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(path, damage, message):
    history.append(path, report(), verdict(), release="1.0")
    history.append(path, report(day=2), verdict(), release="1.1")
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    for use in (
        history.read,
        history.trend_page,
        lambda path: history.append(path, report(day=3), verdict()),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            use(path)
    assert path.read_bytes() == before


def test_what_is_no_file_is_a_clear_error(path, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        history.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        history.append(tmp_path, report(), verdict())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        history.read(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="no release"):
        history.trend_page(path)
    with pytest.raises(WorkspaceError):
        history.append(Path("/dev/null/history.jsonl"), report(), verdict())


def test_figures_that_are_no_numbers_never_get_in(path):
    broken = report()
    broken["targets"][0]["ratio"]["ratio"] = float("nan")
    with pytest.raises(ConfigError, match="ratio"):
        history.append(path, broken, verdict())
    assert not path.exists()


def test_the_page_shows_every_release_of_every_target(path):
    for number in range(14):
        names = ("cpu-litert", "cpu-openvino") if number else ("cpu-litert",)
        outcome = ("pass", "fail", "inconclusive")[number % 3]
        history.append(
            path,
            report(names, accuracy=0.9 + number / 1000, day=number + 1),
            verdict(outcome),
            release=f"1.{number}",
        )
    page = history.trend_page(path)
    assert page.count("<figure>") == 2 and page.count("<svg") == 2
    shown = re.findall(r"<td>([^<]*) \[[^<]*</td>", page)
    assert shown.count("91.3 %") == 2 and shown.count("90.0 %") == 1
    assert ">1.13</text>" in page  # the last release is always named on the axis
    assert "http" not in page and "<script" not in page
    assert page == history.trend_page(path)


def test_names_mean_themselves_on_the_page(path):
    odd = "<b>$x_1$ & more than fits below an axis</b>"
    history.append(path, report((odd,)) | {"name": odd}, verdict(target=odd), release=odd, commit="$$")
    page = history.trend_page(path)
    assert "<b>" not in page
    assert html.unescape(page).count(odd) == 6
    assert "&lt;b&gt;$x_1$" in page.split("<svg")[1]


def test_the_line_is_json_that_others_can_read(path):
    history.append(path, report(), verdict(), release="1.0")
    record = json.loads(path.read_text())
    assert (record["schema"], record["version"]) == ("edgeft-history", 1)
