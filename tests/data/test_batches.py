"""Batches: no row twice, every draw a function of (seed, stream, counter), crops and flips as numpy makes them."""

import numpy as np
import pytest
import torch

from fastmeta.data import EpochSampler, Transform, load_batch
from fastmeta.data.seeds import torch_generator

CPU = torch.device("cpu")


def sampler(size=10, batch_size=3, seed=0, stream="a"):
    return EpochSampler(size, batch_size, seed=seed, stream=stream, device=CPU)


def test_a_pass_holds_no_row_twice_and_drops_its_rest():
    s = sampler()
    assert s.batches == 3
    for start in (0, 3, 6):
        rows = torch.cat([s(step) for step in range(start, start + 3)])
        assert len(set(rows.tolist())) == 9
    assert {int(i) for step in range(60) for i in s(step)} == set(range(10))


def test_order_depends_on_seed_stream_and_pass_alone():
    forth, back = sampler(), sampler()
    steps = list(range(12))
    expected = {step: forth(step) for step in steps}
    assert all(torch.equal(back(step), expected[step]) for step in reversed(steps))
    assert not torch.equal(torch.cat([expected[i] for i in (0, 1, 2)]), torch.cat([expected[i] for i in (3, 4, 5)]))
    assert not torch.equal(sampler(100, 100, seed=1)(0), sampler(100, 100)(0))
    assert not torch.equal(sampler(100, 100, stream="b")(0), sampler(100, 100)(0))


def test_a_small_set_is_one_batch():
    s = sampler(size=4, batch_size=64)
    assert (s.batch_size, s.batches) == (4, 1)
    assert sorted(s(5).tolist()) == [0, 1, 2, 3]


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 6, 7, 3), dtype=np.uint8))


def plain(transform, x):
    """x / 255, standardised, channels first, in numpy."""
    mean, std = transform.mean.numpy(), transform.std.numpy()
    return ((x / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)


def test_normalisation_is_that_of_the_images():
    transform = Transform.of(IMAGES)
    x = load_batch(IMAGES, torch.arange(20), transform)
    assert x.shape == (20, 3, 6, 7)
    assert x.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(x.numpy(), plain(transform, IMAGES.numpy()), rtol=0, atol=1e-6)
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_constant_images_stay_finite():
    images = torch.full((4, 3, 3, 1), 7, dtype=torch.uint8)
    assert load_batch(images, torch.arange(4), Transform.of(images)).isfinite().all()


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_and_flips_are_some_crop_and_flip_of_the_padded_image(pad_mode, flip):
    pad = 2
    transform = Transform.of(IMAGES, padding=pad, pad_mode=pad_mode, flip=flip)
    index = torch.arange(20).repeat(30)
    batch = load_batch(IMAGES, index, transform, torch_generator(CPU, 0, "crop")).numpy()
    modes = {"zero": {"mode": "constant"}, "reflect": {"mode": "reflect"}}
    padded = np.pad(IMAGES.numpy(), ((0, 0), (pad, pad), (pad, pad), (0, 0)), **modes[pad_mode])
    seen = set()
    for x, i in zip(batch, index.tolist(), strict=True):
        choices = {}
        for dy in range(2 * pad + 1):
            for dx in range(2 * pad + 1):
                crop = padded[i, dy : dy + 6, dx : dx + 7]
                choices[dy, dx, False] = crop
                if flip:
                    choices[dy, dx, True] = crop[:, ::-1]
        found = [k for k, crop in choices.items() if np.abs(plain(transform, crop[None])[0] - x).max() < 1e-5]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 25 * (2 if flip else 1)  # 600 draws reach all offsets


def test_augmentation_follows_its_generator_and_needs_one():
    transform = Transform.of(IMAGES, padding=2, flip=True)
    index = torch.arange(20)

    def batch(counter):
        return load_batch(IMAGES, index, transform, torch_generator(CPU, 3, "crop", counter))

    assert torch.equal(batch(5), batch(5))
    assert not torch.equal(batch(5), batch(6))
    assert torch.equal(load_batch(IMAGES, index, transform), load_batch(IMAGES, index, Transform.of(IMAGES)))
