"""Batches: normalisation, seeded order and augmentation per (seed, epoch, index)."""

from __future__ import annotations

import dataclasses
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeft import data, recipe, training
from edgeft.preprocessing import ImagePreprocessing
from edgeft.training.placement import World
from edgeft.training.sampling import EpochBatches

GREY = ImagePreprocessing(size=28, resize=32, channels=1, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def samples():
    everything = data.load(recipe.Task(data="builtin:digits"), GREY, base=Path(), seed=0).train
    return data.subset(everything, range(25))


def epoch(samples, number: int = 0, **options) -> tuple[torch.Tensor, torch.Tensor]:
    loader = training.loader(samples, GREY, batch_size=8, **options)
    loader.sampler.set_epoch(number)
    xs, ys = zip(*loader, strict=True)
    return torch.cat(xs), torch.cat(ys)


def test_evaluation_batches_are_the_preprocessed_samples_in_order(samples) -> None:
    x, y = epoch(samples)
    expected = GREY.normalize(np.stack([samples.pixels(i) for i in range(25)]))
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert np.array_equal(x.numpy(), expected) and np.array_equal(y.numpy(), samples.labels)


def test_order_and_augmentation_follow_seed_and_epoch_alone(samples) -> None:
    options = {"seed": 4, "shuffle": True, "augment": "crop-flip"}
    x, y = epoch(samples, 3, **options)
    again_x, again_y = epoch(samples, 3, **options)
    assert torch.equal(x, again_x) and torch.equal(y, again_y)
    assert not torch.equal(x, epoch(samples, 2, **options)[0])
    assert not torch.equal(x, epoch(samples, 3, **{**options, "seed": 5})[0])


def test_a_lone_last_sample_is_left_out_of_training_only(samples) -> None:
    assert len(epoch(samples)[0]) == 25
    assert len(epoch(samples, shuffle=True)[0]) == 24
    assert len(epoch(data.subset(samples, range(23)), shuffle=True)[0]) == 23


def test_flipping_mirrors_about_half_of_the_samples(samples) -> None:
    cropped, _ = epoch(samples, augment="crop")
    flipped, _ = epoch(samples, augment="crop-flip")
    mirrored = sum(torch.equal(a, b.flip(2)) for a, b in zip(cropped, flipped, strict=True))
    same = sum(torch.equal(a, b) for a, b in zip(cropped, flipped, strict=True))
    assert mirrored + same == 25 and 5 <= mirrored <= 20


@pytest.mark.parametrize("shape", [(32, 32, 1), (32, 200, 1), (90, 32, 1)])
def test_crops_lie_inside_the_picture_and_fill_the_input(shape: tuple[int, ...]) -> None:
    from edgeft.training.loading import _random_resized_crop

    pixels = np.full(shape, 77, np.uint8)
    for seed in range(50):
        crop = _random_resized_crop(pixels, GREY, np.random.default_rng(seed))
        assert crop.shape == (28, 28, 1) and (crop == 77).all()


def test_trivial_augmentation_repeats_itself_and_leaves_torchs_generator_alone(samples) -> None:
    options = {"seed": 4, "shuffle": True, "augment": "trivial"}
    torch.manual_seed(1)
    x, _ = epoch(samples, 3, **options)
    after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(x, epoch(samples, 3, **options)[0])
    torch.manual_seed(1)
    plain = epoch(samples, 3, **{**options, "augment": "crop-flip"})[0]
    assert torch.equal(torch.rand(2), after)
    changed = sum(not torch.equal(a, b) for a, b in zip(x, plain, strict=True))
    assert 12 <= changed <= 24, "identity is one of the fourteen changes"


def test_weighted_sampling_evens_the_classes_out_and_changes_with_the_epoch(samples) -> None:
    rare = [i for i in range(25) if samples.labels[i] == samples.labels[0]][:1]
    common = [i for i in range(25) if samples.labels[i] != samples.labels[0]]
    common = [i for i in common if samples.labels[i] == samples.labels[common[0]]][:4]
    uneven = data.subset(samples, rare + common * 10)
    options = {"seed": 2, "shuffle": True, "augment": "crop", "imbalance": "weighted-sampling"}
    x, y = epoch(uneven, 1, **options)
    assert len(y) == 40 or len(y) == 41
    share = float((y == samples.labels[0]).float().mean())
    assert 0.25 < share < 0.75
    again, y_again = epoch(uneven, 1, **options)
    assert torch.equal(x, again) and torch.equal(y, y_again)
    assert not torch.equal(y, epoch(uneven, 2, **options)[1])
    repeats = x[y == samples.labels[0]]
    assert len({bytes(picture.numpy().tobytes()) for picture in repeats}) == len(repeats), "each drawn anew"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Seven texts of three tokens."""

    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(7) % 2)
    ids: tuple[str, ...] = tuple("abcdefg")

    def __len__(self) -> int:
        return 7

    def inputs(self, indices) -> np.ndarray:
        return np.stack([np.full(3, index, np.int32) for index in indices])


def test_texts_and_rows_come_as_their_samples_make_them() -> None:
    preprocessing = object()  # of any other kind than pictures
    loader = training.loader(Tokens(), preprocessing, batch_size=3, shuffle=True, augment="crop-flip", seed=3)
    (x, y), *_ = loader
    assert x.dtype == torch.int32 and x.shape == (3, 3) and torch.equal(x[:, 0] % 2, y.int())
    assert len(loader) == 2, "a lone last sample is left out"
    assert sorted(
        torch.cat([x[:, 0] for x, _ in training.loader(Tokens(), preprocessing, batch_size=3)])
    ) == list(range(7))


@pytest.mark.parametrize(
    ("count", "shuffle", "left_out"), [(20, True, 0), (19, True, 3), (17, True, 0), (17, False, 0)]
)
def test_processes_share_every_batch(count: int, shuffle: bool, left_out: int) -> None:
    order = EpochBatches(np.zeros(count, np.int64), batch_size=8, seed=1, shuffle=shuffle)
    whole = [[index for _, index, _ in batch] for batch in order]
    parts = []
    for rank in range(2):
        order.set_shard(World(rank, 2, rank, 2))
        parts.append([[index for _, index, _ in batch] for batch in order])
        assert len(parts[-1]) == len(order)
    if shuffle:
        assert len(parts[0]) == len(parts[1]), "gradients are averaged batch by batch"
        assert all(len(batch) >= 2 for part in parts for batch in part), "batch norm needs two"
    together = [a + b for a, b in zip_longest(*parts, fillvalue=[])]
    assert together == whole[: len(together)]
    assert sum(map(len, whole)) - sum(map(len, together)) == left_out
