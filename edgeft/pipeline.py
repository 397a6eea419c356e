"""The order of things: which stage comes when, what it reads, and what of it is finished already.

Stages live in the workspace under a key over everything that they read. A run walks through them in order;
a finished one is not repeated, and objects (data, networks, programs) are loaded only when a stage needs them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import edgeft
from edgeft import calibration, extras, gating, measure, preflight, records, reporting, target
from edgeft.preflight import Finding
from edgeft.recipe import Finetune, Recipe
from edgeft.types import ExportedArtifact, FloatModel, QuantModel, Splits, StepRecord, TargetResult, Verdict
from edgeft.workspace import KEYS_FILE, Workspace, stage_key

__all__ = ["Finding", "RunProgress", "RunSummary", "check", "run"]

STAGES = ("data", "finetune", "prune", "quantize", "export", "measure")
_TITLES = {
    "data": "data",
    "finetune": "fine-tune",
    "prune": "prune and recover",
    "quantize": "quantize",
    "export": "export",
    "measure": "measure",
}
_GOLDEN_SAMPLES = 8
_BATCH = 32

Outcome = tuple[Mapping[str, Any], str]
"""What a stage's work returns: results for the report, and one line for people."""


class RunProgress(Protocol):
    """Where a run tells how far it is."""

    def stage_started(self, name: str, title: str) -> None:
        """A stage begins."""

    def stage_reused(self, name: str, title: str) -> None:
        """A stage was finished by an earlier run."""

    def stage_progress(self, message: str, *, done: int = 0, total: int = 0) -> None:
        """The current stage is alive."""

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """A stage is done."""

    def note(self, text: str) -> None:
        """Something people should know."""


class SilentProgress:
    """A `RunProgress` that tells nobody."""

    def stage_started(self, name: str, title: str) -> None:
        """Ignore it."""

    def stage_reused(self, name: str, title: str) -> None:
        """Ignore it."""

    def stage_progress(self, message: str, *, done: int = 0, total: int = 0) -> None:
        """Ignore it."""

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run leaves: the report and verdict, absent if it was told to stop before them."""

    workspace: Path
    report: dict[str, Any] | None = None
    verdict: Verdict | None = None


def check(recipe: Recipe, *, base: Path) -> list[Finding]:
    """Return the findings of `edgeft check`, errors included."""
    return preflight.check(recipe, base=base)


def run(
    recipe: Recipe,
    *,
    base: Path | None = None,
    workspace: Path | None = None,
    until: str | None = None,
    progress: RunProgress | None = None,
) -> RunSummary:
    """Do all that a recipe says, continuing where an earlier run of the same recipe stopped.

    Args:
        recipe: A parsed recipe.
        base: Folder that its paths are relative to; the working directory by default.
        workspace: Folder to work in; ``runs/<name>`` by default.
        until: Last stage to do, one of `STAGES`; everything by default.
        progress: Told about stages.

    Raises:
        EdgeftError: Whatever is wrong with the recipe, its files, the workspace or the host; everything
            finished is kept.
    """
    base = base or Path()
    folder = workspace or Path("runs") / recipe.name
    progress = progress or SilentProgress()
    with Workspace.open(folder, note=progress.note) as opened:
        return _Run(recipe, base, opened, progress).execute(until)


class _Run:
    """One walk through the stages. Cached properties are the objects that several stages need."""

    def __init__(self, recipe: Recipe, base: Path, workspace: Workspace, progress: RunProgress) -> None:
        self.recipe = recipe
        self.base = base
        self.workspace = workspace
        self.progress = progress
        self.folders: dict[str, Path] = {}
        self.keys: dict[str, str] = {}

    # -- the walk -------------------------------------------------------------------------------------------

    def execute(self, until: str | None) -> RunSummary:
        self._preflight()
        self.workspace.write_text("recipe.toml", self.recipe.to_toml())
        steps: dict[str, Callable[[], None]] = {
            "data": self._data,
            "finetune": self._finetune,
            "prune": self._prune,
            "quantize": self._quantize,
            "export": self._export,
            "measure": self._measure,
        }
        for name, step in steps.items():
            step()
            if name == until:
                return RunSummary(workspace=self.workspace.path)
        self._write_keys(only_used=True)
        return self._conclude()

    def _preflight(self) -> None:
        for finding in preflight.check(self.recipe, base=self.base):
            if finding.error is not None:
                raise finding.error
            if finding.level == "warning":
                self.progress.note(f"{finding.text} {finding.hint}".strip())

    def _stage(
        self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], Outcome], *, suffix: str = ""
    ) -> None:
        """Make sure that a stage is finished: reuse it, or do `work` in its scratch folder and commit it."""
        index, full = STAGES.index(name), f"{name}-{suffix}" if suffix else name
        title = f"{_TITLES[name]} {suffix}".strip()
        key = stage_key(full, inputs)
        self.keys[full] = key
        self._write_keys(only_used=False)
        finished = self.workspace.stage(index, full, key)
        if finished is not None:
            self.folders[full] = finished
            self.progress.stage_reused(full, title)
            return
        self.progress.stage_started(full, title)
        started = time.monotonic()
        scratch = self.workspace.begin(index, full, key)
        results, summary = work(scratch)
        _write_json(scratch / "results.json", results)
        (scratch / "training.ckpt").unlink(missing_ok=True)
        seconds = time.monotonic() - started
        self.folders[full] = self.workspace.commit(index, full, key, inputs=inputs, seconds=seconds)
        self.progress.stage_finished(full, seconds, summary)

    def _write_keys(self, *, only_used: bool) -> None:
        """Record which stage keys this recipe needs; those of later stages stay until they are known."""
        path = self.workspace.path / KEYS_FILE
        known = {} if only_used or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
        for full, key in self.keys.items():
            known[f"{STAGES.index(full.partition('-')[0]):02d}-{full}"] = key
        self.workspace.write_text(KEYS_FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")

    # -- what stages read -----------------------------------------------------------------------------------

    @cached_property
    def profiles(self) -> list[target.TargetProfile]:
        return [target.load(name, self.base) for name in self.recipe.targets]

    @cached_property
    def method(self) -> Finetune:
        return self.recipe.finetune or Finetune(method="none")

    @cached_property
    def preprocessing(self) -> Any:
        from edgeft import models

        return models.default_preprocessing(self.recipe.model)

    @cached_property
    def splits(self) -> Splits:
        from edgeft import data

        manifest = json.loads((self.folders["data"] / "manifest.json").read_text(encoding="utf-8"))
        return data.from_manifest(
            manifest, self.recipe.task, self.preprocessing, base=self.base, progress=self._tell
        )

    @cached_property
    def data_results(self) -> dict[str, Any]:
        return _read_json(self.folders["data"] / "results.json")

    @cached_property
    def test_inputs(self) -> Any:
        test = self.splits.test
        return self.preprocessing.normalize(np.stack([test.pixels(i) for i in range(len(test))]))

    @cached_property
    def finetuned(self) -> FloatModel:
        return self._load_float("finetune")

    @cached_property
    def pruned(self) -> FloatModel:
        return self._load_float("prune") if "prune" in self.folders else self.finetuned

    @cached_property
    def program(self) -> QuantModel:
        from edgeft import quantization

        if "quantize" in self.folders:
            return quantization.load(self.folders["quantize"], self.pruned)
        return quantization.float_program(self.pruned)

    @cached_property
    def float_program(self) -> QuantModel:
        from edgeft import quantization

        return quantization.float_program(self.finetuned)

    @cached_property
    def reference(self) -> Any:
        """Logits of the program over the test split, (N, K)."""
        from edgeft import stages

        return stages.predict_program(self.program.program, self.test_inputs)

    @cached_property
    def lsb(self) -> float:
        """One step of the logits: the program's output scale, or what it would be for a float program."""
        if self.program.output is not None:
            return self.program.output.scale
        return max(float(self.reference.max() - self.reference.min()) / 255, 1e-12)

    def _load_float(self, stage: str) -> FloatModel:
        from safetensors.torch import load_file

        from edgeft import models, pruning

        built = models.build(
            self.recipe.model,
            len(self.splits.classes),
            base=self.base,
            seed=self.recipe.seed,
            fresh=True,
        )
        module = pruning.restore(built.module, load_file(self.folders[stage] / "model.safetensors"))
        return FloatModel(
            module=module.eval(), preprocessing=self.preprocessing, labels=self.splits.classes
        )

    def _loader(self, split: str, *, augment: Any = "none", batch_size: int = _BATCH, shuffle: bool = False) -> Any:
        from edgeft import training

        return training.loader(
            getattr(self.splits, split),
            self.preprocessing,
            batch_size=batch_size,
            seed=self.recipe.seed,
            augment=augment,
            shuffle=shuffle,
        )

    def _tell(self, message: str, *, done: int = 0, total: int = 0) -> None:
        self.progress.stage_progress(message, done=done, total=total)

    # -- the stages -----------------------------------------------------------------------------------------

    def _data(self) -> None:
        from edgeft import data

        inputs = {
            "task": self.recipe.task.model_dump(mode="json"),
            "preprocessing": self.preprocessing.to_dict(),
            "seed": self.recipe.seed,
            "listing": data.scan(self.recipe.task, self.base).listing,
            "versions": _versions("pillow", "sklearn", "numpy"),
        }

        def work(folder: Path) -> Outcome:
            splits = data.load(
                self.recipe.task, self.preprocessing, base=self.base, seed=self.recipe.seed, progress=self._tell
            )
            self.splits = splits
            _write_json(folder / "manifest.json", data.to_manifest(splits))
            counts = {name: len(getattr(splits, name)) for name in ("train", "val", "test")}
            results = {
                "classes": list(splits.classes),
                "counts": counts,
                "skipped": list(splits.skipped),
                "fingerprint": splits.fingerprint,
            }
            skipped = f", {len(splits.skipped)} skipped" if splits.skipped else ""
            text = ", ".join(f"{count} {name}" for name, count in counts.items())
            return results, f"{len(splits.classes)} classes, {text}{skipped}"

        self._stage("data", inputs, work)

    def _finetune(self) -> None:
        weights = self._weights_digest()
        inputs = {
            "config": self.method.model_dump(mode="json"),
            "source": self.recipe.model.source,
            "preprocessing": self.preprocessing.to_dict(),
            "weights": weights,
            "data": self.data_results["fingerprint"],
            "seed": self.recipe.seed,
            "versions": _versions("torch", "lightning", "timm", "torchvision"),
        }

        def work(folder: Path) -> Outcome:
            from edgeft import models, pruning, stages

            method = self.method.method
            built = models.build(
                self.recipe.model,
                len(self.splits.classes),
                base=self.base,
                seed=self.recipe.seed,
                fresh=method == "retrain",
                keep_head=method == "none",
            )
            tuned = stages.finetune(
                FloatModel(
                    module=built.module, preprocessing=self.preprocessing, labels=self.splits.classes
                ),
                self._loader(
                    "train", augment=self.method.augment, batch_size=self.method.batch_size, shuffle=True
                ),
                self._loader("val"),
                self.method,
                head=built.head,
                seed=self.recipe.seed,
                checkpoint=folder / "training.ckpt",
                progress=self._tell,
            )
            self.finetuned = tuned
            _save_float(tuned, folder)
            record = tuned.history[-1]
            extra = {
                "tensors_loaded": len(built.account.loaded),
                "tensors_fresh": len(built.account.fresh),
                "macs": pruning.count_macs(tuned.module, _example(tuned)),
                "parameters": _parameters(tuned),
            }
            record = dataclasses.replace(record, results={**record.results, **extra})
            return _stored(record), f"validation accuracy {record.results['val_accuracy']:.2%}"

        self._stage("finetune", inputs, work)

    def _prune(self) -> None:
        config = self.recipe.prune
        if config is None:
            return
        limits = target.common_prune_limits(self.profiles)
        inputs = {
            "config": config.model_dump(mode="json"),
            "limits": limits.model_dump(mode="json"),
            "upstream": self.keys["finetune"],
            "versions": _versions("torch_pruning"),
        }

        def work(folder: Path) -> Outcome:
            from edgeft import stages

            pruned = stages.prune(
                self.finetuned,
                self._loader("train", augment=config.augment, batch_size=config.batch_size, shuffle=True),
                self._loader("val"),
                config,
                limits=limits,
                seed=self.recipe.seed,
                checkpoint=folder / "training.ckpt",
                progress=self._tell,
            )
            self.pruned = pruned
            _save_float(pruned, folder)
            record = pruned.history[-1]
            extra = {"parameters": _parameters(pruned)}
            record = dataclasses.replace(record, results={**record.results, **extra})
            plan = record.results["plan"]
            return _stored(record), (
                f"{plan['macs_after'] / plan['macs_before']:.0%} of the MACs, "
                f"validation accuracy {record.results['val_accuracy']:.2%}"
            )

        self._stage("prune", inputs, work)

    def _quantize(self) -> None:
        config = self.recipe.quantize
        if config is None or config.scheme == "none":
            return
        wanted = calibration.load(config.calibration, self.base)
        inputs = {
            "config": config.model_dump(mode="json"),
            "calibration": wanted.model_dump(mode="json"),
            "upstream": self.keys.get("prune", self.keys["finetune"]),
            "versions": _versions("torchao"),
        }

        def work(folder: Path) -> Outcome:
            from edgeft import data, quantization, stages, training

            if any(profile.export.format == "tflite" for profile in self.profiles):
                self._warm_up_litert()
            chosen = data.calibration_samples(self.splits.train, wanted, self.recipe.seed)
            quantized = stages.quantize(
                self.pruned,
                self._loader("train", augment=config.augment, batch_size=config.batch_size, shuffle=True),
                self._loader("val"),
                config,
                calibration=wanted,
                samples=training.loader(chosen, self.preprocessing, batch_size=_BATCH),
                statistics=self._loader("train"),
                seed=self.recipe.seed,
                checkpoint=folder / "training.ckpt",
                progress=self._tell,
            )
            quantization.save(quantized, folder)
            record = quantized.history[-1]
            results = record.results
            return _stored(record), (
                f"{config.method}, {len(quantized.layers)} int8 layers, validation accuracy "
                f"{results['val_accuracy']:.2%} (float {results['val_accuracy_float']:.2%})"
            )

        self._stage("quantize", inputs, work)

    def _warm_up_litert(self) -> None:
        """Let the LiteRT converter import (5-7 s) while this process trains."""
        from edgeft.exporters import tflite

        tflite.converter()

    def _export(self) -> None:
        upstream = self.keys.get("quantize") or self.keys.get("prune") or self.keys["finetune"]
        for profile in self.profiles:
            inputs = {
                "profile": profile.model_dump(mode="json", by_alias=True),
                "upstream": upstream,
                "float": self.keys["finetune"],
                "versions": _versions("onnx", "onnxscript", "torch", *profile.runtime.requires),
            }

            def work(folder: Path, profile: target.TargetProfile = profile) -> Outcome:
                from edgeft import stages

                artifact = stages.export(self.program, profile, folder, name="model")
                baseline = stages.export(self.float_program, profile, folder, name="float")
                for name, exported in (("artifact", artifact), ("baseline", baseline)):
                    _write_json(folder / f"{name}.json", records.encode(exported, folder))
                ratio = artifact.size_bytes / baseline.size_bytes
                coverage = artifact.coverage
                results = {"coverage": dataclasses.asdict(coverage), "size_ratio": ratio}
                return results, (
                    f"{artifact.size_bytes / 1e3:.0f} kB ({ratio:.0%} of float), "
                    f"{coverage.int8_mac_ops}/{coverage.mac_ops} MAC ops int8"
                )

            self._stage("export", inputs, work, suffix=profile.id)

    def _measure(self) -> None:
        for profile in self.profiles:
            inputs = {
                "config": self.recipe.measure.model_dump(mode="json"),
                "upstream": self.keys[f"export-{profile.id}"],
                "host": measure.host_fingerprint(),
            }

            def work(folder: Path, profile: target.TargetProfile = profile) -> Outcome:
                from edgeft import evaluation

                measured = evaluation.measure_target(
                    profile,
                    artifact=self._artifact(profile, "artifact"),
                    baseline=self._artifact(profile, "baseline"),
                    inputs=self.test_inputs,
                    samples=self.splits.test,
                    reference=self.reference,
                    lsb=self.lsb,
                    config=self.recipe.measure,
                    progress=self._tell,
                )
                count = min(_GOLDEN_SAMPLES, len(self.test_inputs))
                np.savez(
                    folder / "golden.npz",
                    inputs=self.test_inputs[:count],
                    outputs=measured.logits[:count],
                    reference=self.reference[:count],
                )
                _write_json(folder / "measured.json", records.encode(measured.result, self.workspace.path))
                result = measured.result
                results = {"lsb": self.lsb}
                return results, (
                    f"accuracy {result.accuracy.accuracy:.2%} (float {result.baseline_accuracy.accuracy:.2%}), "
                    f"latency x{result.ratio.ratio:.2f}, agreement {result.parity.agreement:.2%}"
                )

            self._stage("measure", inputs, work, suffix=profile.id)

    def _artifact(self, profile: target.TargetProfile, which: str) -> ExportedArtifact:
        folder = self.folders[f"export-{profile.id}"]
        return records.decode(ExportedArtifact, _read_json(folder / f"{which}.json"), folder)

    # -- packages, report, verdict --------------------------------------------------------------------------

    def _conclude(self) -> RunSummary:
        from edgeft import conclusion

        results = [
            records.decode(
                TargetResult, _read_json(self.folders[f"measure-{p.id}"] / "measured.json"), self.workspace.path
            )
            for p in self.profiles
        ]
        self.progress.stage_started("package", "package and verify")
        started = time.monotonic()
        conclusion.write_packages(self._facts(), results, progress=self._tell)
        self.progress.stage_finished(
            "package", time.monotonic() - started, f"{len(results)} packages, hashes and golden vectors verified"
        )
        verdict = gating.judge(results, self.recipe.gate, reference="the float fine-tuned model")
        report = conclusion.write_report(self._facts(), results, verdict)
        return RunSummary(workspace=self.workspace.path, report=report, verdict=verdict)

    def _facts(self) -> Any:
        from edgeft.conclusion import Facts

        return Facts(
            recipe=self.recipe,
            workspace=self.workspace.path,
            preprocessing=self.preprocessing,
            profiles=self.profiles,
            folders=self.folders,
            data=self.data_results,
        )

    def _weights_digest(self) -> str:
        """Return the SHA-256 of the pretrained weights' bytes, or an empty string if none are read."""
        from edgeft.models import sources

        if self.method.method == "retrain":
            return ""
        given = self.recipe.model.weights
        path = self.base / given if given else sources.shipped_weights(self.recipe.model.source)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


def _versions(*modules: str) -> dict[str, str]:
    return {"edgeft": edgeft.__version__, **extras.versions(*modules)}


def _example(model: FloatModel) -> Any:
    import torch

    return torch.zeros(1, *model.input_shape)


def _parameters(model: FloatModel) -> int:
    return sum(p.numel() for p in model.module.parameters())


def _save_float(model: FloatModel, folder: Path) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def _stored(record: StepRecord) -> dict[str, Any]:
    return dataclasses.asdict(record)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(reporting.plain(value), indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
