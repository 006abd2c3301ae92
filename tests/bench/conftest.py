"""Benchmarks set torch's threads: each test leaves them as they were."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
