"""The report: complete and versioned JSON, a self-contained page, and one table for both."""

import base64
import dataclasses
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeft import reporting, target
from edgeft.errors import ConfigError, VerificationError, WorkspaceError
from edgeft.measure import classification, gallery
from edgeft.measure.statistics import tango_interval, wilson_interval
from edgeft.reporting.document import plain
from edgeft.reporting.quality import MAX_CLASSES, shown_classes
from edgeft.types import (
    AccuracyResult,
    BudgetResult,
    Check,
    CompilerEstimate,
    EpochRecord,
    ExportedArtifact,
    LatencyResult,
    LayerEstimate,
    MemoryResult,
    ParityResult,
    QuantCoverage,
    RatioResult,
    RuntimeReport,
    StepRecord,
    TargetResult,
    TensorSpec,
    Verdict,
)

SAMPLES = 431
IDS = tuple(f"{i:064x}" for i in range(SAMPLES))
TRUTH = np.arange(SAMPLES) % 6


def _accuracy(wrong: set[int]) -> AccuracyResult:
    predictions = np.array([(t + 1) % 6 if i in wrong else t for i, t in enumerate(TRUTH)])
    right = SAMPLES - len(wrong)
    low, high = wilson_interval(right, SAMPLES)
    return AccuracyResult(
        accuracy=right / SAMPLES, low=low, high=high, predictions=predictions, labels=TRUTH, ids=IDS
    )


def _latency(label: str, center: float, precision: str, evidence: str = "measured") -> LatencyResult:
    noise = np.random.default_rng(round(1000 * center)).gamma(2.0, center / 60, (6, 40)) + center
    return LatencyResult(
        label=label,
        evidence=evidence,
        threads=1,
        samples_ms=tuple(tuple(row) for row in noise.tolist()),
        load_ms=(31.2, 30.8, 33.0, 30.9, 31.0, 35.5),
        first_ms=(2.2 * center,) * 6,
        peak_rss_bytes=91_234_304,
        runtime=RuntimeReport(
            runtime="onnxruntime", version="1.31.1", device="CPU", mac_precision={precision: 52, "float32": 1}
        ),
    )


def _artifact(scheme: str, size: int) -> ExportedArtifact:
    return ExportedArtifact(
        path=Path("/build/model.onnx"),
        files=(Path("/build/model.onnx"),),
        format="onnx",
        scheme=scheme,
        sha256={"model.onnx": "ab" * 32},
        size_bytes=size,
        coverage=QuantCoverage(mac_ops=53, int8_mac_ops=53 if scheme == "int8" else 0),
        inputs=(TensorSpec(name="input", shape=(-1, 3, 160, 160), dtype="float32", layout="nchw"),),
        outputs=(TensorSpec(name="logits", shape=(-1, 6), dtype="float32", layout="nk"),),
        deviations=(),
    )


def _target(name: str, base_ms: float, ms: float, evidence: str = "measured") -> TargetResult:
    base = _accuracy(set(range(40)))
    # Five that only the float file gets right, three that only the final one does.
    head = _accuracy(set(range(3, 45)))
    return TargetResult(
        target=name,
        artifact=_artifact("int8", 1_312_345),
        baseline=_artifact("float32", 8_912_345),
        accuracy=head,
        baseline_accuracy=base,
        parity=ParityResult(
            samples=SAMPLES,
            agreement=430 / SAMPLES,
            flips=1,
            confident_flips=0,
            lsb=0.07,
            max_lsb=2.0,
            mean_lsb=0.031,
            within_2_lsb=0.9996,
        ),
        evidence=evidence,
        runtime=_latency("int8", ms, "int8", evidence).runtime,
        latency=_latency("int8", ms, "int8", evidence),
        baseline_latency=_latency("float32", base_ms, "float32", evidence),
        other_float=(_latency("float32 (INFERENCE_PRECISION_HINT=f32)", base_ms * 1.4, "float32", evidence),),
        ratio=RatioResult(base="float32", head="int8", ratio=ms / base_ms, low=0.28, high=0.33, pairs=6),
    )


def _on_device(name: str, evidence: str, **changes) -> TargetResult:
    """A target without a clock; one with a compiler has its estimate."""
    clocked = _target(name, 2.0, 1.0, evidence)
    budgets = [
        BudgetResult(name="ram", value=36_912, limit=32_768, unit="bytes", met=False, culprit="ADD after b1")
    ]
    estimate = None
    if evidence == "estimated":
        layer = LayerEstimate(
            name="b1.conv", op="CONV_2D", cycles=300_000, macs=9_000_000, sram_bytes=36_864, utilisation=0.61
        )
        estimate = CompilerEstimate(
            tool="Vela",
            version="5.2.0",
            settings={
                "accelerator": "ethos-u55-128",
                "system_config": "High_End",
                "memory_mode": "Shared_Sram",
            },
            cycles=410_000,
            ms=0.82,
            sram_bytes=36_912,
            dram_bytes=0,
            flash_bytes=70_000,
            npu_ops=15,
            file=Path("/build/model_vela.tflite"),
            layers=(layer, replace(layer, name="head", cycles=100_000)),
        )
        budgets += [
            BudgetResult(
                name="latency", value=0.82, limit=1.0, unit="ms", met=True, culprit="CONV_2D b1.conv"
            ),
            BudgetResult(name="fallback ops", value=0, limit=0, unit="ops", met=True),
        ]
    memory = MemoryResult(
        ram_bytes=36_912,
        flash_bytes=70_000,
        ram_layer="ADD after b1",
        flash_layer="CONV_2D b2",
        source="tflm",
    )
    result = replace(clocked, latency=None, baseline_latency=None, other_float=(), ratio=None)
    return replace(result, estimate=estimate, memory=memory, budgets=tuple(budgets), **changes)


def _report(targets: list[TargetResult] | None = None, **changes) -> dict:
    if targets is None:
        targets = [
            _target("cpu-onnxruntime", 8.2, 2.5),
            _target("cpu-openvino", 5.1, 2.2),
            _target("cpu-litert", 9.4, 3.1),
        ]
    epochs = [
        EpochRecord(
            epoch=e,
            train_loss=1.0 / (e + 1),
            val_loss=1.1 / (e + 1),
            val_accuracy=0.9 - 0.5 / (e + 1),
            learning_rate=1e-3,
            seconds=12.0,
        )
        for e in range(12)
    ]
    stages = [
        StepRecord(
            name=name,
            config={"epochs": 12, "optimizer": "adamw", "learning_rate": 1e-3, "budget": {"macs": 0.6}},
            seed=0,
            seconds=seconds,
            versions={"torch": "2.13.0"},
            results={"epochs": epochs, "best": Path("x")},
        )
        for name, seconds in (("finetune", 401.5), ("prune", 233.1), ("quantize", 180.2))
    ]
    checks = [
        Check(name=name, target=t.target, outcome=outcome, detail=detail, values={"margin": 0.04})
        for t in targets
        for name, outcome, detail in (
            ("accuracy", "pass", "drop +0.5 points, upper bound 2.1 is below the margin of 4.0"),
            ("size", "pass", "1,312,345 of 8,912,345 bytes (0.15, at most 1)"),
            ("coverage", "pass", "53 of 53 MAC ops in int8"),
        )
    ]
    settings = {
        "name": "trashnet",
        "recipe": {"schema": 1, "name": "trashnet", "targets": [t.target for t in targets]},
        "recipe_hash": "3f" * 32,
        "data": {
            "source": "data/trashnet",
            "classes": ("cardboard", "glass", "metal", "paper", "plastic", "trash"),
            "counts": {"train": 1768, "val": 328, "test": 431},
            "skipped": (),
            "fingerprint": "9a" * 32,
        },
        "model": {
            "source": "torchvision:mobilenet_v2",
            "macs": {"before": 158_000_000, "after": 79_100_000},
            "params": {"before": 2_231_558, "after": 1_174_002},
            "float_accuracy": {"val": 0.912, "test": 0.907},
        },
        "stages": stages,
        "targets": targets,
        "profiles": {t.target: target.load("cpu-onnxruntime") for t in targets},
        "verdict": Verdict(
            outcome="pass",
            reference="the fine-tuned float model",
            checks=tuple(checks),
            notes=("431 samples certify 4.0 points",),
        ),
        "host": {"cpu": "Example CPU", "cores": 2, "governor": None, "flags": ["avx512_vnni"]},
        "versions": {"edgeft": "0.1.0", "onnxruntime": "1.31.1"},
        "notes": ["trained anew: paired tests do not see the variance between seeds"],
    }
    return reporting.build(**{**settings, **changes})


CLASSES = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
PNG = b"\x89PNG\r\n\x1a\n a picture"


class _Pictures:
    """Samples with a name and a preview each."""

    ids = IDS

    def __init__(self, preview: bytes | str = PNG) -> None:
        self._preview = preview

    def name(self, index: int) -> str:
        return f"photos/<{index}>.jpg"

    def preview(self, index: int) -> bytes | str:
        return self._preview


def _with_metrics(
    name: str, *, labels=TRUTH, classes=CLASSES, samples: _Pictures | None = None
) -> TargetResult:
    noise = np.random.default_rng(0).normal(size=(2, len(labels), len(classes)))
    final, base = (noise + 2.0 * np.eye(len(classes))[labels]).astype(np.float32)
    return dataclasses.replace(
        _target(name, 8.2, 2.5),
        metrics=classification.metrics(final, labels, classes=classes),
        baseline_metrics=classification.metrics(base, labels, classes=classes),
        user_metrics={"cost": 0.1712, "several.sure": 0.81},
        baseline_user_metrics={"cost": 0.1655},
        gallery=gallery.collect(final, labels, samples or _Pictures(), classes=classes),
    )


@pytest.fixture(scope="module")
def report() -> dict:
    return _report()


@pytest.fixture(scope="module")
def full_report() -> dict:
    """A report with everything that a run of today puts in."""
    return _report([_with_metrics("cpu-onnxruntime"), _with_metrics("cpu-litert")])


def test_written_and_read_back_it_is_the_same(report: dict, tmp_path: Path):
    path = reporting.write_json(report, tmp_path / "runs" / "report.json")
    assert reporting.read_json(path) == report
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    text = path.read_text()
    assert not re.search(r"^\s*[-\d.]+,?$", text, flags=re.MULTILINE), "flat arrays belong on one line"


def test_brackets_inside_texts_survive_the_layout(tmp_path: Path):
    note = 'a [ b,  c ] "\n  d" ] [\n x'
    report = _report(notes=[note])
    assert reporting.read_json(reporting.write_json(report, tmp_path / "r.json"))["notes"] == [note]


def test_nothing_that_a_paired_comparison_needs_is_lost(report: dict):
    result = _target("cpu-onnxruntime", 8.2, 2.5)
    entry = report["targets"][0]
    assert report["samples"] == {"ids": list(IDS), "labels": TRUTH.tolist()}
    assert entry["accuracy"]["predictions"] == result.accuracy.predictions.tolist()
    np.testing.assert_allclose(entry["latency"]["samples_ms"], result.latency.samples_ms, atol=1e-6)
    assert entry["drop"]["lost"] == 5 and entry["drop"]["gained"] == 3
    assert entry["drop"]["value"] == pytest.approx(2 / SAMPLES)
    assert (entry["drop"]["low"], entry["drop"]["high"]) == tango_interval(5, 3, SAMPLES)
    assert entry["latency"]["p50_ms"] == result.latency.p50_ms
    assert entry["latency"]["runs"] == 240 and entry["latency"]["processes"] == 6
    assert report["stages"][0]["results"]["epochs"][11]["val_accuracy"] == pytest.approx(0.9 - 0.5 / 12)
    assert "/build" not in json.dumps(report), "a report tells no paths of the machine that made it"


def test_results_on_other_samples_are_refused():
    first, second = _target("a", 2.0, 1.0), _target("b", 2.0, 1.0)
    other = dataclasses.replace(second.accuracy, ids=(*IDS[:-1], "f" * 64))
    with pytest.raises(VerificationError, match="target b: evaluated on other samples"):
        _report([first, dataclasses.replace(second, accuracy=other)])


def test_plain_knows_what_it_can_store():
    value = {"a": np.float32(0.5), 2: (np.arange(2), {"y", "x"}), "p": Path("q"), "bad": float("nan")}
    assert plain(value) == {"a": 0.5, "2": [[0, 1], ["x", "y"]], "p": "q", "bad": None}
    with pytest.raises(TypeError, match="cannot store a object"):
        plain({"x": object()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "key \"schema\" is 'other'"),
        ({"version": 2}, "report version 2, this edgeft reads 1"),
        ({"targets": [{"target": "x"}]}, r"targets\.0\.artifact: Field required"),
        ({"verdict": {"outcome": "maybe"}}, r"verdict\.outcome"),
    ],
)
def test_reading_anything_else_is_a_clear_error(report: dict, tmp_path: Path, change: dict, message: str):
    (tmp_path / "r.json").write_text(json.dumps({**report, **change}))
    with pytest.raises(ConfigError, match=message):
        reporting.read_json(tmp_path / "r.json")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_reading_what_is_not_a_json_report_is_a_clear_error(tmp_path: Path, content: bytes):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"r\.json"):
        reporting.read_json(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="no such file"):
        reporting.read_json(tmp_path / "absent.json")


def test_a_place_that_cannot_be_written_is_a_clear_error(report: dict, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="cannot be written"):
        reporting.write_json(report, tmp_path / "file" / "r.json")


def test_table_shows_the_figures_of_the_report(report: dict):
    rows = reporting.table(report)
    assert [list(row) for row in rows] == [list(reporting.headings(report))] * 3
    low, high = tango_interval(5, 3, SAMPLES)
    assert rows[0]["target"] == "cpu-onnxruntime"
    assert rows[0]["float_accuracy"] == "90.7 %" and rows[0]["accuracy"] == "90.3 %"
    assert rows[0]["drop"] == f"+0.5 [\N{MINUS SIGN}{-100 * low:.1f}, +{100 * high:.1f}]"
    assert rows[0]["float_ms"].endswith("(float32)") and float(rows[0]["ms"]) == pytest.approx(2.57, abs=0.05)
    assert rows[0]["ratio"] == "0.30 [0.28, 0.33]"
    assert (rows[0]["float_kb"], rows[0]["kb"]) == ("8,912", "1,312")
    assert (
        rows[0]["coverage"] == "100.0 %" and rows[0]["agreement"] == "99.8 %" and rows[0]["verdict"] == "pass"
    )


def test_a_share_below_one_is_never_shown_as_all(report: dict):
    changed = json.loads(json.dumps(report))
    changed["targets"][0]["parity"]["agreement"] = 0.9999
    assert reporting.table(changed)[0]["agreement"] == "99.9 %"


def test_a_target_fails_by_its_own_checks_only():
    checks = (
        Check(name="accuracy", target="a", outcome="pass", detail=""),
        Check(name="size", target="a", outcome="fail", detail=""),
        Check(name="accuracy", target="b", outcome="inconclusive", detail=""),
        Check(name="size", target="b", outcome="pass", detail=""),
    )
    targets = [_target(name, 2.0, 1.0) for name in ("a", "b", "c")]
    rows = reporting.table(_report(targets, verdict=Verdict(outcome="fail", reference="x", checks=checks)))
    assert [row["verdict"] for row in rows] == ["fail", "inconclusive", "not checked"]


def test_latency_that_no_clock_measured_is_marked():
    row = reporting.table(_report([_on_device("npu", "estimated")]))[0]
    assert row["ms"] == "0.820 (estimated) of 1.00"
    assert not {"float_ms", "ratio"} & row.keys()


def test_devices_without_a_clock_are_shown_with_memory_budgets_and_layers(tmp_path: Path):
    targets = [_target("cpu", 2.0, 1.0), _on_device("mcu", "executed"), _on_device("npu", "estimated")]
    report = _report(targets)
    stored = reporting.read_json(reporting.write_json(report, tmp_path / "report.json"))
    assert [t["latency"] is None for t in stored["targets"]] == [False, True, True]
    assert stored["targets"][2]["estimate"]["file"] == "model_vela.tflite"
    rows = reporting.table(stored)
    assert [row["ms"] for row in rows] == ["1.03", "-", "0.820 (estimated) of 1.00"]
    assert [row["ram"] for row in rows] == ["-", "36.9 > 32.8", "36.9 > 32.8"]
    assert [row["ratio"] for row in rows][1:] == ["-", "-"] and rows[1]["flash"] == "70.0"
    page = reporting.write_html(stored, tmp_path / "report.html").read_text()
    text = _text(page)
    for expected in (
        "Vela 5.2.0, ethos-u55-128, High_End, Shared_Sram",
        "over its ram budget: ADD after b1",
        "75.0 %",  # of the cycles, in one layer
        "executed by onnxruntime 1.31.1: answers and memory, no latency",
    ):
        assert expected in text
    assert (
        page.count("<figure>") == 1 and "measured (bar" in page
    )  # what no clock measured is not drawn beside it


def test_a_report_from_before_devices_is_still_shown(report: dict, tmp_path: Path):
    older = json.loads(json.dumps(report))
    for each in older["targets"]:
        for key in ("executed", "estimate", "memory", "budgets"):
            del each[key]
    (tmp_path / "old.json").write_text(json.dumps(older))
    stored = reporting.read_json(tmp_path / "old.json")
    assert reporting.table(stored) == reporting.table(report)
    assert "On the device" not in reporting.write_html(stored, tmp_path / "old.html").read_text()


def _text(page: str) -> str:
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_page_is_self_contained_and_shows_every_figure(report: dict, tmp_path: Path):
    page = reporting.write_html(report, tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|\bsrc=|@import|url\((?!#)", page)
    text = _text(page)
    for row in reporting.table(report):
        for value in row.values():
            assert value in text
    for check in report["verdict"]["checks"]:
        assert check["detail"] in text
    for expected in (
        "431 samples certify",
        "variance between seeds",
        "verify.py",
        "3f3f3f3f3f3f",
    ):
        assert expected in text
    assert page.count("<figure>") == 1 and "currentColor" in page and "#010203" not in page


def test_page_from_a_stored_report_is_the_same(report: dict, tmp_path: Path):
    stored = reporting.read_json(reporting.write_json(report, tmp_path / "r.json"))
    first = reporting.write_html(report, tmp_path / "a.html").read_text()
    assert reporting.write_html(stored, tmp_path / "b.html").read_text() == first


def test_page_escapes_names(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    report = _report([_target(evil, 2.0, 1.0)], notes=[evil], data={"classes": [evil]})
    page = reporting.write_html(report, tmp_path / "r.html").read_text()
    assert evil not in page and html.escape(evil) in page


def test_kinds_of_evidence_never_share_a_figure(tmp_path: Path):
    report = _report([_target("cpu", 2.0, 1.0), _target("npu", 2.0, 1.0, "estimated")])
    page = reporting.write_html(report, tmp_path / "r.html").read_text()
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 2
    assert ">cpu<" in figures[0] and ">npu<" not in figures[0] and ">npu<" in figures[1]


@pytest.mark.parametrize("outcome", ["fail", "inconclusive", "no baseline"])
def test_page_of_every_outcome(tmp_path: Path, outcome: str):
    report = _report(verdict=Verdict(outcome=outcome, reference="x", checks=()), stages=[], notes=[])
    page = reporting.write_html(report, tmp_path / "r.html").read_text()
    assert outcome in _text(page) and "No checks were made" in page


def test_metrics_and_gallery_are_stored_field_by_field(full_report: dict, tmp_path: Path):
    stored = reporting.read_json(reporting.write_json(full_report, tmp_path / "r.json"))
    assert stored == full_report
    result, entry = _with_metrics("cpu-onnxruntime"), stored["targets"][0]
    assert entry["metrics"] == plain(result.metrics) and entry["baseline_metrics"] == plain(
        result.baseline_metrics
    )
    assert sum(map(sum, entry["metrics"]["confusion"])) == SAMPLES
    assert entry["user_metrics"] == {"cost": 0.1712, "several.sure": 0.81}
    assert entry["gallery"]["hardest"][0]["id"] == result.gallery.hardest[0].id


def test_finetuning_has_a_section_of_its_own(report: dict, tmp_path: Path):
    section = report["finetune"]
    assert (section["method"], section["seconds"], len(section["epochs"])) == (None, 401.5, 12)
    features = StepRecord(
        name="finetune",
        config={"method": "feature-extraction"},
        seed=0,
        seconds=20.0,
        versions={},
        results={"feature_seconds": 12.5, "epochs": [*section["epochs"][:2], {"val_accuracy": float("nan")}]},
    )
    made = _report(stages=[features])
    assert (made["finetune"]["method"], made["finetune"]["feature_seconds"]) == ("feature-extraction", 12.5)
    text = _text(reporting.write_html(made, tmp_path / "r.html").read_text())
    assert "method feature-extraction" in text and "of these for features 12.5" in text
    assert "best validation accuracy 65.0 % best epoch 2" in text
    assert _report(stages=[])["finetune"] is None


def test_page_shows_metrics_of_every_file_with_their_intervals(full_report: dict, tmp_path: Path):
    page = reporting.write_html(full_report, tmp_path / "r.html").read_text()
    text = _text(page)
    for entry in full_report["targets"]:
        for key in ("metrics", "baseline_metrics"):
            f1 = entry[key]["macro_f1"]
            assert f"{100 * f1['value']:.1f} % {100 * f1['low']:.1f}\N{EN DASH}{100 * f1['high']:.1f}" in text
    assert "cost several.sure cpu-onnxruntime float32" in text, "users' metrics have the last columns"
    assert "0.1655 - cpu-onnxruntime int8" in text and "0.1712 0.81" in text
    assert ">top 5</th>" in page and ">ROC area</th>" not in page, "a figure that no file has gets no column"
    # Of the confusion matrix, one row as it stands in the document.
    row = full_report["targets"][0]["metrics"]["confusion"][2]
    assert "metal " + " ".join(str(count or "·") for count in row) in text
    assert page.count("<details open>") == 1, "the first target is open, the others fold"


def test_page_shows_pictures_and_texts_of_the_gallery(full_report: dict, tmp_path: Path):
    page = reporting.write_html(full_report, tmp_path / "r.html").read_text()
    stored = full_report["targets"][0]["gallery"]
    shown = len(stored["hardest"]) + sum(len(pair["exhibits"]) for pair in stored["confusions"])
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    assert len(sources) == 2 * shown
    assert {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources} == {PNG}
    assert html.escape(stored["hardest"][0]["name"]) in page and stored["hardest"][0]["name"] not in page
    hardest, pair = stored["hardest"][0], stored["confusions"][0]
    assert f"{hardest['label']} taken for {hardest['prediction']}" in _text(page)
    assert f"{pair['label']} taken for {pair['prediction']} {pair['count']} of {pair['support']}" in _text(
        page
    )
    said = _report([_with_metrics("a", samples=_Pictures("Who is <b>it</b>?"))])
    page = reporting.write_html(said, tmp_path / "t.html").read_text()
    assert "<blockquote>Who is &lt;b&gt;it&lt;/b&gt;?</blockquote>" in page and "src=" not in page


def test_of_many_classes_those_with_the_most_mistakes_are_shown(tmp_path: Path):
    matrix = np.diag(np.full(50, 9))
    matrix[10:38, 40] = 1
    matrix[3, 4] = 3
    assert shown_classes(matrix.tolist()) == [3, 4, *range(10, 37), 40]
    assert shown_classes(np.eye(MAX_CLASSES, dtype=int).tolist()) == list(range(MAX_CLASSES))
    labels = np.arange(SAMPLES) % 50
    made = _report([_with_metrics("a", labels=labels, classes=tuple(f"k{k}" for k in range(50)))])
    page = reporting.write_html(made, tmp_path / "r.html").read_text()
    assert "The 30 of 50 classes with the most mistakes" in _text(page)
    rows = re.findall(r'<tr><th title="k\d+: \d+ samples">.*?</tr>', page, flags=re.DOTALL)
    assert len(rows) == 30
    for row in rows:
        total, counts = re.search(r": (\d+) samples", row)[1], re.findall(r">(\d+)</td>", row)
        assert sum(map(int, counts)) == int(total), "mistakes outside the picture are counted as others"


def test_a_report_from_before_metrics_still_makes_a_page(full_report: dict, tmp_path: Path):
    old = json.loads(json.dumps(full_report))
    del old["finetune"]
    for entry in old["targets"]:
        for key in ("metrics", "baseline_metrics", "user_metrics", "baseline_user_metrics", "gallery"):
            del entry[key]
    stored = reporting.read_json(reporting.write_json(old, tmp_path / "r.json"))
    text = _text(reporting.write_html(stored, tmp_path / "r.html").read_text())
    assert "Quality" not in text and "Training" not in text and "90.3 %" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda target: target["metrics"].pop("macro_f1"), r"targets\.0\.metrics\.macro_f1: Field required"),
        (lambda target: target["gallery"]["hardest"][0].update(png='"><script>'), r"hardest\.0\.png: String"),
    ],
)
def test_damaged_metrics_are_a_clear_error(full_report: dict, tmp_path: Path, damage, message: str):
    damaged = json.loads(json.dumps(full_report))
    damage(damaged["targets"][0])
    (tmp_path / "r.json").write_text(json.dumps(damaged))
    with pytest.raises(ConfigError, match=message):
        reporting.read_json(tmp_path / "r.json")
