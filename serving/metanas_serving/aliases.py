"""Names that callers give to tasks.

    Aliases.open      a store's folder, or none  ->  aliases
    Aliases.resolve   an alias or a task's id    ->  the task's id
    Aliases.set, remove, list, each of one tenant: what others call their tasks makes no difference
    Aliases.without   with aliases.without(task_id): no alias points at the task, nor will one

All are in one small file of the folder that is written as a whole, so an alias that moves points at
the old task or the new one, whenever the server is killed. One lock guards it. There an alias has its
tenant before it, ``plant-a/line-3``; those of the tenant with the empty name stand alone.
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
"""Of one tenant."""

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

    def resolve(self, name: str, *, tenant: str = "") -> str:
        """The id of the task that has this alias; what is no alias of the tenant comes back as it is."""
        if not _ALIAS.fullmatch(name):  # perhaps how the alias of another tenant is written here
            return name
        return self._aliases.get(_written(name, tenant), name)

    def list(self, *, tenant: str = "") -> list[tuple[str, str]]:
        """All aliases of a tenant with their task ids, by name."""
        with self._lock:
            entries = [(*_read(written), task_id) for written, task_id in self._aliases.items()]
        return sorted((alias, task_id) for owner, alias, task_id in entries if owner == tenant)

    def set(self, alias: str, task_id: str, *, tenant: str = "") -> str:
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
            written = _written(alias, tenant)
            count = sum(_read(other)[0] == tenant for other in self._aliases)
            if written not in self._aliases and count >= MAX_ALIASES:
                raise InvalidRequestError(f"there are {MAX_ALIASES} aliases, as many as a server keeps; delete some")
            target = self._store.owned(self.resolve(task_id, tenant=tenant), tenant=tenant).task_id
            self._write({**self._aliases, written: target})
            return target

    def remove(self, alias: str, *, tenant: str = "") -> None:
        """Take an alias away.

        Raises:
            AliasNotFoundError: there is none of that name.
            StoreWriteError: the change cannot be kept; all is as before.
        """
        with self._lock:
            written = _written(alias, tenant) if _ALIAS.fullmatch(alias) else None
            if written not in self._aliases:
                raise AliasNotFoundError(f"no alias {alias[:64]!r} on this server; ListAliases names yours")
            self._write({name: target for name, target in self._aliases.items() if name != written})

    @contextmanager
    def without(self, task_id: str) -> Iterator[None]:
        """Inside, no alias points at a task.

        Raises:
            TaskInUseError: one does.
        """
        with self._lock:
            alias = next((_read(name)[1] for name, target in self._aliases.items() if target == task_id), None)
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


def _written(alias: str, tenant: str) -> str:
    return f"{tenant}/{alias}" if tenant else alias


def _read(written: str) -> tuple[str, str]:
    """The tenant and the alias; neither has a slash."""
    tenant, _, alias = written.rpartition("/")
    return tenant, alias
