"""Feature extraction: run the backbone once over the data, then train the head alone on what it gave."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from edgeft import extras, recipe
from edgeft.errors import DataError, ModelError, WorkspaceError
from edgeft.training import placement
from edgeft.training.batches import Batches
from edgeft.training.checks import check
from edgeft.training.fitting import fit
from edgeft.training.loading import BatchDataset, without_augmentation
from edgeft.training.penultimate import HeadInput
from edgeft.training.sampling import Draw, EpochBatches
from edgeft.types import EpochRecord, IntArray, Progress, silent

_BATCH = 32  # of the backbone's passes


def fit_head(
    module: nn.Module,
    train: Batches,
    val: Batches,
    config: recipe.Finetune,
    *,
    head: str,
    seed: int,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[tuple[EpochRecord, ...], float]:
    """Train the layer `head` of `module` IN PLACE on features that the rest computes once, in evaluation mode.

    Batches of edgeft's own loaders are taken without augmentation, those of others as they come. The network's
    dropout before the head is left out; `config.dropout` puts one there.

    Args:
        module: Maps inputs (N, ...) to logits (N, K), and nothing but a flattening comes after its head.
        train: As in `fit`.
        val: As in `fit`.
        config: As in `fit`; the head learns at `learning_rate` times `head_lr_multiplier`.
        head: Dotted name of the head.
        seed: As in `fit`.
        checkpoint: As in `fit`; the features are kept in the same folder, as ``features-train.safetensors`` and
            ``features-val.safetensors``, and are used again for the same backbone and data.
        device: As in `fit`.
        progress: Told first about the features, then as in `fit`.

    Returns:
        One record per epoch, and the seconds that computing the features took.

    Raises:
        ModelError: There is no such head, or more than a flattening comes after it.
        DataError: `train` or `val` has no batch, or the loss is not finite.
        ConfigError: As in `fit`.
        MissingDependencyError: As in `fit`.
        WorkspaceError: As in `fit`.
    """
    check(config)
    sources = {"train": without_augmentation(train, batch_size=_BATCH), "val": val}
    found: dict[str, FeatureSet] = {}
    seconds = 0.0
    for split, batches in sources.items():
        path = checkpoint.parent / f"features-{split}.safetensors" if checkpoint else None
        found[split], taken = _cached(module, head, batches, path, device, split, progress)
        seconds += taken
    records = fit(
        _HeadAlone(module.get_submodule(head)),
        found["train"].loader(config.batch_size, seed, shuffle=True, imbalance=config.imbalance),
        found["val"].loader(config.batch_size, seed),
        config,
        seed=seed,
        checkpoint=checkpoint,
        head="head",
        device=device,
        progress=progress,
    )
    return records, seconds


class FeatureSet(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Features (N, ...) float32 and labels (N,) of one split, addressed by the draws of a batch."""

    def __init__(self, features: torch.Tensor, labels: IntArray) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
        indices = [index for _, index, _ in draws]
        return self.features[indices], torch.from_numpy(self.labels[indices])

    def loader(
        self, batch_size: int, seed: int, *, shuffle: bool = False, imbalance: str = "none"
    ) -> DataLoader[Any]:
        """Return batches in order, or as for training."""
        order = EpochBatches(
            self.labels,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            balanced=imbalance == "weighted-sampling",
        )
        return DataLoader(self, sampler=order, batch_size=None)


class _HeadAlone(nn.Module):
    """Maps features (N, ...) to logits (N, K) by a network's own head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.dropout, self.head = nn.Dropout(0.0), head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(features))
        return logits.flatten(1)


def _cached(
    module: nn.Module,
    head: str,
    batches: Batches,
    path: Path | None,
    device: str,
    split: str,
    progress: Progress,
) -> tuple[FeatureSet, float]:
    """Return the features of a split and what computing them took, from `path` if they are there."""
    key = _content_key(module, head, batches) if path else ""
    kept = _read(path, key) if path else None
    if kept is not None:
        return kept
    started = time.perf_counter()
    features = _compute(module, head, batches, device, split, progress)
    seconds = time.perf_counter() - started
    if path and placement.world().rank == 0:
        _write(path, key, features, seconds)
    return features, seconds


def _compute(
    module: nn.Module, head: str, batches: Batches, device: str, split: str, progress: Progress
) -> FeatureSet:
    place = placement.find_device(device, placement.world())
    watch = HeadInput(module, head)
    modes = {layer: layer.training for layer in module.modules()}
    alone = _HeadAlone(module.get_submodule(head)).eval()
    found: list[torch.Tensor] = []
    labels: list[IntArray] = []
    try:
        module.to(place).eval()
        memory_format = None
        with torch.inference_mode():
            for done, (x, y) in enumerate(batches):
                if memory_format is None:
                    memory_format = placement.choose_memory_format([module], x[:1].to(place))
                x = x.to(place, memory_format=memory_format) if x.ndim == 4 else x.to(place)
                logits = module(x)
                features = watch.take()
                again = alone(features)
                if again.shape != logits.shape or not torch.allclose(again, logits, rtol=1e-3, atol=1e-4):
                    raise ModelError(
                        f'finetune.method = "feature-extraction": something comes after the layer {head!r}',
                        'use method = "fine-tune"',
                    )
                found.append(features.cpu().contiguous())
                labels.append(np.asarray(y, dtype=np.int64))
                progress(f"features of {split}", done=done + 1, total=len(batches))
    finally:
        watch.close()
        module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for layer, training in modes.items():
            layer.training = training
    if not found:
        raise DataError(f"training: {split} has no batch", "give every split at least one sample")
    return FeatureSet(torch.cat(found).clone(), np.concatenate(labels))


def _content_key(module: nn.Module, head: str, batches: Batches) -> str:
    """Hash what the features depend on: the backbone's tensors and the inputs.

    Samples of ours are known by their content ids; of their inputs the first batch stands for how all are
    preprocessed. Inputs of other loaders are hashed completely.
    """
    digest = hashlib.sha256(f"{type(module).__qualname__} {head}".encode())
    for name, tensor in module.state_dict().items():
        if not name.startswith(f"{head}."):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    dataset = getattr(batches, "dataset", None)
    inputs: Iterable[Any] = batches
    if isinstance(dataset, BatchDataset):
        digest.update("".join(dataset.samples.ids).encode() + dataset.labels.tobytes())
        inputs = [next(iter(batches))]
    for x, y in inputs:
        digest.update(np.ascontiguousarray(x).tobytes() + np.asarray(y).tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> tuple[FeatureSet, float] | None:
    """Return what `_write` left, or None if there is nothing, or it is of another backbone or other data."""
    safetensors = extras.load("safetensors", "feature extraction")
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("key") != key:
                return None
            features, labels = file.get_tensor("features"), file.get_tensor("labels")
    except (OSError, safetensors.SafetensorError) as error:
        raise WorkspaceError(
            f"{path}: the cached features cannot be read ({error})", f"delete {path}"
        ) from error
    return FeatureSet(features, labels.numpy()), float(about["seconds"])


def _write(path: Path, key: str, found: FeatureSet, seconds: float) -> None:
    save_file = extras.load("safetensors.torch", "feature extraction").save_file
    partial = path.with_name(path.name + ".partial")
    tensors = {"features": found.features, "labels": torch.from_numpy(found.labels)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"key": key, "seconds": repr(seconds)})
        partial.replace(path)
    except OSError as error:
        raise WorkspaceError(
            f"{path}: the features cannot be written ({error})", "free space, or choose another folder"
        ) from error
