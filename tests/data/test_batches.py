"""Batches: no row twice, every draw a function of its place, normalisation by the images' own figures."""

import numpy as np
import pytest
import torch

from fastmeta import reference
from fastmeta.data import EpochSampler, TrainBatches, Transform, load_batch
from fastmeta.data.image_stream import cropped

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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_order_is_that_of_the_host_on_cuda_and_nobody_waits_for_it():
    host, there = sampler(), EpochSampler(10, 3, seed=0, stream="a", device=torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [there(step) for step in range(9)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(rows.cpu(), host(step)) for step, rows in enumerate(drawn))


def test_a_small_set_is_one_batch():
    s = sampler(size=4, batch_size=64)
    assert (s.batch_size, s.batches) == (4, 1)
    assert sorted(s(5).tolist()) == [0, 1, 2, 3]


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 6, 7, 3), dtype=np.uint8))


def test_normalisation_is_that_of_the_images():
    transform = Transform.of(IMAGES)
    x = load_batch(IMAGES, torch.arange(20), transform)
    assert x.shape == (20, 3, 6, 7)
    pixels = IMAGES.numpy().astype(np.float64)
    expected = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_constant_images_stay_finite():
    images = torch.full((4, 3, 3, 1), 7, dtype=torch.uint8)
    assert load_batch(images, torch.arange(4), Transform.of(images)).isfinite().all()


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_augmentation_needs_a_seed(pad_mode, dtype):
    transform = Transform.of(IMAGES, padding=2, pad_mode=pad_mode, flip=True)
    index = torch.tensor([3, 3, 0, 19])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    normal = transform.center.to(wide), transform.scale.to(wide)
    augmented = {"padding": 2, "reflect": pad_mode == "reflect", "flip": True}

    got = load_batch(IMAGES, index, transform, seed=5, step=7, dtype=dtype)
    assert torch.equal(got, reference.load_images(IMAGES, index, *normal, seed=5, step=7, dtype=dtype, **augmented))
    plain = reference.load_images(IMAGES, index, *normal, dtype=dtype)
    assert torch.equal(load_batch(IMAGES, index, transform, dtype=dtype), plain)
    assert not torch.equal(got, plain)


def test_train_batches_are_those_of_their_rows_and_step():
    transform = Transform.of(IMAGES, padding=2, flip=True)
    batches = TrainBatches(IMAGES, transform, seed=5, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    rows = torch.tensor([4, 0, 9])
    x = batches((rows, torch.tensor(3)), batches.tensors)
    assert torch.equal(x, load_batch(IMAGES, rows, transform, seed=5, step=3, dtype=torch.bfloat16))
    assert x.is_contiguous()
    darker = batches((rows, torch.tensor(3)), (IMAGES // 2, *batches.tensors[1:]))
    assert torch.equal(darker, load_batch(IMAGES // 2, rows, transform, seed=5, step=3, dtype=torch.bfloat16))


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (3, False), (4, True)])
@pytest.mark.parametrize(("channels", "mode"), [(1, "reflect"), (3, "zero"), (4, "reflect")])
def test_pixels_that_are_cropped_on_the_host_are_those_of_the_kernel(channels, mode, padding, flip):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 5, 7, channels)).astype(np.uint8))
    transform = Transform(torch.zeros(channels), torch.ones(channels), padding, mode, flip)
    for rows in (list(range(40)), [3, 3, 39, 0], []):
        index = torch.tensor(rows, dtype=torch.int64)
        before = images[index].numpy()
        made = cropped(before, rows, transform, -5, 2**31 + 7)
        expected = load_batch(images, index, transform, seed=-5, step=2**31 + 7)
        assert torch.equal(torch.from_numpy(made).float(), expected.movedim(1, 3))
        assert np.array_equal(before, images[index].numpy())
