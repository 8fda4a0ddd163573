"""One client that learns, names and deletes tasks until it is killed; run by ``kills.py``.

    python -m enduring.kill_client '{"address": ..., "name": ..., "seed": ...}'

Before and after each call that changes something it writes a line of JSON to stdout, at once: ``doing``,
then ``done`` or ``failed``. Whatever was ``done`` has been acknowledged by the server; of what was only
``doing`` no one knows.
"""

import json
import random
import sys
import time
from typing import Any

from enduring.patterns import SHORT, drawn_support
from metanas_client import FewShotClient, Task
from metanas_client.errors import MetaNASClientError

MOST_TASKS = 4
ALIASES = 3
_REST_SECONDS = 0.2
_TIMEOUT_SECONDS = 300.0


class KilledClient:
    """Calls until it is killed."""

    def __init__(self, address: str, *, name: str, seed: str) -> None:
        self._name = name
        self._chance = random.Random(seed)
        self._client = FewShotClient(address, timeout_seconds=_TIMEOUT_SECONDS)
        self._tasks: list[Task] = []
        self._named: dict[str, str] = {}

    def go(self) -> None:
        """Never returns."""
        while True:
            chance = self._chance.random()
            unnamed = [task for task in self._tasks if task.task_id not in self._named.values()]
            try:
                if unnamed and (len(self._tasks) > MOST_TASKS or chance < 0.2):
                    self._delete(self._chance.choice(unnamed))
                elif self._tasks and chance < 0.35:
                    self._set_alias(self._chance.choice(self._tasks))
                else:
                    self._adapt()
            except MetaNASClientError as error:
                _tell("failed", code="" if error.code is None else error.code.name, text=str(error)[:300])
                time.sleep(_REST_SECONDS)

    def _adapt(self) -> None:
        seed = self._chance.getrandbits(31)
        support = drawn_support(self._name, classes=2, seed=seed)
        _tell("doing", call="adapt", seed=seed)
        if self._chance.random() < 0.5:
            task = self._client.adapt(support, options=SHORT)
        else:
            key = f"{self._name}/{seed}"
            task = self._client.start_adapt(support, options=SHORT, idempotency_key=key).result()
        _tell("done", call="adapt", task_id=task.task_id, owner=self._name, seed=seed)
        self._tasks.append(task)
        answers = task.classify([images[0] for images in support.values()])
        _tell("answered", task_id=task.task_id, answers=[answer.probabilities for answer in answers])

    def _delete(self, task: Task) -> None:
        _tell("doing", call="delete", task_id=task.task_id)
        self._tasks.remove(task)
        task.delete()
        _tell("done", call="delete", task_id=task.task_id)

    def _set_alias(self, task: Task) -> None:
        alias = f"{self._name}-{self._chance.randrange(ALIASES)}"
        _tell("doing", call="alias", alias=alias, task_id=task.task_id)
        # Also if no answer comes the server may have done it.
        self._named[f"{alias} perhaps"] = task.task_id
        self._client.set_alias(alias, task.task_id)
        self._named = {name: named for name, named in self._named.items() if not name.startswith(alias)}
        self._named[alias] = task.task_id
        _tell("done", call="alias", alias=alias, task_id=task.task_id)


def _tell(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    KilledClient(order["address"], name=order["name"], seed=order["seed"]).go()
