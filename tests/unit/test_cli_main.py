"""How the entry point turns what a run does into output and exit codes.

The run itself is replaced here by a few lines that succeed, fail or wait; the real one is tested end to end.
"""

import errno
import json
import signal
import subprocess
import sys
import textwrap
from types import ModuleType, SimpleNamespace

import pytest

import edgeft
from edgeft.cli.main import main
from edgeft.errors import BudgetError, MissingDependencyError, ModelError
from edgeft.pipeline import Finding
from edgeft.types import Verdict

OPTIONS = ["run", "--data", "pictures/my data", "--model", "builtin:x", "--target", "a", "--target", "b"]


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """Put a stand-in for the pipeline in place; tests give it `run` or `check`."""
    module = ModuleType("edgeft.pipeline")
    monkeypatch.setitem(sys.modules, "edgeft.pipeline", module)
    monkeypatch.setattr(edgeft, "pipeline", module, raising=False)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield module
    for number, handler in handlers.items():  # main installed its own
        signal.signal(number, handler)


def raising(error):
    def run(*arguments, **options):
        raise error

    return run


def finished(outcome, seen=None):
    def run(recipe, *, base, workspace, until, device, progress):
        if seen is not None:
            seen.update(recipe=recipe, base=base, workspace=workspace, until=until, device=device)
        progress.stage_started("finetune", "Fine-tune")
        progress.stage_progress("epoch 1", done=1, total=2)
        progress.stage_finished("finetune", 1.25, "val accuracy 97.0 % [drop 1]")
        progress.stage_reused("prune", "Prune")
        progress.note("two files were skipped")
        verdict = outcome and Verdict(outcome=outcome, reference="float", checks=())
        return SimpleNamespace(report=None, workspace=workspace, verdict=verdict, joined=False)

    return run


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (BudgetError("budget missed", "raise it"), 1, "error: budget missed\n  -> raise it"),
        (MissingDependencyError("no openvino", "pip install"), 5, "error: no openvino"),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), 5, "pip install 'edgeft[vision]'"),
        (ZeroDivisionError("division by zero"), 3, "internal error: ZeroDivisionError"),
        (OSError(errno.ENOSPC, "No space left on device", "w.bin"), 2, "w.bin: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), 3, "internal error"),
        (KeyboardInterrupt(), 130, "interrupted; everything finished is kept: run the same command again"),
    ],
)
def test_every_failure_is_a_message_and_its_exit_code(pipeline, capsys, error, code, told):
    pipeline.run = raising(error)
    assert main(OPTIONS) == code
    output = capsys.readouterr()
    assert told in output.err and "Traceback" not in output.err
    assert main([*OPTIONS, "--json"]) == code
    record = json.loads(capsys.readouterr().out)["error"]
    assert record["exit_code"] == code


@pytest.mark.parametrize("outcome", ["pass", "fail", "inconclusive", "no baseline", None])
def test_a_finished_run_is_exit_code_0_whatever_its_verdict(pipeline, outcome):
    """Without a baseline nothing was to be decided; the verdict is shown and stored."""
    pipeline.run = finished(outcome)
    assert main(OPTIONS) == 0


def test_options_make_a_recipe_with_every_stage(pipeline, capsys):
    seen = {}
    pipeline.run = finished("pass", seen)
    assert main([*OPTIONS, "--epochs", "3", "--seed", "7", "--weights", "w.safetensors"]) == 0
    recipe = seen["recipe"]
    assert recipe.name == "my-data" and recipe.targets == ["a", "b"] and recipe.seed == 7
    assert recipe.finetune.epochs == 3 and recipe.prune is not None and recipe.quantize.method == "qat"
    assert recipe.model.weights == "w.safetensors"
    assert str(seen["base"]) == "." and str(seen["workspace"]) == "runs/my-data" and seen["until"] is None
    assert main([*OPTIONS, "--workspace", "elsewhere", "--name", "n"]) == 0
    assert str(seen["workspace"]) == "elsewhere" and seen["recipe"].name == "n"


@pytest.mark.parametrize("verb", ["finetune", "prune", "quantize", "export"])
def test_a_stage_verb_runs_up_to_its_stage(pipeline, tmp_path, verb):
    (tmp_path / "sub").mkdir()
    text = 'name = "x"\ntargets = ["cpu-litert"]\ntask = { data = "d" }\nmodel = { source = "builtin:x" }\n'
    (tmp_path / "sub" / "r.toml").write_text(text + "[prune]\n[quantize]\n")
    seen = {}
    pipeline.run = finished(None, seen)
    assert main([verb, "sub/r.toml"]) == 0
    assert seen["until"] == verb and str(seen["base"]) == "sub" and str(seen["workspace"]) == "runs/x"


def test_stages_are_one_plain_line_each_when_piped(pipeline, capsys):
    pipeline.run = finished("pass")
    assert main(OPTIONS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "Fine-tune" in lines[0] and lines[0].endswith("1.2 s  val accuracy 97.0 % [drop 1]")
    assert "Prune" in lines[1] and "reused" in lines[1] and lines[2].endswith("two files were skipped")
    assert lines[3] == "workspace: runs/my-data"
    assert "\x1b" not in "".join(lines)


def test_json_is_alone_on_stdout(pipeline, capsys):
    pipeline.run = finished("pass")
    assert main([*OPTIONS, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {"workspace": "runs/my-data", "report": None}
    assert "Fine-tune" in output.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ending", ["time.sleep(30)", "swallow()"], ids=["plain", "library exits by itself"])
def test_signals_end_with_130(number, ending, tmp_path):
    """The second case is what Lightning does with an interrupt: sys.exit(1)."""
    script = f"""
    import sys, time, types, edgeft
    def swallow():
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            sys.exit(1)
    def run(*arguments, **options):
        print("started", flush=True)
        {ending}
    edgeft.pipeline = sys.modules["edgeft.pipeline"] = types.ModuleType("edgeft.pipeline")
    edgeft.pipeline.run = run
    from edgeft.cli.main import main
    sys.exit(main({OPTIONS!r}))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error.startswith("interrupted; everything finished is kept") and "Traceback" not in error


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        (["prune", "r.toml"], "interrupted; everything finished is kept: run the same command again"),
        (["bench", "x.onnx"], "interrupted; nothing is kept: a record is written when all of it"),
        (["--debug", "compare", "x.onnx", "y.onnx"], "interrupted; nothing is kept: a record is"),
        (["doctor"], "interrupted\n"),
    ],
)
def test_an_interrupt_says_what_is_true_of_the_verb(pipeline, monkeypatch, capsys, verb, told):
    monkeypatch.setattr("edgeft.cli.main.app", raising(KeyboardInterrupt()))
    assert main(verb) == 130
    assert capsys.readouterr().err.startswith(told)


def test_check_shows_findings_and_fails_on_an_error(pipeline, tmp_path, capsys):
    text = 'targets = ["cpu-litert"]\ntask = { data = "d" }\nmodel = { source = "builtin:x" }\n'
    (tmp_path / "r.toml").write_text(text)
    findings = [
        Finding(level="ok", topic="targets", text="one"),
        Finding(level="warning", topic="data", text="few [12]", hint="get more"),
    ]
    pipeline.check = lambda recipe, *, base: findings
    assert main(["check", "r.toml"]) == 0
    output = capsys.readouterr().out
    assert "few [12]" in output and "-> get more" in output
    findings.append(Finding(level="error", topic="model", text="none", error=ModelError("none")))
    assert main(["check", "r.toml", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
