"""Names that callers give to tasks.

    Aliases.open      a store's folder, or none  ->  aliases
    Aliases.resolve   an alias or a task's id    ->  the task's id
    Aliases.set, remove, list
    Aliases.without   with aliases.without(task_id): no alias points at the task, nor will one

All are in one small file of the folder that is written as a whole, so an alias that moves points at
the old task or the new one, whenever the server is killed. One lock guards it.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metanas.artifact import write_atomically
from metanas.errors import ArtifactError
from metanas_serving.errors import (
    AliasNotFoundError,
    InvalidRequestError,
    StartupError,
    StoreWriteError,
    TaskInUseError,
)
from metanas_serving.store import TaskStore

MAX_ALIASES = 10_000

_FILE_NAME = ".aliases.json"
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TASK_ID = re.compile(r"[0-9a-f]{32}")


class Aliases:
    """The aliases of one store; safe to share between threads."""

    def __init__(self, folder: Path | None, store: TaskStore, *, aliases: dict[str, str]) -> None:
        self._folder = folder
        self._store = store
        self._lock = threading.Lock()
        self._aliases = aliases

    @classmethod
    def open(cls, folder: Path | None, store: TaskStore) -> "Aliases":
        """Read the aliases of a store's folder; None: they end with the server.

        Raises:
            StartupError: their file cannot be used.
        """
        if folder is None:
            return cls(None, store, aliases={})
        path = folder / _FILE_NAME
        try:
            found = json.loads(path.read_text())
            if not (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
                raise ValueError("it does not hold task ids by alias")
        except FileNotFoundError:
            found = {}
        except (OSError, ValueError) as error:
            raise StartupError(
                f"cannot use the aliases in {path}: {error}; put the file back as it was, or remove it: "
                "then there are no aliases"
            ) from error
        return cls(folder, store, aliases=found)

    def resolve(self, name: str) -> str:
        """The id of the task that has this alias; what is no alias comes back as it is."""
        return self._aliases.get(name, name)

    def list(self) -> list[tuple[str, str]]:
        """All aliases with their task ids, by name."""
        with self._lock:
            return sorted(self._aliases.items())

    def set(self, alias: str, task_id: str) -> str:
        """Give a task an alias, or move the alias to it.

        Args:
            task_id: of the task, or another alias of it.

        Returns:
            The id of the task.

        Raises:
            InvalidRequestError: the alias cannot be one.
            TaskNotFoundError: there is no such task.
            StoreWriteError: it cannot be kept; all is as before.
        """
        if not _ALIAS.fullmatch(alias) or _TASK_ID.fullmatch(alias):
            raise InvalidRequestError(
                f"{alias[:80]!r} cannot be an alias: take 1 to 64 letters, digits, dots, hyphens or underscores, the "
                "first a letter or digit, and not what a task id looks like (32 digits of 0-9, a-f)"
            )
        with self._lock:
            if alias not in self._aliases and len(self._aliases) >= MAX_ALIASES:
                raise InvalidRequestError(f"there are {MAX_ALIASES} aliases, as many as a server keeps; delete some")
            target = self._store.get(self.resolve(task_id)).task_id
            self._write({**self._aliases, alias: target})
            return target

    def remove(self, alias: str) -> None:
        """Take an alias away.

        Raises:
            AliasNotFoundError: there is none of that name.
            StoreWriteError: the change cannot be kept; all is as before.
        """
        with self._lock:
            if alias not in self._aliases:
                raise AliasNotFoundError(
                    f"no alias {alias[:64]!r} among the {len(self._aliases)} of this server; ListAliases names them"
                )
            self._write({name: target for name, target in self._aliases.items() if name != alias})

    @contextmanager
    def without(self, task_id: str) -> Iterator[None]:
        """Inside, no alias points at a task.

        Raises:
            TaskInUseError: one does.
        """
        with self._lock:
            alias = next((name for name, target in self._aliases.items() if target == task_id), None)
            if alias is not None:
                raise TaskInUseError(
                    f"task {task_id} has the alias {alias!r}; move the alias to another task or delete it first"
                )
            yield

    def _write(self, aliases: dict[str, str]) -> None:
        if self._folder is not None:
            try:
                write_atomically(self._folder / _FILE_NAME, json.dumps(aliases, indent=1, sort_keys=True).encode())
            except (ArtifactError, OSError) as error:
                raise StoreWriteError(
                    f"the alias cannot be kept: {error}; make room in the store or allow writing, then try again"
                ) from error
        self._aliases = aliases
