"""What stages read: data, networks, programs. Each is loaded from a finished stage when it is first needed.

A stage that has just run puts its own result here (the properties are cached and can be set), so that nothing
is read back within one run; a resumed run reads the same bytes from the stage's folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft import data, preprocessing, records, target
from edgeft.measure import user_metric
from edgeft.measure.user_metric import UserMetric
from edgeft.pipeline.walk import RESULTS, read_json
from edgeft.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing
from edgeft.recipe import Finetune, Model, Recipe, Training
from edgeft.target import Numerics, TargetProfile
from edgeft.types import (
    CompilerEstimate,
    ExportedArtifact,
    FloatArray,
    FloatModel,
    InputArray,
    Progress,
    QuantModel,
    Samples,
    Splits,
    silent,
)

if TYPE_CHECKING:
    from torch import nn

    from edgeft.models import BuiltModel, LoadAccount
    from edgeft.training import Batches

_EVALUATION_BATCH = 32
PREPROCESSING = "preprocessing.json"
ESTIMATE = "estimate.json"


def quantize_stage(numerics: Numerics) -> str:
    """Return the name of the stage that makes the program of a target's numerics."""
    return f"quantize-{numerics.name}".rstrip("-")


class RunInputs:
    """The objects of one run, by name.

    Args:
        recipe: The recipe.
        base: Folder that its paths are relative to.
        folders: Those of the finished stages, by name; more may come while this object lives.
        device: Where networks are trained: ``cpu``, ``cuda`` or ``cuda:N``.
        progress: Told how far reading is.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: Path,
        folders: Mapping[str, Path],
        *,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> None:
        self.recipe = recipe
        self.base = base
        self.folders = folders
        self.device = device
        self.progress = progress
        self._references: dict[nn.Module, FloatArray] = {}

    @cached_property
    def profiles(self) -> list[TargetProfile]:
        """The recipe's targets."""
        return [target.load(name, self.base) for name in self.recipe.targets]

    @cached_property
    def finetune(self) -> Finetune:
        """The fine-tune section; an absent one takes the network as it is."""
        return self.recipe.finetune or Finetune(method="none")

    @cached_property
    def template(self) -> ImagePreprocessing | TextPreprocessing | None:
        """What the model's source says about preprocessing, before the data is seen."""
        from edgeft import models

        return models.default_preprocessing(self.recipe.model, self.recipe.task.kind, base=self.base)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The one preprocessing of training, calibration, evaluation and device, as the data stage completed it."""
        folder = self.folders["data"]
        stored = read_json(folder / PREPROCESSING)
        files = {path.name: path.read_text(encoding="utf-8") for path in (folder / "preprocessing").glob("*")}
        return preprocessing.from_dict(stored, files)

    @cached_property
    def deployed(self) -> RunInputs:
        """These objects as exported files see them: with raw pixels, where the recipe puts normalisation into those."""
        from edgeft.pipeline.deployed import DeployedInputs

        return DeployedInputs(self) if self.recipe.export.preprocess == "embedded" else self

    @cached_property
    def user_metrics(self) -> tuple[UserMetric, ...]:
        """The recipe's own metrics."""
        return tuple(user_metric.load_all(self.recipe.evaluate.metrics, self.base))

    @cached_property
    def splits(self) -> Splits:
        """The data set, split as the data stage has stored it."""
        return data.from_manifest(
            read_json(self.folders["data"] / "manifest.json"),
            self.recipe.task,
            self.preprocessing,
            base=self.base,
            progress=self.progress,
        )

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Classes, counts, skipped files and fingerprint, without decoding a sample."""
        facts: dict[str, Any] = read_json(self.folders["data"] / RESULTS)
        return facts

    @cached_property
    def test_inputs(self) -> InputArray:
        """The test split as model inputs, (N, ...)."""
        return self.splits.test.inputs(range(len(self.splits.test)))

    @cached_property
    def finetuned(self) -> FloatModel:
        """The float network that everything is compared with."""
        return self._load_float("finetune")

    @cached_property
    def pruned(self) -> FloatModel:
        """The network that is quantized: pruned and recovered, or the fine-tuned one."""
        return self._load_float("prune") if "prune" in self.folders else self.finetuned

    @cached_property
    def programs(self) -> dict[Numerics, QuantModel]:
        """The programs that are known so far, by the numerics of their targets."""
        return {}

    def program(self, profile: TargetProfile) -> QuantModel:
        """Return the program that is exported for a target: Q/DQ, or float where the recipe does not quantize."""
        from edgeft import quantization

        numerics = profile.precision.numerics
        if numerics not in self.programs:
            folder = self.folders.get(quantize_stage(numerics))
            self.programs[numerics] = (
                quantization.load(folder, self.pruned) if folder else quantization.float_program(self.pruned)
            )
        return self.programs[numerics]

    @cached_property
    def float_program(self) -> QuantModel:
        """The program of the float baselines."""
        from edgeft import quantization

        return quantization.float_program(self.finetuned)

    def reference(self, profile: TargetProfile) -> FloatArray:
        """Return the logits (N, K) of a target's program over the test split."""
        from edgeft import stages

        program = self.program(profile).program
        if program not in self._references:
            self._references[program] = stages.predict_program(program, self.test_inputs)
        return self._references[program]

    def lsb(self, profile: TargetProfile) -> float:
        """Return one step of the logits: the program's output scale, or what an int8 output's would be."""
        output = self.program(profile).output
        if output is not None:
            return output.scale
        reference = self.reference(profile)
        return max(float(reference.max() - reference.min()) / 255, 1e-12)

    @cached_property
    def teacher(self) -> Model | None:
        """Where the network comes from that fine-tuning follows."""
        given = self.finetune.teacher
        if given is None:
            return None
        return self.recipe.model.model_copy(update={"source": given.source, "weights": given.weights})

    def files_digest(self, model: Model | None) -> str:
        """Return the SHA-256 of all files that a network is made from; empty if there are none."""
        from edgeft import models

        digest = hashlib.sha256()
        found = models.files(model, base=self.base) if model else ()
        for path in found:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest() if found else ""

    def build(self) -> BuiltModel:
        """Return the recipe's network with its pretrained weights and a head for the data's classes."""
        from edgeft import models

        return models.build(
            self.recipe.model,
            len(self.data_facts["classes"]),
            base=self.base,
            seed=self.recipe.seed,
            preprocessing=self.preprocessing,
            fresh=self.finetune.method == "retrain",
            keep_head=self.finetune.method == "none",
        )

    def finetune_with(self, checkpoint: Path) -> tuple[FloatModel, LoadAccount]:
        """Build the network, train it as the recipe says, and return it with the account of its tensors.

        Args:
            checkpoint: File to resume from and to write after every epoch.
        """
        from edgeft import stages

        built = self.build()
        tuned = stages.finetune(
            FloatModel(module=built.module, preprocessing=self.preprocessing, labels=self.splits.classes),
            self.training_batches(self.finetune),
            self.plain_batches(self.splits.val),
            self.finetune,
            head=built.head,
            teacher=self.build_teacher(),
            seed=self.recipe.seed,
            checkpoint=checkpoint,
            device=self.device,
            progress=self.progress,
        )
        return tuned, built.account

    def build_teacher(self) -> nn.Module | None:
        """Return the network that fine-tuning follows, or None where it follows none."""
        from edgeft import models

        if self.teacher is None:
            return None
        return models.build(
            self.teacher,
            len(self.data_facts["classes"]),
            base=self.base,
            seed=self.recipe.seed,
            preprocessing=self.preprocessing,
            keep_head=True,
        ).module

    def training_batches(self, config: Training) -> Batches:
        """Return shuffled, augmented training batches as a stage's section asks for them."""
        from edgeft import training

        return training.loader(
            self.splits.train,
            self.preprocessing,
            batch_size=config.batch_size,
            seed=self.recipe.seed,
            augment=config.augment,
            shuffle=True,
            imbalance=config.imbalance,
        )

    def plain_batches(self, samples: Any) -> Batches:
        """Return samples in order and as the device sees them."""
        from edgeft import training

        return training.loader(
            samples, self.preprocessing, batch_size=_EVALUATION_BATCH, seed=self.recipe.seed
        )

    def mixed_batches(self, samples: Samples) -> Batches:
        """Return samples as `plain_batches` does, in a random order that is always the same.

        Data sets come class by class. Statistics of batch norms over batches of one class cost a float network 1.8
        points on 224 weather photos.
        """
        order = np.random.default_rng(self.recipe.seed).permutation(len(samples))
        return self.plain_batches(data.subset(samples, order.tolist()))

    def artifact(self, profile: TargetProfile, which: str) -> ExportedArtifact:
        """Return the record of a target's exported file: ``artifact`` or ``baseline``."""
        folder = self.folders[f"export-{profile.id}"]
        return records.decode(ExportedArtifact, read_json(folder / f"{which}.json"), folder)

    def estimate(self, profile: TargetProfile) -> CompilerEstimate | None:
        """Return what a target's compiler says of its exported file; None for a target without a compiler."""
        folder = self.folders[f"export-{profile.id}"]
        if profile.compiler is None:
            return None
        return records.decode(CompilerEstimate, read_json(folder / ESTIMATE), folder)

    def _load_float(self, stage: str) -> FloatModel:
        from safetensors.torch import load_file

        from edgeft import models, pruning

        classes = tuple(self.data_facts["classes"])
        built = models.build(
            self.recipe.model,
            len(classes),
            base=self.base,
            seed=self.recipe.seed,
            preprocessing=self.preprocessing,
            fresh=True,
        )
        network = built.module
        if stage == "prune" and self.recipe.prune and self.recipe.prune.rewrite == "edge-lite":
            network = models.to_edge_lite(network).module
        module = pruning.restore(network, load_file(self.folders[stage] / "model.safetensors"))
        return FloatModel(module=module.eval(), preprocessing=self.preprocessing, labels=classes)
