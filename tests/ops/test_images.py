"""load_images: the bits of its plain-torch twin, crops and flips as numpy makes them, draws by place alone, errors."""

import numpy as np
import pytest
import torch

from fastmeta import reference
from fastmeta.ops import load_images

NORMAL = {"center": [120.0, 110.0, 100.0, 90.0], "scale": [0.016, 0.017, 0.018, 0.019]}
AUGMENTATIONS = {
    "none": {},
    "zero": {"padding": 2},
    "reflect": {"padding": 2, "reflect": True},
    "flip": {"flip": True},
    "all": {"padding": 2, "reflect": True, "flip": True},
}


def arguments(height, width, channels, n=9, dtype=torch.float32, device="cpu"):
    """images (13, ...), an index with repeats, center and scale"""
    images = torch.randint(0, 256, (13, height, width, channels), dtype=torch.uint8)
    index = torch.randint(0, 13, (n,))
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    normal = (torch.tensor(NORMAL[k][:channels], dtype=acc) for k in ("center", "scale"))
    return [t.to(device) for t in (images, index, *normal)]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(6, 4, 1), (5, 7, 3), (3, 11, 4), (32, 32, 3), (4, 9, 2)], ids=str)
def test_bits_are_those_of_the_twin(shape, augmentation, dtype, device):
    args = arguments(*shape, dtype=dtype, device=device)
    for step in (0, torch.tensor(5, device=device)):
        options = {**augmentation, "seed": -9, "step": step, "dtype": dtype}
        got, expected = load_images(*args, **options), reference.load_images(*args, **options)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_threads_share_the_batch():
    args = arguments(32, 32, 3, n=200)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(load_images(*args, padding=4, flip=True, seed=1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("reflect", [False, True], ids=["zero", "reflect"])
def test_every_crop_is_one_of_the_padded_image(reflect, device):
    images, _, center, scale = arguments(8, 9, 3, device=device)
    index = torch.arange(13, device=device).repeat(2)
    pad = 3
    padded = np.pad(
        images.cpu().numpy(), ((0, 0), (pad, pad), (pad, pad), (0, 0)), "reflect" if reflect else "constant"
    )
    seen = set()
    for step in range(40):
        batch = load_images(images, index, center, scale, padding=pad, reflect=reflect, flip=True, seed=2, step=step)
        pixels = (batch / scale[:, None, None] + center[:, None, None]).permute(0, 2, 3, 1).round().cpu().numpy()
        for crop, i in zip(pixels, index.tolist(), strict=True):
            fits = [
                (dy, dx, mirror)
                for dy in range(2 * pad + 1)
                for dx in range(2 * pad + 1)
                for mirror in (1, -1)
                if np.array_equal(padded[i, dy : dy + 8, dx : dx + 9][:, ::mirror], crop)
            ]
            assert len(fits) == 1
            seen.update(fits)
    assert len(seen) == 7 * 7 * 2


def shift_of(batch: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the one lit pixel in the middle of an image of zeros went."""
    return batch[:, 0].flatten(1).argmax(1).div(side, rounding_mode="floor"), batch[:, 0].flatten(1).argmax(1) % side


def test_shifts_are_uniform_and_independent(device):
    """Chi-square over the 81 shifts of 40,500 images; 0.999 quantile for 80 degrees of freedom: 124.8."""
    side, pad, n = 17, 4, 40_500
    images = torch.zeros(n, side, side, 1, dtype=torch.uint8, device=device)
    images[:, side // 2, side // 2] = 255
    index, (center, scale) = torch.arange(n, device=device), (torch.full((1,), x, device=device) for x in (0.0, 1.0))
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        batch = load_images(images, index, center, scale, padding=pad, seed=seed, step=step)
        y, x = shift_of(batch, side)
        counts = torch.bincount((y - y.min()) * (2 * pad + 1) + x - x.min(), minlength=(2 * pad + 1) ** 2)
        assert len(counts) == 81
        assert float((counts - n / 81).square().sum() / (n / 81)) < 124.8


def test_half_of_the_images_are_flipped(device):
    """Within 4 standard deviations, and not by the word that shifts."""
    n = 40_000
    images = torch.tensor([[[[0], [255], [0], [0], [0], [0], [0]]] * 3], dtype=torch.uint8, device=device)
    images = images.expand(n, -1, -1, -1).contiguous()
    index, (center, scale) = torch.arange(n, device=device), (torch.full((1,), x, device=device) for x in (0.0, 1.0))
    flipped = load_images(images, index, center, scale, flip=True, seed=3)[:, 0, 0, 5] == 255
    assert abs(int(flipped.sum()) - n / 2) < 4 * (n / 4) ** 0.5
    right = load_images(images, index, center, scale, padding=1, seed=3)[:, 0, 1].argmax(1) == 0
    both = int((flipped & right).sum())
    assert abs(both - n / 6) < 4 * (n * 5 / 36) ** 0.5


def test_a_draw_depends_on_seed_step_and_row_alone(device):
    images, _, center, scale = arguments(8, 8, 3, device=device)

    def load(rows, **draw):
        index = torch.tensor(rows, device=device)
        return load_images(images, index, center, scale, padding=3, flip=True, **{"seed": 1, "step": 2, **draw})

    alone = torch.cat([load([row]) for row in range(13)])
    order = [12, 3, 3, 0, 7]
    assert torch.equal(load(order), alone[order])
    assert torch.equal(load(order, step=torch.tensor(2, device=device)), alone[order])
    assert not torch.equal(load(order, step=3), alone[order])
    assert not torch.equal(load(order, seed=2), alone[order])
    twins = images[:1].expand(13, -1, -1, -1).contiguous()  # equal images in different rows are cropped differently
    crops = load_images(twins, torch.arange(13, device=device), center, scale, padding=3, flip=True, seed=1, step=2)
    assert len(crops.unique(dim=0)) > 6


def test_an_empty_batch(device):
    assert load_images(*arguments(4, 5, 3, n=0, device=device), padding=2, flip=True).shape == (0, 3, 4, 5)


def test_a_step_on_the_device_is_followed_without_a_new_graph(device):
    torch._dynamo.reset()
    args = arguments(6, 6, 3, device=device)
    load = torch.compile(lambda step: load_images(*args, padding=2, flip=True, step=step), backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            assert torch.equal(
                load(torch.tensor(step, device=device)), load_images(*args, padding=2, flip=True, step=step)
            )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_index_out_of_range_reads_nothing_on_cuda():
    images, index, center, scale = arguments(4, 5, 3, device="cuda")
    index[[1, 4]] = torch.tensor([13, -1], device="cuda")
    out = load_images(images, index, center, scale, padding=2)
    assert out[[1, 4]].isnan().all()
    assert out.isnan().flatten(1).any(1).sum() == 2


def change(**changes):
    def call():
        names = ("images", "index", "center", "scale")
        args = {**dict(zip(names, arguments(4, 5, 3), strict=True)), "padding": 1}
        args |= {k: v(args[k]) if callable(v) else v for k, v in changes.items()}
        return load_images(**args)

    return call


ERRORS = {
    "float images": (
        change(images=lambda x: x.float()),
        r"images must be uint8 \(N, height, width, channels\), got float32 of shape \(13, 4, 5, 3\)",
    ),
    "rank": (change(images=lambda x: x[0]), r"images must be uint8 .*, got .* of shape \(4, 5, 3\)"),
    "no pixels": (change(images=lambda x: x[:, :0]), r"images must have a pixel each, got shape \(13, 0, 5, 3\)"),
    "channels first": (
        change(images=lambda x: x.permute(0, 3, 1, 2)[..., :3]),
        r"images must be contiguous, got strides \(60, 1, 15, 3\); use images.contiguous\(\)",
    ),
    "index rank": (change(index=lambda x: x[:, None]), r"index must have shape \(n,\), got \(9, 1\)"),
    "index dtype": (change(index=lambda x: x.int()), r"index must be int64, got int32; use index.long\(\)"),
    "index": (change(index=torch.tensor([0, 13])), r"index\[1\] = 13 is out of range for 13 images"),
    "negative index": (change(index=torch.tensor([-1])), r"index\[0\] = -1 is out of range for 13 images"),
    "center": (
        change(center=lambda x: x[:1]),
        r"center must be float32 of shape \(3,\) for float32 images of 3 channels, got float32 of shape \(1,\)",
    ),
    "strided center": (
        change(center=lambda x: x.repeat_interleave(2)[::2]),
        "center must be contiguous, got stride 2",
    ),
    "scale": (
        change(scale=lambda x: x.double(), dtype=torch.bfloat16),
        r"scale must be float32 of shape \(3,\) for bfloat16 images of 3 channels, got float64 of shape \(3,\)",
    ),
    "padding": (change(padding=4), r"padding must lie in \[0, 3\] for images of 4 x 5 pixels, got 4"),
    "negative padding": (change(padding=-1), r"padding must lie in \[0, 3\] for images of 4 x 5 pixels, got -1"),
    "step dtype": (change(step=torch.tensor(1.0)), r"step must be a 0-dim int64 tensor, got shape \(\) of float32"),
    "step shape": (change(step=torch.tensor([1])), r"step must be a 0-dim int64 tensor, got shape \(1,\) of int64"),
    "dtype": (change(dtype=torch.int64), "dtype must be float64, float32, bfloat16 or float16, got int64"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_argument(case):
    call, match = ERRORS[case]
    with pytest.raises(RuntimeError, match=match) as error:
        call()
    assert ".h:" not in str(error.value), "a path of the build in the message"


@pytest.mark.parametrize("name", ["index", "center", "scale", "step"])
def test_device_mix(name):
    with pytest.raises(ValueError, match=f"^{name} is on meta but images on cpu; move one of them"):
        change(**{name: torch.empty((), dtype=torch.int64, device="meta")})()
