"""Thousands of cycles of adapt, classify, delete: what memory and disk are left with.

    python benchmarks/endurance.py --cycles 10000

One real server with a store, and a small meta-model made here (``enduring.subjects``): one gradient
step of each kind, two classes of one image. Some clients (``--clients``) go round at a time, and every
answer is compared with the first of all, to the bit. Memory of the server and of its adaptation
processes is read from outside. Passes, with exit code 0, if

    all cycles were made
    at the end each process has within 5 % of the memory that it had after the first tenth (of 10,000: 1,000)
    the store holds the files that it held before the first cycle
    no answer differed, and the adaptation processes are still the first ones

With ``--minutes`` it takes no new cycle after so long, and says so.
"""

import argparse
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enduring import report
from enduring.patterns import SHORT, drawn_support
from enduring.process import Memory, ServerProcess, files_in
from enduring.subjects import small_meta
from measuring import machine
from measuring.subjects import ROOT

from metanas.artifact import save_meta
from metanas_client import FewShotClient

RESULTS = ROOT / "benchmarks" / "results"
ALLOWED = 0.05
SAMPLES = 100
FEWEST = 20
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory after so many cycles."""

    cycles: int
    seconds: float
    processes: dict[str, Memory]
    """The server and each of its adaptation processes, by name."""


class Round:
    """Clients that go round together."""

    def __init__(self, server: ServerProcess, worker_ids: Sequence[int], *, cycles: int, minutes: float) -> None:
        self._server = server
        self._process_ids = {"server": server.process_id} | {
            f"adaptation process {number}": process_id for number, process_id in enumerate(worker_ids, start=1)
        }
        self._cycles = cycles
        self._end = time.monotonic() + 60 * minutes
        self._every = max(1, cycles // SAMPLES)
        self._lock = threading.Lock()
        self._next = 0
        self._done = 0
        self._began = time.monotonic()
        self.samples: list[Sample] = []
        self.wrong: list[str] = []
        self._support = drawn_support("endurance", classes=2, seed=0)
        self._first: list[dict[str, float]] | None = None

    def go(self) -> None:
        """One client: take the next cycle until there is none."""
        with FewShotClient(self._server.address, timeout_seconds=TIMEOUT_SECONDS) as client:
            while self._take():
                task = client.adapt(self._support, options=SHORT)
                answers = task.classify([images[0] for images in self._support.values()])
                task.delete()
                self._check([answer.class_name for answer in answers], [answer.probabilities for answer in answers])

    def _take(self) -> bool:
        with self._lock:
            self._next += 1
            return self._next <= self._cycles and time.monotonic() < self._end and not self.wrong

    def _check(self, names: list[str], probabilities: list[dict[str, float]]) -> None:
        with self._lock:
            self._first = self._first or probabilities
            if names != list(self._support):
                self.wrong.append(f"the images of {list(self._support)} were called {names}")
            if probabilities != self._first:
                self.wrong.append(f"{probabilities} in place of {self._first}, which the first cycle answered")
            self._done += 1
            if self._done % self._every == 0:
                self._measure()

    def _measure(self) -> None:
        processes = {name: Memory.of(process_id) for name, process_id in self._process_ids.items()}
        self.samples.append(Sample(self._done, time.monotonic() - self._began, processes))
        megabytes = ", ".join(f"{memory.resident / report.MEGABYTE:.1f}" for memory in processes.values())
        seconds = self.samples[-1].seconds
        print(f"{self._done} cycles, {seconds:.0f} s, MB: {megabytes}", file=sys.stderr, flush=True)


def main() -> int:
    """Go round, compare, write the report."""
    options = _parse()
    # Also when it is told to end, it ends the server that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    described = machine.describe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_meta(folder / "small.pt", small_meta())
        store = folder / "store"
        server = ServerProcess(
            *("--meta", str(folder / "small.pt"), "--store", str(store), "--adapt-workers", str(options.workers)),
            log_path=folder / "server.log",
        )
        try:
            workers = _all_workers(server, options.workers)
            before = files_in(store)
            done = Round(server, workers, cycles=options.cycles, minutes=options.minutes)
            with ThreadPoolExecutor(options.clients) as clients:
                for one in [clients.submit(done.go) for _ in range(options.clients)]:
                    one.result()
            same_workers = server.worker_ids == workers
            after = files_in(store)
        finally:
            exit_code = server.stop() if server.is_running else None
        stopped = files_in(store)
    return _report(
        options,
        described,
        done,
        {
            "files_before": before,
            "files_after": after,
            "files_after_stop": stopped,
            "same_workers": same_workers,
            "exit_code": exit_code,
        },
    )


def _all_workers(server: ServerProcess, count: int) -> list[int]:
    """Their process ids, once all are started: a server is ready with its first."""
    while len(workers := server.worker_ids) < count:
        time.sleep(0.1)
    return workers


def _report(options: argparse.Namespace, described: dict[str, Any], done: Round, found: dict[str, Any]) -> int:
    first, last = done.samples[0], done.samples[-1]
    early = next((sample for sample in done.samples if sample.cycles >= options.cycles / 10), last)
    growth = {name: memory.resident / early.processes[name].resident - 1 for name, memory in last.processes.items()}
    verdicts = {
        f"all {options.cycles:,} cycles made": last.cycles == options.cycles,
        "memory of each process at the end within 5 %": all(abs(share) <= ALLOWED for share in growth.values()),
        "the store's folder as empty as before": set(found["files_before"]) == set(found["files_after"]),
        "every answer right, and the first one's to the bit": not done.wrong,
        "the same adaptation processes from the first cycle to the last": found["same_workers"],
        "the server stopped in order and left no other files": found["exit_code"] == 0
        and set(found["files_after_stop"]) <= set(found["files_after"]),
    }
    rows = [
        [name, *(_shown(sample.processes[name]) for sample in (first, early, last)), f"{100 * growth[name]:+.2f} %"]
        for name in last.processes
    ]
    lines = [
        f"# {last.cycles:,} cycles of adapt, classify, delete",
        "",
        report.header(
            f"python benchmarks/endurance.py --cycles {options.cycles} --clients {options.clients}"
            f"{_bound(options.minutes)}",
            described,
            load_average_at_end=round(os.getloadavg()[0], 2),
        ),
        "",
        "The meta-model is a small one with random weights, made for this: one cell, one node, four channels; each "
        "task has two classes of one image and takes one gradient step of each kind. "
        f"{options.clients} clients at a time, {last.seconds / 60:.1f} minutes. "
        "Resident memory, in brackets what of it is no file:",
        "",
        *report.table(
            ["process", *(f"after {sample.cycles:,}" for sample in (first, early, last)), "last against middle"], rows
        ),
        "",
        f"Files in the store: {len(found['files_before'])} before, {len(found['files_after'])} after "
        f"({sum(found['files_before'].values()):,} and {sum(found['files_after'].values()):,} bytes), "
        f"{len(found['files_after_stop'])} once the server had stopped.",
        "",
        *report.verdicts(verdicts),
        *(["", *done.wrong[:5]] if done.wrong else []),
    ]
    values = {
        "machine": described,
        "cycles": last.cycles,
        "clients": options.clients,
        "growth": growth,
        "verdicts": verdicts,
        "wrong": done.wrong,
        **found,
        "samples": [asdict(sample) for sample in done.samples],
    }
    report.write(options.output, "endurance", lines=lines, values=values)
    return 0 if all(verdicts.values()) else 1


def _shown(memory: Memory) -> str:
    return f"{memory.resident / report.MEGABYTE:.1f} MB ({memory.anonymous / report.MEGABYTE:.1f})"


def _bound(minutes: float) -> str:
    return f" --minutes {minutes:g}" if math.isfinite(minutes) else ""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=10_000, help=f"at least {FEWEST}")
    parser.add_argument("--clients", type=int, default=4, help="clients at a time")
    parser.add_argument("--workers", type=int, default=2, help="adaptation processes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no new cycle after so long")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of endurance.json and endurance.md")
    options = parser.parse_args()
    if options.cycles < FEWEST or options.clients < 1 or options.workers < 1:
        parser.error(f"at least {FEWEST} cycles, one client, one adaptation process")
    return options


if __name__ == "__main__":
    sys.exit(main())
