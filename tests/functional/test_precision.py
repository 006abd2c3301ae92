"""The TF32 switch: set inside, as before outside, whichever of torch's two ways the caller had used."""

import subprocess
import sys

import pytest
import torch

from fastmeta.functional.precision import float32_products


def read():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("tf32", "inside"), [(True, ("high", True)), (False, ("highest", False))])
def test_set_inside_and_as_before_outside(tf32, inside):
    before = read()
    with float32_products(torch.device("cuda"), tf32=tf32):
        assert read() == inside
    assert read() == before


def test_nothing_changes_on_a_cpu():
    before = read()
    with float32_products(torch.device("cpu"), tf32=True):
        assert read() == before


NEW = """
import torch
from fastmeta.functional.precision import float32_products
matmul, conv, rnn = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
matmul.fp32_precision, conv.fp32_precision, rnn.fp32_precision = "tf32", "ieee", "tf32"
with float32_products(torch.device("cuda"), tf32=False):
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 is False
print(matmul.fp32_precision, conv.fp32_precision, rnn.fp32_precision)
"""


def test_the_newer_switches_are_kept():
    """In a process of its own: torch has no way back from the newer switches to the older."""
    done = subprocess.run([sys.executable, "-c", NEW], capture_output=True, text=True, check=False)
    assert done.stdout == "tf32 ieee tf32\n", done.stderr
