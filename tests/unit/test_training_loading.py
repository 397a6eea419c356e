"""Batches: normalisation, seeded order and augmentation per (seed, epoch, index)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeft import data, recipe, training
from edgeft.preprocessing import Preprocessing

GREY = Preprocessing(size=28, resize=32, channels=1, mean=(0.5,), std=(0.25,))


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
