"""What a server does for its store beside its calls.

    Housekeeper.start   once ready: a thread that
        removes what a killed server left half done,
        deletes tasks whose time is over, as DeleteTask does: not while an alias points at one,
        loads tasks that have a pinned alias, after a start and when another server has pinned one

It works while calls are answered and holds none up for longer than one change of the store.
"""

import logging
import threading
import time

from metanas.errors import MetaNASError
from metanas_serving.aliases import Aliases
from metanas_serving.classifying import Classifier
from metanas_serving.engine import Engine
from metanas_serving.errors import ServingError, TaskInUseError, TaskNotFoundError
from metanas_serving.store import TaskStore

_log = logging.getLogger(__name__)


class Housekeeper:
    """The thread that looks after the store of one server."""

    def __init__(self, store: TaskStore, engine: Engine, *, aliases: Aliases, classifier: Classifier) -> None:
        self._store = store
        self._engine = engine
        self._aliases = aliases
        self._classifier = classifier
        self._ending = threading.Event()
        self._unusable: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is being done just now."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._store.sweep()
        except ServingError as error:
            _log.error("what killed servers left in the store is not removed: %s", error)
        while not self._ending.is_set():
            try:
                self._delete_expired()
                self._engine.pin(self._aliases.pinned())
                self._load_pinned()
            except ServingError as error:
                _log.error("the store is not looked after: %s", error)
            self._ending.wait(self._store.index.look_seconds)

    def _delete_expired(self) -> None:
        for task_id in self._store.index.expired(time.time()):
            try:
                with self._aliases.without(task_id):
                    self._store.delete(task_id)
            except (TaskInUseError, TaskNotFoundError):  # meanwhile named, or deleted
                continue
            self._engine.drop(task_id)
            _log.info("delete: task %s, whose time is over", task_id)

    def _load_pinned(self) -> None:
        for task_id in self._engine.missing:
            if task_id in self._unusable or self._ending.is_set():
                continue
            try:
                self._classifier.load(task_id)
            except MetaNASError as error:
                self._unusable.add(task_id)
                _log.error("task %s has a pinned alias but cannot be loaded: %s", task_id, error)
