"""The stages as steps of a run: what each reads (its key), what it does, what it leaves in its folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import edgeft
from edgeft import calibration, compilers, data, extras, measure, records, target
from edgeft.pipeline import budgets, evaluation, processes
from edgeft.pipeline.inputs import ESTIMATE, PREPROCESSING, RunInputs, quantize_stage
from edgeft.pipeline.walk import CHECKPOINT, Outcome, Walk, write_json
from edgeft.types import FloatModel, StepRecord, TargetResult, example_inputs

_GOLDEN_SAMPLES = 8
_LEAKS_SHOWN = 3


def load_data(run: RunInputs, walk: Walk) -> None:
    """Decode, identify and split the data; leaves the split as manifest.json."""
    recipe = run.recipe
    inputs = {
        "task": recipe.task.model_dump(mode="json"),
        "preprocessing": run.template.to_dict() if run.template else {},
        "seed": recipe.seed,
        "listing": data.scan(recipe.task, run.base).listing,
        "versions": _versions("pillow", "sklearn", "tokenizers", "numpy"),
    }

    def work(folder: Path) -> Outcome:
        splits = data.load(recipe.task, run.template, base=run.base, seed=recipe.seed, progress=walk.tell)
        run.splits, run.preprocessing = splits, splits.preprocessing
        write_json(folder / PREPROCESSING, splits.preprocessing.to_dict())
        (folder / "preprocessing").mkdir()
        for name, text in splits.preprocessing.files().items():
            (folder / "preprocessing" / name).write_text(text, encoding="utf-8")
        manifest = data.to_manifest(splits)
        write_json(folder / "manifest.json", manifest)
        counts = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
        results = {
            "classes": list(splits.classes),
            "counts": counts,
            "skipped": list(splits.skipped),
            "fingerprint": splits.fingerprint,
            "leaks": list(manifest["leaks"]),
        }
        if leaks := manifest["leaks"]:
            more = f" and {len(leaks) - _LEAKS_SHOWN} more are" if len(leaks) > _LEAKS_SHOWN else " is"
            named = ", ".join(leaks[:_LEAKS_SHOWN])
            walk.progress.note(f"test sample {named}{more} also among the training or validation samples")
        skipped = f", {len(splits.skipped)} skipped" if splits.skipped else ""
        text = ", ".join(f"{count} {name}" for name, count in counts.items())
        return results, f"{len(splits.classes)} classes, {text}{skipped}"

    walk.ensure("data", inputs, work)


def finetune(run: RunInputs, walk: Walk) -> None:
    """Carry the pretrained network over to the data's classes; leaves model.safetensors."""
    config = run.finetune
    inputs = {
        "config": config.model_dump(mode="json"),
        "source": run.recipe.model.source,
        "preprocessing": run.preprocessing.to_dict(),
        "weights": run.files_digest(run.recipe.model),
        "teacher": run.files_digest(run.teacher),
        "data": run.data_facts["fingerprint"],
        "seed": run.recipe.seed,
        "versions": _versions("torch", "lightning", "timm", "torchvision", "transformers"),
    }

    def work(folder: Path) -> Outcome:
        from edgeft import models, pruning

        if walk.comes_to("prune"):
            budgets.check(run)
        processes.call(walk.workspace.path, walk.folders["data"], folder / CHECKPOINT)
        run.finetuned, account = run.finetune_with(folder / CHECKPOINT)
        tuned = run.finetuned
        results = _save(
            tuned,
            folder,
            tensors_loaded=len(account.loaded),
            tensors_fresh=len(account.fresh),
            edge_lite_sites=sum(map(len, models.edge_lite_sites(tuned.module))),
            macs=pruning.count_macs(tuned.module, _example(tuned)),
        )
        return results, f"validation accuracy {tuned.history[-1].results['val_accuracy']:.2%}"

    walk.ensure("finetune", inputs, work)


def prune(run: RunInputs, walk: Walk) -> None:
    """Cut channels to the budget and recover; leaves model.safetensors, and what a search for the budget found."""
    config = run.recipe.prune
    if config is None:
        return
    limits = target.common_prune_limits(run.profiles)
    inputs = {
        "config": config.model_dump(mode="json"),
        "limits": limits.model_dump(mode="json"),
        "upstream": walk.keys["finetune"],
        "versions": _versions("torch_pruning"),
        **budgets.facts(run),
    }

    def work(folder: Path) -> Outcome:
        from edgeft import stages

        run.pruned = stages.prune(
            run.finetuned,
            run.training_batches(config),
            run.plain_batches(run.splits.val),
            config,
            limits=limits,
            profile=budgets.profile(run),
            quantize=budgets.scheme(run),
            timing=run.recipe.measure,
            embedded=run.recipe.export.preprocess == "embedded",
            statistics=run.mixed_batches(run.splits.train),
            seed=run.recipe.seed,
            checkpoint=folder / CHECKPOINT,
            device=run.device,
            progress=walk.tell,
        )
        for between in folder.glob("step-*.safetensors"):
            between.unlink()
        return _save(run.pruned, folder), budgets.summary(run.pruned.history[-1].results)

    walk.ensure("prune", inputs, work)


def quantize(run: RunInputs, walk: Walk) -> None:
    """Make a Q/DQ program for every numerics among the targets; leaves program.pt2 and its table of ranges."""
    config, run = run.recipe.quantize, run.deployed
    if config is None or config.scheme == "none":
        return
    wanted = calibration.load(config.calibration, run.base)
    engine = ["neural_compressor"] if config.engine == "neural-compressor" else []
    full_integer = any(profile.precision.full_integer for profile in run.profiles)
    for numerics in dict.fromkeys(profile.precision.numerics for profile in run.profiles):
        inputs = {
            "config": config.model_dump(mode="json"),
            "calibration": wanted.model_dump(mode="json") if config.calibrates else {},
            "numerics": numerics.model_dump(mode="json"),
            "full_integer": full_integer,
            "preprocess": run.recipe.export.preprocess,
            "upstream": walk.keys.get("prune", walk.keys["finetune"]),
            "versions": _versions("torchao", *engine),
        }

        def work(folder: Path, numerics: target.Numerics = numerics) -> Outcome:
            from edgeft import exporters, quantization, stages

            # Converters that take seconds to import do so while this process trains.
            for profile in run.profiles:
                exporters.warm_up(profile)
            chosen = (
                data.calibration_samples(run.splits.train, wanted, run.recipe.seed)
                if config.calibrates
                else None
            )
            quantized = stages.quantize(
                run.pruned,
                run.training_batches(config),
                run.plain_batches(run.splits.val),
                config,
                calibration=wanted,
                numerics=numerics,
                full_integer=full_integer,
                samples=None if chosen is None else run.mixed_batches(chosen),
                statistics=run.mixed_batches(run.splits.train),
                seed=run.recipe.seed,
                checkpoint=folder / CHECKPOINT,
                device=run.device,
                progress=walk.tell,
            )
            quantization.save(quantized, folder)
            results = quantized.history[-1].results
            layers = results.get("float_layers", [])
            in_float = f", {len(layers)} taken back to float" if layers else ""
            return dataclasses.asdict(quantized.history[-1]), (
                f"{results.get('method', config.scheme)}, {len(quantized.layers)} int8 layers{in_float}, "
                f"validation accuracy {results['val_accuracy']:.2%} (float {results['val_accuracy_float']:.2%})"
            )

        walk.ensure("quantize", inputs, work, suffix=numerics.name)


def export(run: RunInputs, walk: Walk) -> None:
    """Write and check the compressed file and the float baseline of every target."""
    run = run.deployed
    for profile in run.profiles:
        quantize_key = walk.keys.get(quantize_stage(profile.precision.numerics))
        inputs = {
            "profile": profile.model_dump(mode="json", by_alias=True),
            "upstream": quantize_key or walk.keys.get("prune") or walk.keys["finetune"],
            "float": walk.keys["finetune"],
            "preprocess": run.recipe.export.preprocess,
            "versions": _versions("onnx", "onnxscript", "torch", *profile.runtime.requires),
        }

        def work(
            folder: Path, profile: target.TargetProfile = profile, quantize_key: str | None = quantize_key
        ) -> Outcome:
            from edgeft.pipeline import exporting

            changed = quantize_key is not None or "prune" in walk.folders
            artifact, baseline = exporting.files(run, profile, folder, changed=changed)
            if profile.compiler is not None:
                estimate = compilers.compile_for(profile, artifact.path, folder)
                estimate = measure.memory.name_layers(estimate, artifact.path, run.program(profile).layers)
                write_json(folder / ESTIMATE, records.encode(estimate, folder))
            write_json(folder / "artifact.json", records.encode(artifact, folder))
            write_json(folder / "baseline.json", records.encode(baseline, folder))
            ratio = artifact.size_bytes / baseline.size_bytes
            coverage = artifact.coverage
            results = {"coverage": coverage, "size_bytes": artifact.size_bytes, "size_ratio": ratio}
            return results, (
                f"{artifact.size_bytes / 1e3:.0f} kB ({ratio:.0%} of float), "
                f"{coverage.int8_mac_ops}/{coverage.mac_ops} MAC ops int8"
            )

        walk.ensure("export", inputs, work, suffix=profile.id)


def measure_targets(run: RunInputs, walk: Walk) -> None:
    """Predict and time on the exported files of every target; leaves measured.json and golden vectors."""
    run = run.deployed
    for profile in run.profiles:
        inputs = {
            "config": run.recipe.measure.model_dump(mode="json"),
            "metrics": [[metric.name, metric.sha256] for metric in run.user_metrics],
            "gallery": profile is run.profiles[0],
            "upstream": walk.keys[f"export-{profile.id}"],
            "host": measure.host_fingerprint(profile.runtime.host),
        }

        def work(folder: Path, profile: target.TargetProfile = profile) -> Outcome:
            measured = evaluation.measure_target(
                profile,
                artifact=run.artifact(profile, "artifact"),
                baseline=run.artifact(profile, "baseline"),
                inputs=run.test_inputs,
                samples=run.splits.test,
                reference=run.reference(profile),
                lsb=run.lsb(profile),
                config=run.recipe.measure,
                classes=run.splits.classes,
                user_metrics=run.user_metrics,
                with_gallery=profile is run.profiles[0],  # the pictures of the others are nearly the same
                estimate=run.estimate(profile),
                layers=run.program(profile).layers,
                progress=walk.tell,
            )
            golden = slice(0, _GOLDEN_SAMPLES)
            np.savez(
                folder / "golden.npz",
                inputs=run.test_inputs[golden],
                outputs=measured.logits[golden],
                reference=run.reference(profile)[golden],
            )
            result = measured.result
            write_json(folder / "measured.json", records.encode(result, walk.workspace.path))
            against = budgets.against_unpruned(run, profile, progress=walk.tell)
            return {"lsb": run.lsb(profile), **against}, _measured(result)

        walk.ensure("measure", inputs, work, suffix=profile.id)


STEPS = {
    "data": load_data,
    "finetune": finetune,
    "prune": prune,
    "quantize": quantize,
    "export": export,
    "measure": measure_targets,
}


def _measured(result: TargetResult) -> str:
    """Return one line about what was found out for a target."""
    parts = [f"accuracy {result.accuracy.accuracy:.2%} (float {result.baseline_accuracy.accuracy:.2%})"]
    if result.ratio is not None:
        parts.append(f"latency x{result.ratio.ratio:.2f}")
    if result.estimate is not None:
        parts.append(f"{result.estimate.ms:.3g} ms estimated ({result.estimate.source})")
    if result.memory is not None:
        parts.append(f"RAM {result.memory.ram_bytes:,} bytes")
    parts.append(f"agreement {result.parity.agreement:.2%}")
    parts += [f"over its {budget.name} budget" for budget in result.budgets if not budget.met]
    return ", ".join(parts)


def _save(model: FloatModel, folder: Path, **extra: Any) -> dict[str, Any]:
    """Write a float network's tensors and return its last record, `extra` among its results."""
    from safetensors.torch import save_file

    from edgeft import stages

    save_file(stages.own_tensors(model.module), folder / "model.safetensors")
    record: StepRecord = model.history[-1]
    parameters = sum(p.numel() for p in model.module.parameters())
    return dataclasses.asdict(
        dataclasses.replace(record, results={**record.results, "parameters": parameters, **extra})
    )


def _versions(*modules: str) -> dict[str, str]:
    return {"edgeft": edgeft.__version__, **extras.versions(*modules)}


def _example(model: FloatModel) -> Any:
    return example_inputs(model.preprocessing)
