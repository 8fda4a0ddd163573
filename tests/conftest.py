"""What holds for every test."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The bits of a result depend on the number of threads."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
