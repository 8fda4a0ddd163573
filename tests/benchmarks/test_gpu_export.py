"""Without a GPU, the report of what needs one says what is missing and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_export.sh"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_call_fails_plainly_where_there_is_no_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SCRIPT), "--output", str(tmp_path / "results")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    first, *missing = done.stderr.splitlines()
    assert first == "this machine lacks, so nothing was run:"
    assert any("missing: an NVIDIA GPU that its driver shows" in line for line in missing)
    assert any("missing: a CUDA build of torch" in line for line in missing)
    assert not (tmp_path / "results").exists()


def test_without_an_interpreter_it_says_how_to_get_one() -> None:
    done = subprocess.run(
        [str(SCRIPT)], env={**os.environ, "PYTHON": "/nowhere/python"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("missing: /nowhere/python; run make test once")
