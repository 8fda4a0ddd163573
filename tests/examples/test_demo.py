"""The demo as a user starts it: real server, real client, the bundled meta-model."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_learns_unseen_glyphs_far_above_chance_and_draws_a_picture(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--output", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {line[:14].strip(): line for line in run.stdout.splitlines() if "-way" in line and "%" in line}
    assert {"5-way 5-shot", "20-way 1-shot"} == set(rows)
    for row in rows.values():
        assert int(row.split("%")[0].split()[-1]) >= 50
    assert (tmp_path / "demo.png").stat().st_size > 20_000
    assert (tmp_path / "task_20_way.onnx").is_file()
