"""`edgeft bench` on a package: record, table, page, command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_packages
from PIL import Image

import edgeft as library
from edgeft import benchmarking, target
from edgeft.benchmarking import bench
from edgeft.errors import ConfigError, DataError
from edgeft.reporting import bench_page

QUICK = benchmarking.StopRule(processes=2, min_runs=5, min_seconds=0.0, warm_up_seconds=0.0)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_packages.write_tiny(tmp_path_factory.mktemp("bench") / "cpu-onnxruntime")


@pytest.fixture(scope="module")
def done(package: Path) -> benchmarking.Bench:
    return benchmarking.benchmark_all([benchmarking.subject(package)] * 2, QUICK)


@pytest.fixture(scope="module")
def record(done: benchmarking.Bench) -> dict:
    return json.loads(json.dumps(benchmarking.record(done), allow_nan=False))


def test_a_package_brings_its_inputs_and_settings(package: Path, tmp_path: Path):
    subject = benchmarking.subject(package)
    assert subject.inputs_origin == "golden vectors" and subject.target == "cpu-onnxruntime"
    np.testing.assert_array_equal(subject.inputs[0], tiny_packages.INPUTS)
    changed = benchmarking.subject(package, threads=2, device="cuda", options={"a": "b"}).profile.runtime
    assert (changed.threads, changed.device, changed.options["a"]) == (2, "cuda", "b")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "x.png")
    fed = benchmarking.subject(package, inputs=tmp_path)
    assert fed.inputs[0].shape == (1, 3, 8, 8) and fed.inputs_origin == f"folder {tmp_path} (1 images)"
    assert benchmarking.subject(package, inputs="random").inputs_origin.startswith("random")
    with pytest.raises(ConfigError, match="fixed shapes"):
        benchmarking.subject(package, shapes={"input": (1, 3, 8, 8)})


def test_the_record_holds_every_run(record: dict):
    assert (record["schema"], record["version"]) == ("edgeft-bench", 1)
    assert record["rule"] == dataclasses.asdict(QUICK)
    first, second = record["results"]
    assert first["name"] == second["name"]
    latency = first["latency"]
    pooled = np.concatenate([np.array(process) for process in latency["samples_ms"]])
    assert latency["processes"] == 2 and latency["runs"] == len(pooled) >= 10
    assert latency["p99_ms"] == pytest.approx(np.percentile(pooled, 99))
    assert (latency["min_ms"], latency["mean_ms"]) == pytest.approx((pooled.min(), pooled.mean()))
    assert len(latency["load_ms"]) == len(latency["first_ms"]) == 2
    assert first["throughput"] is None and first["accuracy"] is None
    assert first["inputs_origin"] == "golden vectors" and first["samples"] == len(tiny_packages.INPUTS)
    assert first["runtime"]["mac_precision"] == {"float32": 1}


def test_the_table_leaves_out_what_was_not_measured(record: dict):
    rows = bench_page.table(record)
    assert {"file", "p50 ms", "p99 ms", "load ms", "first ms", "peak MB", "size KB"} <= rows[0].keys()
    assert not {"samples/s", "accuracy"} & rows[0].keys()
    throughput = {**record["results"][0]["latency"], "streams": 2, "samples_per_second": 1234.5}
    more = {
        **record,
        "results": [{**record["results"][0], "throughput": throughput, "accuracy": {"value": 0.5}}],
    }
    (row,) = bench_page.table(more)
    assert (row["samples/s"], row["accuracy"]) == ("1,234", "50.0 %") and "2 streams" in row["runs on"]


def test_the_page_is_self_contained(record: dict, tmp_path: Path):
    wild = json.loads(json.dumps(record))
    wild["warnings"] = ["<script>"]
    wild["results"][1]["latency"]["samples_ms"][0][0] *= 1000  # logarithmic axes
    text = bench_page.write_html(wild, tmp_path / "page.html").read_text()
    assert text.count("<svg") == 2 and "&lt;script&gt;" in text
    assert "http" not in text and "golden vectors" in text
    assert record["results"][0]["files"][0]["sha256"] in text


def test_int8_without_dot_products_and_random_inputs_are_warned_about(done: benchmarking.Bench):
    (one, _) = done.results
    runtime = dataclasses.replace(one.latency.runtime, mac_precision={"int8": 3})
    int8 = dataclasses.replace(one, latency=dataclasses.replace(one.latency, runtime=runtime))
    assert not bench.result_warnings([int8], ["avx2", "avx_vnni"])
    assert not bench.result_warnings([one], ["avx2"])
    (text,) = bench.result_warnings([int8], ["avx2"])
    assert "int8" in text and "avx512_vnni" in text
    random = dataclasses.replace(one, subject=dataclasses.replace(one.subject, inputs_origin="random (x)"))
    (text,) = bench.result_warnings([random], ["avx2"])
    assert one.subject.name in text


def test_the_function_for_one_file(package: Path):
    latency = library.benchmark(package, rounds=1, min_runs=3, min_seconds=0.0)
    assert len(latency.samples_ms) == 1 and latency.p50_ms > 0
    with pytest.raises(ConfigError, match="exported artifact only"):
        library.benchmark(package, target.load("cpu-onnxruntime"))
    with pytest.raises(ConfigError, match="needs its target"):
        library.benchmark(benchmarking.subject(package).artifact)


def test_the_command(package: Path, tmp_path: Path, edgeft):
    quick = ("--processes", "1", "--runs", "3", "--duration", "0")
    page = tmp_path / "bench.html"
    ran = edgeft("bench", str(package), *quick, "--streams", "2", "--html", str(page), "--json")
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)
    assert record["results"][0]["throughput"]["streams"] == 2
    assert page.read_text().startswith("<!doctype html>")
    ran = edgeft("bench", str(package), *quick, "--html", str(package / "manifest.json" / "bench.html"))
    assert ran.returncode == 2 and "cannot be written" in ran.stderr
    assert not ran.stdout and "timing" not in ran.stderr  # refused before anything is measured


@pytest.mark.parametrize("as_json", [True, False])
def test_a_page_that_cannot_be_written_any_more_loses_nothing(
    package: Path, done: benchmarking.Bench, tmp_path: Path, monkeypatch, capsys, as_json: bool
):
    from edgeft.cli.main import main

    page = tmp_path / "page.html"

    def measured(*_: object, **__: object) -> benchmarking.Bench:
        page.mkdir()
        return done

    monkeypatch.setattr(benchmarking, "benchmark_all", measured)
    assert main(["bench", str(package), "--html", str(page), *(["--json"] if as_json else [])]) == 2
    shown = capsys.readouterr().out
    if as_json:
        record, _ = json.JSONDecoder().raw_decode(shown)
        assert record["results"][0]["latency"]["runs"] > 0
    else:
        assert "p50 ms" in shown and "measured on " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.onnx", "--random"), "absent.onnx: no such file or folder"),
        (("x.onnx", "--random", "--inputs", "x"), "exclude each other"),
        (("x.onnx", "--random", "--shape", "x=1,a"), "sizes are whole numbers"),
        (("x.onnx", "--option", "novalue"), "allowed is KEY=VALUE"),
    ],
)
def test_bad_usage_is_one_message(arguments: tuple[str, ...], message: str, capsys):
    from edgeft.cli.main import main

    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("error:") == 1


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """One picture of each class."""
    for i, label in enumerate(tiny_packages.LABELS):
        (tmp_path / label).mkdir()
        Image.fromarray(np.full((9, 9, 3), 80 * i, np.uint8)).save(tmp_path / label / "x.png")
    return tmp_path


def test_accuracy_comes_from_labelled_samples(package: Path, pictures: Path):
    one = benchmarking.StopRule(processes=1, min_runs=1, min_seconds=0.0)
    done = benchmarking.benchmark_all([benchmarking.subject(package)], one, data=pictures)
    accuracy = json.loads(json.dumps(benchmarking.record(done)))["results"][0]["accuracy"]
    assert accuracy["samples"] == len(accuracy["ids"]) == 3 and sorted(accuracy["labels"]) == [0, 1, 2]
    right = np.mean(np.array(accuracy["predictions"]) == accuracy["labels"])
    assert accuracy["value"] == pytest.approx(right)


def test_accuracy_is_taken_where_and_how_the_latency_is(
    package: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    scored = []
    monkeypatch.setattr(
        bench.scoring, "score", lambda found, data, *, progress: (scored.append(found.profile.runtime), None)
    )
    subject = benchmarking.subject(package, threads=2, options={"session.intra_op.allow_spinning": "0"})
    one = benchmarking.StopRule(processes=1, min_runs=1, min_seconds=0.0)
    benchmarking.benchmark_all([subject], one, data=pictures)
    assert scored == [subject.profile.runtime] and scored[0].threads == 2


def test_labelled_samples_are_read_before_anything_is_timed(package: Path, tmp_path: Path):
    def timed(*_: object, **__: object) -> None:
        pytest.fail("something was timed")

    subjects = [benchmarking.subject(package)]
    with pytest.raises(DataError, match="absent does not exist") as absent:
        benchmarking.benchmark_all(subjects, QUICK, data=tmp_path / "absent", progress=timed)
    assert "builtin" not in absent.value.hint
    (tmp_path / "cow").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "cow" / "x.png")
    with pytest.raises(DataError, match="class 'cow'"):
        benchmarking.benchmark_all(subjects, QUICK, data=tmp_path, progress=timed)


def test_accuracy_needs_a_package(done: benchmarking.Bench, tmp_path: Path):
    foreign = dataclasses.replace(done.results[0].subject, package=None)
    with pytest.raises(ConfigError, match="only packages have"):
        benchmarking.benchmark_all([foreign], QUICK, data=tmp_path)
