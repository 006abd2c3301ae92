"""Counter-based bits: the known answers of Random123, and independence of how they are asked for."""

import numpy as np
import pytest
import torch

from fastmeta.rng import below_range, host_bits, philox4x32, random_bits


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, answer):
    key0, key1 = words(key)
    assert philox4x32(tuple(torch.tensor(words(counter))), (key0, key1)).tolist() == words(answer)


def test_words_go_where_the_header_puts_them():
    seed, step, row, block = 0x299F31D0A4093822, 0x85A308D3, 0x0370734413198A2E, 0x243F6A88
    expected = words("d16cfe09 94fdcceb 5001e420 24126ea1")
    assert random_bits(seed, step, torch.tensor(row), block).tolist() == expected
    assert random_bits(seed, step + (5 << 32), torch.tensor(row), block).tolist() == expected
    assert (
        random_bits(seed - (1 << 64), torch.tensor(step), torch.tensor(row), torch.tensor(block)).tolist() == expected
    )


def test_a_draw_depends_on_nothing_but_its_place():
    rows, blocks = torch.arange(5), torch.arange(3)
    together = random_bits(9, 4, rows[:, None], blocks)
    assert together.shape == (5, 3, 4)
    for i in range(5):
        for b in range(3):
            assert torch.equal(together[i, b], random_bits(9, 4, torch.tensor(i), b))
    assert len({tuple(draw) for draw in together.reshape(-1, 4).tolist()}) == 15


@pytest.mark.parametrize("step", [0, 7, 2**31 + 5, 2**32 + 1])
def test_words_of_numpy_are_those_of_torch(step):
    rows = np.array([0, 1, 77, 2**31, 2**32 + 3, 2**40], np.int64)
    words = np.stack(host_bits(-3 << 40, step, rows), -1)
    assert words.tolist() == random_bits(-3 << 40, step, torch.from_numpy(rows)).tolist()


def test_below_range_reaches_both_ends():
    word = torch.tensor([0, 0x55555555, 0x55555556, 0xFFFFFFFF])
    assert below_range(word, 3).tolist() == [0, 0, 1, 2]
    assert below_range(word, 1).tolist() == [0, 0, 0, 0]
