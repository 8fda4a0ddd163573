"""Learnt tasks: one file each in a folder, or in memory alone.

    TaskStore.open     a folder, locked for this server  ->  a store with all that is readable in it
    TaskStore.memory   a store that ends with the server
    add, read, delete, get, list
    owned, owned_by    get and list for one tenant, as if there were no others
    usage              how many tasks and bytes a tenant has
    start_reading      look through the files that no one has asked for yet

A file is the task's complete ``task_model.pt``, called ``<task id>.pt``; task ids are made by the
server, and what a caller sends as one is only ever looked up, never made a path. Files are written
beside their place and renamed, so whenever the server is killed a task is there or not. What
describes a task is kept in memory; its weights stay on disk.

Opening a folder reads names only, for each file takes a while: a file is read when its task is asked
for, and all that were not by a thread that ``start_reading`` starts. One that cannot be read is then
set aside as ``.corrupt``, which the log says, and whoever asked for it; one of a later version is left
alone.
"""

import builtins
import fcntl
import logging
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from metanas.artifact import sync_folder, write_atomically
from metanas.errors import ArtifactError, NewerVersionError
from metanas_serving.errors import StartupError, StoreWriteError, TaskLostError, TaskNotFoundError
from metanas_serving.facts import TaskFacts
from metanas_serving.usage import Usage

_log = logging.getLogger(__name__)

_LOCK_NAME = ".lock"
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.pt")

# Between two files that no one has asked for: reading one holds the interpreter for some 20 ms.
_REST_SECONDS = 0.2


class TaskStore:
    """The tasks of one server; safe to share between threads. Use ``open`` or ``memory``."""

    def __init__(self, folder: Path | None, lock_file: IO[str] | None) -> None:
        self._folder = folder
        self._lock_file = lock_file
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # one file at a time; ``_lock`` is not held meanwhile
        self._unread: set[str] = set()
        self._closing = threading.Event()
        self._facts: dict[str, TaskFacts] = {}
        self._contents: dict[str, bytes] = {}

    @classmethod
    def memory(cls) -> Self:
        """A store without a folder."""
        return cls(None, None)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Take a folder, made if it is not there, and find the files in it.

        Raises:
            StartupError: it cannot be used, or another server has it.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock_file = (folder / _LOCK_NAME).open("a+")
        except OSError as error:
            raise StartupError(
                f"cannot use {folder} as a store: {error.strerror or error}; choose another --store"
            ) from error
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock_file.seek(0)
            owner = lock_file.read(32).strip() or "unknown"
            lock_file.close()
            raise StartupError(
                f"another server (process {owner}) uses the store {folder}; stop it or choose another --store"
            ) from error
        store = cls(folder, lock_file)
        try:
            lock_file.truncate(0)
            lock_file.write(f"{os.getpid()}\n")
            lock_file.flush()
            store._find(folder)
        except OSError as error:
            raise StartupError(
                f"cannot use {folder} as a store: {error.strerror or error}; make room in it or allow writing, "
                "or choose another --store"
            ) from error
        return store

    def close(self) -> None:
        """Let other servers have the folder."""
        self._closing.set()
        with self._reading:  # the last file of ``start_reading``
            pass
        if self._lock_file is not None:
            self._lock_file.close()

    def start_reading(self) -> None:
        """Read what is unread, in a thread that ends with that or with ``close``."""
        if self._unread:
            threading.Thread(target=self._read_slowly, name="store", daemon=True).start()

    def add(self, facts: TaskFacts, data: bytes) -> None:
        """Keep a task.

        Args:
            data: its file's content.

        Raises:
            StoreWriteError: the folder cannot be written.
        """
        if self._folder is not None:
            try:
                write_atomically(self._path(facts.task_id), data)
            except (ArtifactError, OSError) as error:
                raise StoreWriteError(
                    f"the task was learnt but cannot be kept: {error}; make room in the store or allow writing, "
                    "then adapt again"
                ) from error
        with self._lock:
            self._facts[facts.task_id] = facts
            if self._folder is None:
                self._contents[facts.task_id] = data

    def get(self, task_id: str) -> TaskFacts:
        """Describe a task.

        Raises:
            TaskNotFoundError: there is none of that id.
            TaskLostError: its file turns out to be unusable.
            NewerVersionError: its file is of a later version.
        """
        with self._lock:
            facts = self._facts.get(task_id)
            unread = task_id in self._unread
        if unread:
            facts = self._read_first(task_id)
        if facts is None:
            raise TaskNotFoundError(f"no task {task_id[:64]!r} on this server; ListTasks names yours, Adapt makes one")
        return facts

    def list(self) -> list[TaskFacts]:
        """Describe all tasks, oldest first; those whose files are unusable are left out, as the log says."""
        while (task_id := self._next_unread()) is not None:
            self._read_if_usable(task_id)
        with self._lock:
            facts = list(self._facts.values())
        return sorted(facts, key=lambda one: (one.server.created_unix_seconds, one.task_id))

    def owned(self, task_id: str, *, tenant: str) -> TaskFacts:
        """Describe a task of a tenant.

        Raises:
            TaskNotFoundError: the tenant has none of that id.
            TaskLostError, NewerVersionError: its file turns out to be unusable.
        """
        facts = None
        try:
            facts = self.get(task_id)
        except TaskNotFoundError:
            pass
        except (TaskLostError, NewerVersionError):
            # Whose task such a file is cannot be known, so only a server's one tenant hears of it; the log has it.
            if not tenant:
                raise
        if facts is None or facts.server.tenant != tenant:
            raise TaskNotFoundError(f"no task {task_id[:64]!r} on this server; ListTasks names yours, Adapt makes one")
        return facts

    def owned_by(self, tenant: str) -> "builtins.list[TaskFacts]":
        """Describe all tasks of a tenant, oldest first."""
        return [facts for facts in self.list() if facts.server.tenant == tenant]

    def usage(self, tenant: str) -> Usage:
        """How much of the store a tenant has taken."""
        task_ids = [facts.task_id for facts in self.owned_by(tenant)]
        return Usage(len(task_ids), sum(self._size(task_id) for task_id in task_ids))

    def __contains__(self, task_id: str) -> bool:
        with self._lock:
            return task_id in self._facts or task_id in self._unread

    def read(self, task_id: str) -> bytes:
        """The content of a task's file.

        Raises:
            TaskNotFoundError: there is no task of that id.
            TaskLostError: its file has gone.
        """
        self.get(task_id)
        if self._folder is None:
            with self._lock:
                data = self._contents.get(task_id)
            if data is None:
                self.get(task_id)  # deleted a moment ago: says so
                raise TaskLostError(f"task {task_id} has no content; delete it and adapt again")
            return data
        try:
            return self._path(task_id).read_bytes()
        except OSError as error:
            self.get(task_id)  # deleted a moment ago: says so
            raise TaskLostError(
                f"the file of task {task_id} cannot be read any more ({error.strerror or error}); "
                "delete the task and adapt again"
            ) from error

    def delete(self, task_id: str) -> None:
        """Forget a task and remove its file.

        Raises:
            TaskNotFoundError: there is no task of that id.
            StoreWriteError: its file cannot be removed; the task stays.
        """
        self.get(task_id)
        if self._folder is not None:
            try:
                self._path(task_id).unlink(missing_ok=True)
                sync_folder(self._folder)
            except OSError as error:
                raise StoreWriteError(f"cannot delete the file of task {task_id}: {error.strerror or error}") from error
        with self._lock:
            self._facts.pop(task_id, None)
            self._contents.pop(task_id, None)

    def _size(self, task_id: str) -> int:
        if self._folder is None:
            with self._lock:
                return len(self._contents.get(task_id, b""))
        with suppress(OSError):
            return self._path(task_id).stat().st_size
        return 0

    def _path(self, task_id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{task_id}.pt"

    def _find(self, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") and path.name.endswith(".partial"):
                _log.warning("removing %s: left by a server that was killed while it wrote", path)
                path.unlink(missing_ok=True)
            elif _FILE_NAME.fullmatch(path.name):
                self._unread.add(path.stem)
            elif not path.name.startswith("."):  # the lock, and the secret of ``keys``
                _log.info("leaving %s alone: not the file of a task", path)
        _log.info("store %s holds %d files of tasks", folder, len(self._unread))

    def _read_slowly(self) -> None:
        while (task_id := self._next_unread()) is not None and not self._closing.wait(_REST_SECONDS):
            self._read_if_usable(task_id)

    def _next_unread(self) -> str | None:
        with self._lock:
            return min(self._unread, default=None)

    def _read_if_usable(self, task_id: str) -> None:
        with suppress(TaskLostError, TaskNotFoundError, NewerVersionError):  # the log has it
            self._read_first(task_id)

    def _read_first(self, task_id: str) -> TaskFacts | None:
        """Read a file that no one has read yet, and say in the log what is wrong with it.

        Returns:
            None if it was deleted meanwhile.

        Raises:
            TaskLostError, NewerVersionError: it is unusable.
            TaskNotFoundError: it is the file of another task.
        """
        path = self._path(task_id)
        with self._reading:
            with self._lock:
                if task_id not in self._unread:  # another thread was first
                    return self._facts.get(task_id)
            try:
                facts = _usable_facts(path)
            except Exception as error:
                _log.error("not loading %s: %s", path, error)
                with self._lock:
                    self._unread.discard(task_id)
                raise
            with self._lock:
                self._unread.discard(task_id)
                self._facts[task_id] = facts
            return facts


def _usable_facts(path: Path) -> TaskFacts:
    """What a file says; one that is damaged is set aside."""
    try:
        facts = TaskFacts.from_bytes(path.read_bytes(), name=path.name)
    except NewerVersionError:
        raise
    except OSError as error:
        raise TaskLostError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except ArtifactError as error:
        aside = path.with_name(f"{path.name}.corrupt")
        try:
            path.rename(aside)
        except OSError as refused:
            raise TaskLostError(f"{error}; it cannot be set aside: {refused.strerror or refused}") from error
        raise TaskLostError(f"{error}; it is set aside as {aside.name}") from error
    if facts.task_id != path.stem:
        raise TaskNotFoundError(
            f"{path.name} is not what its name says: it is a copy of task {facts.task_id}; remove it"
        )
    return facts
