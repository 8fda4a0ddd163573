"""kill -9 at random moments: of the server, of an adaptation process, of the client.

    python benchmarks/kills.py --kills 50

One real server with a store and a small meta-model made here (``enduring.subjects``), and a client in a
process of its own (``enduring.kill_client``) that learns tasks, deletes them and moves aliases, and
writes down before each call what it does and after it what the server has acknowledged. At moments drawn
from ``--seed`` one of the three is killed; a server is started again on the same store and port, a client
anew. Then the client is held, and everything is looked at. Passes, with exit code 0, if each time

    every acknowledged task answers, bit for bit, as it did
    every task whose deletion was acknowledged is gone; every alias points where it was acknowledged to
    no process of a killed server lives on, no half-written file lies in the store
    and at the end, with all tasks and aliases deleted, the store has the files that it had at first

What was under way and not acknowledged may have happened or not; such tasks are counted, and deleted at the
next look.
"""

import argparse
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enduring import report
from enduring.acknowledged import Acknowledged, HeldClient
from enduring.process import ServerProcess, files_in, kill_process, wait_until_gone
from enduring.subjects import small_meta
from measuring import machine
from measuring.subjects import ROOT

from metanas.artifact import save_meta
from metanas_client import FewShotClient

RESULTS = ROOT / "benchmarks" / "results"
VICTIMS = ("server", "adaptation process", "client")
LONGEST_SECONDS = 3.0
"""Between the client's first call of a round and the kill."""
GONE_SECONDS = 180.0
"""A process that was just being started sees only once it has loaded torch that its server is gone."""
TIDY_SECONDS = 60.0
TIMEOUT_SECONDS = 300.0
HALF_DONE = (".partial", ".corrupt", ".tmp")
"""What the names of files end in that should not stay."""


class Rounds:
    """One server, one client, and what is known of them."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._arguments = ("--meta", str(folder / "small.pt"), "--store", str(folder / "store"), "--adapt-workers", "1")
        self._store, self._log_path = folder / "store", folder / "server.log"
        self._chance = random.Random(seed)
        self._seed = seed
        self._clients = 0
        self._server = self._start_server(0)
        self.known = Acknowledged()
        self._unknown: set[str] = set()
        self.unacknowledged = 0
        self.checked = 0
        self.faults: list[str] = []
        self.before = files_in(self._store)
        self._client = self._start_client()

    def go(self, number: int, victim: str) -> None:
        """One kill, and a look at everything."""
        self._client.wait_for_call(TIMEOUT_SECONDS)
        time.sleep(self._chance.uniform(0, LONGEST_SECONDS))
        if victim == "server":
            workers = self._server.worker_ids
            self._server.kill()
            if left := wait_until_gone(workers, seconds=GONE_SECONDS):
                self.faults.append(f"kill {number}: adaptation processes {left} outlived their server")
            self._server = self._start_server(self._server.port)
        elif victim == "client":
            self._client.kill()
            self._client = self._start_client()
            self._client.wait_for_call(TIMEOUT_SECONDS)
        else:
            self._kill_worker(number)
        self._client.hold()
        try:
            self._look(f"kill {number}, of the {victim}")
        finally:
            self._client.go_on()

    def end(self) -> dict[str, int]:
        """Delete everything; what files the store then has, once a server has stopped on it."""
        self._client.kill()
        with FewShotClient(self._server.address, timeout_seconds=TIMEOUT_SECONDS) as client:
            for alias in client.aliases():
                client.delete_alias(alias)
            for task in client.tasks():
                task.delete()
        self._server.stop()
        self._server = self._start_server(0)
        after = self._files_once(lambda files: set(files) == set(self.before))
        self._server.stop()
        return after

    def close(self) -> None:
        """End what still runs."""
        self._client.kill()
        if self._server.is_running:
            self._server.kill()

    def _start_server(self, port: int) -> ServerProcess:
        return ServerProcess(*self._arguments, log_path=self._log_path, port=port)

    def _start_client(self) -> HeldClient:
        self._clients += 1
        name = f"k{self._clients}"
        return HeldClient(self._server.address, name=name, seed=f"{self._seed}/{name}", tell=self.known.hear)

    def _kill_worker(self, number: int) -> None:
        workers = self._server.worker_ids
        if not workers:  # the one before is being replaced: that is a moment too
            return
        kill_process(workers[0])
        if wait_until_gone(workers[:1], seconds=GONE_SECONDS):
            self.faults.append(f"kill {number}: adaptation process {workers[0]} survives")
        end = time.monotonic() + TIMEOUT_SECONDS
        while not self._server.worker_ids and time.monotonic() < end:
            time.sleep(0.1)
        if not self._server.worker_ids:
            self.faults.append(f"kill {number}: no new adaptation process within {TIMEOUT_SECONDS:g} s")

    def _look(self, when: str) -> None:
        with FewShotClient(self._server.address, timeout_seconds=TIMEOUT_SECONDS) as client:
            client.wait_until_ready(TIMEOUT_SECONDS)
            checked, faults = self.known.check(client)
            self.checked += checked
            self.faults += [f"{when}: {fault}" for fault in faults]
            unknown = {task.task_id for task in client.tasks() if not self.known.knows(task.task_id)}
            # One of now may still be acknowledged: the client is held, perhaps with the answer on its way.
            for task_id in unknown & self._unknown:
                client.task(task_id).delete()
                self.unacknowledged += 1
            self._unknown = unknown - self._unknown
        files = self._files_once(lambda files: not any(name.endswith(HALF_DONE) for name in files))
        if partial := [name for name in files if name.endswith(HALF_DONE)]:
            self.faults.append(f"{when}: left in the store: {', '.join(partial)}")

    def _files_once(self, as_they_should_be: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        """The store's files, as soon as they are so; a server tidies up beside its calls."""
        end = time.monotonic() + TIDY_SECONDS
        while not as_they_should_be(files := files_in(self._store)) and time.monotonic() < end:
            time.sleep(0.2)
        return files


def main() -> int:
    """Kill, look, write the report."""
    options = _parse()
    # Also when it is told to end, it ends the processes that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    described = machine.describe()
    chance = random.Random(options.seed)
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(options.kills)]
    chance.shuffle(victims)
    done: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        save_meta(Path(name) / "small.pt", small_meta())
        rounds = Rounds(Path(name), seed=options.seed)
        try:
            for number, victim in enumerate(victims, start=1):
                if time.monotonic() - began > 60 * options.minutes:
                    break
                rounds.go(number, victim)
                done[victim] += 1
                seconds = time.monotonic() - began
                print(
                    f"{number} {victim}, {seconds:.0f} s, {rounds.checked} answers, faults: {rounds.faults[-3:]}",
                    file=sys.stderr,
                    flush=True,
                )
            after = rounds.end()
        finally:
            rounds.close()
    return _report(options, described, done, rounds, after)


def _report(
    options: argparse.Namespace, described: dict[str, Any], done: Counter[str], rounds: Rounds, after: dict[str, int]
) -> int:
    verdicts = {
        f"all {options.kills} kills made": done.total() == options.kills,
        "nothing acknowledged lost, every answer as before to the bit": not rounds.faults,
        "the store's folder as empty as before once all is deleted": set(after) == set(rounds.before),
    }
    known = rounds.known
    lines = [
        f"# {done.total()} times kill -9",
        "",
        report.header(
            f"python benchmarks/kills.py --kills {options.kills}{_bound(options.minutes)}",
            described,
            load_average_at_end=round(os.getloadavg()[0], 2),
        ),
        "",
        *report.table(["killed", "times"], [[victim, str(done[victim])] for victim in VICTIMS]),
        "",
        f"Acknowledged until the end: {known.learnt} tasks learnt, {known.deleted} deleted, {known.named} aliases set. "
        f"After the kills {rounds.checked} answers were compared, bit for bit, with those before. {known.failed} calls "
        f"of the client failed ({_counts(known.codes)}). {rounds.unacknowledged} tasks had been kept whose client or "
        "server was killed before it was told.",
        "",
        *report.verdicts(verdicts),
        *(["", *(f"- {fault}" for fault in rounds.faults[:10])] if rounds.faults else []),
    ]
    values = {
        "machine": described,
        "seed": options.seed,
        "kills": dict(done),
        "learnt": known.learnt,
        "deleted": known.deleted,
        "named": known.named,
        "failed_by_code": dict(known.codes),
        "answers_compared": rounds.checked,
        "unacknowledged_tasks": rounds.unacknowledged,
        "faults": rounds.faults,
        "files_before": rounds.before,
        "files_after": after,
        "verdicts": verdicts,
    }
    report.write(options.output, "kills", lines=lines, values=values)
    return 0 if all(verdicts.values()) else 1


def _counts(codes: Counter[str]) -> str:
    return ", ".join(f"{code} {count}" for code, count in codes.most_common()) or "none"


def _bound(minutes: float) -> str:
    return f" --minutes {minutes:g}" if math.isfinite(minutes) else ""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no new kill after so long")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, when, and of what the client does")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of kills.json and kills.md")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("at least one kill")
    return options


if __name__ == "__main__":
    sys.exit(main())
