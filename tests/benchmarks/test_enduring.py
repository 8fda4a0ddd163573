"""What the harnesses of long and killed servers rest on, and each of them once, short, against a real server."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from enduring import report
from enduring.acknowledged import Acknowledged
from enduring.patterns import drawn_support
from enduring.process import Memory, files_in, wait_until_gone

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_patterns_of_one_task_differ_in_many_squares_and_are_the_same_in_every_process():
    support = drawn_support("me", classes=3, seed=7)
    again = drawn_support("me", classes=3, seed=7)
    pictures = [images[0] for images in support.values()]
    assert list(support) == ["me/7/0", "me/7/1", "me/7/2"]
    assert all(np.array_equal(images[0], again[name][0]) for name, images in support.items())
    assert pictures[0].shape == (28, 28)
    shares = [np.mean(one != other) for number, one in enumerate(pictures) for other in pictures[:number]]
    assert min(shares) > 0.2


def test_only_what_was_done_is_acknowledged():
    known = Acknowledged()
    for event in (
        {"event": "doing", "call": "adapt", "seed": 1},
        {"event": "done", "call": "adapt", "task_id": "kept", "owner": "k1", "seed": 1},
        {"event": "done", "call": "adapt", "task_id": "going", "owner": "k1", "seed": 2},
        {"event": "done", "call": "adapt", "task_id": "gone", "owner": "k1", "seed": 3},
        {"event": "doing", "call": "delete", "task_id": "going"},
        {"event": "doing", "call": "delete", "task_id": "gone"},
        {"event": "done", "call": "delete", "task_id": "gone"},
        {"event": "failed", "code": "UNAVAILABLE", "text": ""},
    ):
        known.hear(event)
    assert [known.knows(task_id) for task_id in ("kept", "going", "gone", "other")] == [True, True, False, False]
    assert (known.learnt, known.deleted, known.failed) == (3, 1, 1)


def test_memory_and_files_are_read_from_outside(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".hidden").write_bytes(b"123")
    assert files_in(tmp_path) == {"a/.hidden": 3}
    with subprocess.Popen(["sleep", "60"]) as process:
        memory = Memory.of(process.pid)
        assert memory.resident >= memory.anonymous > 0
        assert wait_until_gone([process.pid], seconds=0.1) == [process.pid]
        process.kill()
        assert wait_until_gone([process.pid], seconds=10) == []


def test_what_does_not_hold_stands_out_in_the_table():
    assert report.verdicts({"one": True, "two": False})[2:] == ["| one | yes |", "| two | **no** |"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("endurance", ["--cycles", "20", "--workers", "1"]),
        ("load", ["--minutes", "0.2", "--clients", "8"]),
        ("kills", ["--kills", "3"]),
    ],
)
def test_each_harness_passes_when_it_is_short(tmp_path: Path, script: str, arguments: list[str]):
    command = [sys.executable, BENCHMARKS / f"{script}.py", *arguments, "--output", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = json.loads((tmp_path / f"{script}.json").read_text())["verdicts"]
    assert verdicts
    assert all(verdicts.values())
