"""What stages read: data, networks, programs. Each is loaded from a finished stage when it is first needed.

A stage that has just run puts its own result here (the properties are cached and can be set), so that nothing
is read back within one run; a resumed run reads the same bytes from the stage's folder.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeft import data, records, target
from edgeft.pipeline.walk import RESULTS, Walk, read_json
from edgeft.preprocessing import Preprocessing
from edgeft.recipe import Finetune, Recipe, Training
from edgeft.types import ExportedArtifact, FloatArray, FloatModel, QuantModel, Splits

if TYPE_CHECKING:
    from edgeft.models import BuiltModel
    from edgeft.training import Batches

_EVALUATION_BATCH = 32


class RunInputs:
    """The objects of one run, by name.

    Args:
        recipe: The recipe.
        base: Folder that its paths are relative to.
        walk: Knows the folders of the finished stages.
    """

    def __init__(self, recipe: Recipe, base: Path, walk: Walk) -> None:
        self.recipe = recipe
        self.base = base
        self.walk = walk

    @cached_property
    def profiles(self) -> list[target.TargetProfile]:
        """The recipe's targets."""
        return [target.load(name, self.base) for name in self.recipe.targets]

    @cached_property
    def finetune(self) -> Finetune:
        """The fine-tune section; an absent one takes the network as it is."""
        return self.recipe.finetune or Finetune(method="none")

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The one preprocessing of training, calibration, evaluation and device."""
        from edgeft import models

        return models.default_preprocessing(self.recipe.model)

    @cached_property
    def splits(self) -> Splits:
        """The data set, split as the data stage has stored it."""
        return data.from_manifest(
            read_json(self.walk.folders["data"] / "manifest.json"),
            self.recipe.task,
            self.preprocessing,
            base=self.base,
            progress=self.walk.tell,
        )

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Classes, counts, skipped files and fingerprint, without decoding a sample."""
        facts: dict[str, Any] = read_json(self.walk.folders["data"] / RESULTS)
        return facts

    @cached_property
    def test_inputs(self) -> FloatArray:
        """The test split as model inputs, (N, C, H, W) float32."""
        test = self.splits.test
        return self.preprocessing.normalize(np.stack([test.pixels(i) for i in range(len(test))]))

    @cached_property
    def finetuned(self) -> FloatModel:
        """The float network that everything is compared with."""
        return self._load_float("finetune")

    @cached_property
    def pruned(self) -> FloatModel:
        """The network that is quantized: pruned and recovered, or the fine-tuned one."""
        return self._load_float("prune") if "prune" in self.walk.folders else self.finetuned

    @cached_property
    def program(self) -> QuantModel:
        """The program that is exported: Q/DQ, or float where the recipe does not quantize."""
        from edgeft import quantization

        if "quantize" in self.walk.folders:
            return quantization.load(self.walk.folders["quantize"], self.pruned)
        return quantization.float_program(self.pruned)

    @cached_property
    def float_program(self) -> QuantModel:
        """The program of the float baselines."""
        from edgeft import quantization

        return quantization.float_program(self.finetuned)

    @cached_property
    def reference(self) -> FloatArray:
        """Logits (N, K) of the program over the test split."""
        from edgeft import stages

        return stages.predict_program(self.program.program, self.test_inputs)

    @cached_property
    def lsb(self) -> float:
        """One step of the logits: the program's output scale, or what an int8 output's would be."""
        if self.program.output is not None:
            return self.program.output.scale
        return max(float(self.reference.max() - self.reference.min()) / 255, 1e-12)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the pretrained weights' bytes; empty if none are read."""
        from edgeft.models import sources

        if self.finetune.method == "retrain":
            return ""
        given = self.recipe.model.weights
        path = self.base / given if given else sources.shipped_weights(self.recipe.model.source)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""

    def build(self) -> BuiltModel:
        """Return the recipe's network with its pretrained weights and a head for the data's classes."""
        from edgeft import models

        return models.build(
            self.recipe.model,
            len(self.data_facts["classes"]),
            base=self.base,
            seed=self.recipe.seed,
            fresh=self.finetune.method == "retrain",
            keep_head=self.finetune.method == "none",
        )

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
        )

    def plain_batches(self, samples: Any) -> Batches:
        """Return samples in order and as the device sees them."""
        from edgeft import training

        return training.loader(
            samples, self.preprocessing, batch_size=_EVALUATION_BATCH, seed=self.recipe.seed
        )

    def artifact(self, profile: target.TargetProfile, which: str) -> ExportedArtifact:
        """Return the record of a target's exported file: ``artifact`` or ``baseline``."""
        folder = self.walk.folders[f"export-{profile.id}"]
        return records.decode(ExportedArtifact, read_json(folder / f"{which}.json"), folder)

    def _load_float(self, stage: str) -> FloatModel:
        from safetensors.torch import load_file

        from edgeft import models, pruning

        classes = tuple(self.data_facts["classes"])
        built = models.build(
            self.recipe.model, len(classes), base=self.base, seed=self.recipe.seed, fresh=True
        )
        module = pruning.restore(built.module, load_file(self.walk.folders[stage] / "model.safetensors"))
        return FloatModel(module=module.eval(), preprocessing=self.preprocessing, labels=classes)
