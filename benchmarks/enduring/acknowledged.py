"""What a client that may be killed was told by a server that may be killed.

HeldClient     the client's process: what it tells, held while everything is looked at, killed
Acknowledged   hears it; what has to be true of the server, whoever was killed
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enduring.patterns import drawn_support
from metanas_client import FewShotClient
from metanas_client.errors import MetaNASClientError, TaskNotFoundError

FOLDER = Path(__file__).resolve().parents[1]
_SETTLE_SECONDS = 0.3
_POLL_SECONDS = 0.02

Event = dict[str, Any]


class Acknowledged:
    """What the server has acknowledged; told by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._supports: dict[str, tuple[str, int]] = {}
        self._answers: dict[str, list[dict[str, float]]] = {}
        self._gone: list[str] = []
        self._leaving: set[str] = set()
        self._aliases: dict[str, set[str]] = {}
        self.learnt = self.deleted = self.named = 0
        self.codes: Counter[str] = Counter()

    @property
    def failed(self) -> int:
        """Calls of the client that failed."""
        return self.codes.total()

    def hear(self, event: Event) -> None:
        """What a client tells, in its order."""
        with self._lock:
            match event:
                case {"event": "done", "call": "adapt", "task_id": task_id, "owner": owner, "seed": seed}:
                    self._supports[task_id] = (owner, seed)
                    self.learnt += 1
                case {"event": "answered", "task_id": task_id, "answers": answers}:
                    self._answers[task_id] = answers
                case {"event": "doing", "call": "delete", "task_id": task_id}:
                    self._leaving.add(task_id)
                case {"event": "done", "call": "delete", "task_id": task_id}:
                    self._gone.append(task_id)
                    self._supports.pop(task_id, None)
                    self.deleted += 1
                case {"event": "doing", "call": "alias", "alias": alias, "task_id": task_id}:
                    self._aliases.setdefault(alias, {""}).add(task_id)  # "": it had none
                case {"event": "done", "call": "alias", "alias": alias, "task_id": task_id}:
                    self._aliases[alias] = {task_id}
                    self.named += 1
                case {"event": "failed", "code": code}:
                    self.codes[code] += 1

    def knows(self, task_id: str) -> bool:
        """Whether a client was told of this task, and not that it is gone."""
        with self._lock:
            return task_id in self._supports

    def check(self, client: FewShotClient) -> tuple[int, list[str]]:
        """Ask the server for everything; how many answers were compared, and what is not as acknowledged."""
        with self._lock:
            supports, gone = dict(self._supports), list(self._gone[-5:])
            aliases = {alias: set(tasks) for alias, tasks in self._aliases.items()}
        faults, compared = [], 0
        for task_id, (owner, seed) in supports.items():
            try:
                compared += self._ask(client, task_id, owner, seed, faults)
            except TaskNotFoundError as error:
                with self._lock:
                    self._supports.pop(task_id)
                if task_id not in self._leaving:  # else it was deleted and no one was told
                    faults.append(f"task {task_id} was acknowledged and is lost: {error}")
            except MetaNASClientError as error:
                faults.append(f"task {task_id} does not answer: {error}")
        for task_id in gone:
            try:
                client.task(task_id)
                faults.append(f"task {task_id} was deleted, and is there")
            except TaskNotFoundError:
                pass
        there = client.aliases()
        for alias, may_be in aliases.items():
            if there.get(alias, "") not in may_be:
                faults.append(f"alias {alias} is {there.get(alias)}, acknowledged was {sorted(may_be)}")
        return compared, faults

    def _ask(self, client: FewShotClient, task_id: str, owner: str, seed: int, faults: list[str]) -> int:
        support = drawn_support(owner, classes=2, seed=seed)
        task = client.task(task_id)
        answers = task.classify([images[0] for images in support.values()])
        if [answer.class_name for answer in answers] != list(support):
            faults.append(f"task {task_id} calls {list(support)} {[answer.class_name for answer in answers]}")
        found = [answer.probabilities for answer in answers]
        before = self._answers.setdefault(task_id, found)
        if before != found:
            faults.append(f"task {task_id} answers {found}, before {before}")
        return len(found)


class HeldClient:
    """A client's process.

    Args:
        tell: gets each event that it writes.
    """

    def __init__(self, address: str, *, name: str, seed: str, tell: Callable[[Event], None]) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "enduring.kill_client"),
                json.dumps({"address": address, "name": name, "seed": seed}),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(FOLDER), os.environ.get("PYTHONPATH", "")))},
        )
        self._tell = tell
        self._calls = self._seen = self._heard = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def wait_for_call(self, seconds: float) -> None:
        """Wait until it calls, after the last time that this was asked.

        Raises:
            RuntimeError: it does not within ``seconds``.
        """
        end = time.monotonic() + seconds
        while self._calls == self._seen:
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f"the client does not call; its exit code is {self._process.poll()}")
            time.sleep(_POLL_SECONDS)
        self._seen = self._calls

    def hold(self) -> None:
        """Stop it where it is, and hear all that it has told."""
        self._process.send_signal(signal.SIGSTOP)
        heard = -1
        while heard != self._heard:
            heard = self._heard
            time.sleep(_SETTLE_SECONDS)

    def go_on(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and hear what it had told."""
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if not line.endswith("\n"):  # killed within it
                    break
                event = json.loads(line)
                self._tell(event)
                self._heard += 1
                self._calls += event["event"] == "doing"
