"""A real server process.

Server            started when entered, stopped when left
file_for          a meta-model file for a server
latencies         milliseconds of each call of one caller
memory_bytes      resident memory of a process and of its children
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from measuring.subjects import BUNDLED, ROOT
from metanas.artifact import load_meta, save_meta
from metanas.model import MetaModel
from metanas_client import FewShotClient, Task

ADAPT_TIMEOUT_SECONDS = 1800.0
READY_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 60.0


class Server:
    """A server as a user starts it, and a client of it.

    Args:
        arguments: of ``serving/server.py``, beside the port.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.ready_seconds = 0.0
        """From the start of the process until it serves."""

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "serving" / "server.py"), "--port", "0", *self._arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self._wait_until_ready(started)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._end()

    def _wait_until_ready(self, started: float) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.ready_seconds = time.perf_counter() - started
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the server {' '.join(self._arguments)} does not start: {' '.join(said)}")
        self.address = line.split()[-1]
        self.client = FewShotClient(self.address, timeout_seconds=ADAPT_TIMEOUT_SECONDS)
        self.client.wait_until_ready(timeout_seconds=READY_TIMEOUT_SECONDS)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def process_id(self) -> int:
        """Of the server itself; its adaptation processes are children."""
        return self._process.pid


def file_for(folder: Path, meta: MetaModel, *, steps: int) -> Path:
    """Write a meta-model whose tasks take ``steps`` + ``steps`` gradient steps: soon there, of the usual shape."""
    path = folder / f"{meta.space.image_size}px_{steps}_steps.pt"
    schedule = replace(meta.schedule, architecture_steps=steps, weight_steps=steps)
    save_meta(path, replace(meta, schedule=schedule))
    return path


def bundled_arguments(folder: Path, *, steps: int | None) -> tuple[str, ...]:
    """Of a server with the bundled meta-model: as it is, or with tasks of so many steps of each kind."""
    return () if steps is None else ("--meta", str(file_for(folder, load_meta(BUNDLED), steps=steps)))


def latencies(task: Task, images: Sequence[Any], *, calls: int) -> list[float]:
    """Milliseconds of ``calls`` Classify calls of one image, end to end, one after the other."""
    milliseconds = []
    for number in range(calls):
        image = images[number % len(images)]
        started = time.perf_counter()
        task.classify([image])
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p99, the largest, and of how many."""
    return {
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "max_ms": float(max(milliseconds)),
        "calls": len(milliseconds),
    }


def memory_bytes(process_id: int, *, children: bool = False) -> int:
    """Resident memory (VmRSS) of a process, and of all its descendants where asked."""
    status = Path(f"/proc/{process_id}/status").read_text()
    resident = next((line for line in status.splitlines() if line.startswith("VmRSS:")), "VmRSS: 0 kB")
    total = 1024 * int(resident.split()[1])
    if children:
        for listed in Path(f"/proc/{process_id}/task").glob("*/children"):
            total += sum(memory_bytes(int(child), children=True) for child in listed.read_text().split())
    return total
