"""SIGKILL at seeded random moments: the restarted run ends as if nothing had happened, and repeats nothing."""

import itertools
import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    TARGETS,
    Finished,
    digits_recipe,
    group_members,
    is_training,
    run_edgeft,
    stage_files,
    started_edgeft,
    wait_for,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to kill: `delay_s` after a stage has finished its first epoch, or (`committed`) after its commit."""

    stage: str
    committed: bool = False
    delay_s: float = 0.0

    def has_come(self, workspace: Path) -> bool:
        if (workspace / "stages" / self.stage / "meta.json").is_file():
            return True  # also where the delay of an earlier kill has carried the run past this moment
        return not self.committed and is_training(workspace, self.stage)


def kill_at(moment: Moment, folder: Path) -> None:
    """Run the recipe in `folder` and kill the process, and only it, at the moment."""
    workspace = folder / "runs" / "digits"
    with started_edgeft("run", "digits.toml", cwd=folder) as process:
        assert wait_for(lambda: moment.has_come(workspace), process), f"the run ended before {moment}"
        time.sleep(moment.delay_s)
        assert process.poll() is None, f"the run ended before {moment}"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # What the killed process had started (converters, timers) must notice and end by itself.
        wait_for(lambda: not group_members(process.pid), seconds=20)


def run_with_kills(folder: Path, moments: list[Moment], targets: tuple[str, ...]) -> tuple[dict, list[str]]:
    """Return the report of a run that was killed at every moment, and which stages each attempt finished."""
    (folder / "digits.toml").write_text(digits_recipe(targets=targets))
    workspace = folder / "runs" / "digits"
    known: dict[str, tuple[int, int]] = {}
    story = []
    for number, moment in enumerate([*moments, None], start=1):
        if moment is not None:
            kill_at(moment, folder)
        else:
            done = run_edgeft("run", "digits.toml", "--json", cwd=folder)
            assert done.returncode == 0, done.stderr
            assert done.stderr.count("reused") == len(known), done.stderr
        now = stage_files(workspace)
        repeated = [name for name in known if now.get(name) != known[name]]
        assert not repeated, f"attempt {number} did {repeated} again"
        story.append(f"attempt {number} ({moment}): finished {sorted(now.keys() - known.keys())}")
        known = now
    return json.loads(done.stdout)["report"], story


def assert_same_result(disturbed: dict, workspace: Path, undisturbed: Finished) -> None:
    """Accuracies, predictions, parity, weights and golden vectors are equal, bit for bit."""
    assert disturbed["model"]["float_accuracy"] == undisturbed.report["model"]["float_accuracy"]
    for result in disturbed["targets"]:
        expected = undisturbed.targets[result["target"]]
        for key in ("accuracy", "baseline_accuracy", "parity"):
            assert result[key] == expected[key], key
        golden = Path("packages") / result["target"] / "golden.npz"
        with np.load(workspace / golden) as ours, np.load(undisturbed.workspace / golden) as theirs:
            assert sorted(ours) == sorted(theirs)
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])
    for stage in ("01-finetune", "02-prune"):
        weights = f"stages/{stage}/model.safetensors"
        assert (workspace / weights).read_bytes() == (undisturbed.workspace / weights).read_bytes()


@pytest.mark.slow
def test_two_kills_change_nothing(digits_run: Finished, tmp_path: Path):
    """In the middle of fine-tuning, and right after a commit or in quantization-aware training."""
    random_moment = random.Random(2)
    moments = [
        Moment(stage="01-finetune", delay_s=random_moment.uniform(0, 0.3)),
        Moment(stage="03-quantize", delay_s=random_moment.uniform(0, 0.2)),
    ]
    report, story = run_with_kills(tmp_path, moments, TARGETS[:1])
    print(*story, sep="\n")
    assert_same_result(report, tmp_path / "runs/digits", digits_run)
    attempts = {
        stage: json.loads((tmp_path / f"runs/digits/stages/{stage}/meta.json").read_text())["attempts"]
        for stage in ("01-finetune", "02-prune", "03-quantize")
    }
    assert attempts == {"01-finetune": 2, "02-prune": 1, "03-quantize": 2}
    assert not list((tmp_path / "runs/digits/stages").glob(".*")), "no scratch is left"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_five_kills_over_three_runtimes_change_nothing(digits_run: Finished, tmp_path: Path, seed: int):
    """Five of all moments that a run has, drawn by the seed, each with a random delay."""
    draw = random.Random(seed)
    exports = [f"04-export-{target}" for target in TARGETS]
    measures = [f"05-measure-{target}" for target in TARGETS]
    in_order = [
        Moment(stage="00-data", committed=True),
        Moment(stage="01-finetune"),
        Moment(stage="01-finetune", committed=True),
        Moment(stage="02-prune"),
        Moment(stage="02-prune", committed=True),
        Moment(stage="03-quantize"),
        *(Moment(stage=stage, committed=True) for stage in ("03-quantize", *exports, *measures)),
    ]
    chosen = sorted(draw.sample(range(len(in_order)), 5))
    # A delay may carry a kill past the next moment, which then comes at once: also a random moment.
    moments = [
        Moment(
            stage=m.stage, committed=m.committed, delay_s=draw.uniform(0, 0.25 if "measure" in m.stage else 1)
        )
        for m in (in_order[index] for index in chosen)
    ]
    assert all(a != b for a, b in itertools.pairwise(moments))
    report, story = run_with_kills(tmp_path, moments, TARGETS)
    print(*story, sep="\n")
    assert_same_result(report, tmp_path / "runs/digits", digits_run)
