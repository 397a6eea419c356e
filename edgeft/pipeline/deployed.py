"""What stages read once the network takes raw pixels: the same data and networks, with the normalisation inside."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from edgeft import data
from edgeft.pipeline.inputs import RunInputs
from edgeft.preprocessing import ImagePreprocessing, Preprocessing
from edgeft.types import FloatModel, Splits


class DeployedInputs(RunInputs):
    """The objects of a run as its exported files see them, under ``export.preprocess = "embedded"``."""

    def __init__(self, run: RunInputs) -> None:
        super().__init__(run.recipe, run.base, run.folders, device=run.device, progress=run.progress)
        self._run = run

    @cached_property
    def deployed(self) -> RunInputs:
        """Themselves."""
        return self

    @cached_property
    def splits(self) -> Splits:
        """The data set as pixels in 0..255."""
        return data.embed_normalization(self._run.splits)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """That of the device, which resizes and crops and leaves pixels as they are."""
        picture = self._run.preprocessing
        return (
            dataclasses.replace(picture, embedded=True)
            if isinstance(picture, ImagePreprocessing)
            else picture
        )

    @cached_property
    def finetuned(self) -> FloatModel:
        """The float network behind the normalisation."""
        from edgeft import quantization

        return quantization.embed_normalization(self._run.finetuned)

    @cached_property
    def pruned(self) -> FloatModel:
        """The network that is quantized, behind the normalisation."""
        from edgeft import quantization

        return quantization.embed_normalization(self._run.pruned)
