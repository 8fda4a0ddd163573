"""Learnt tasks: one file each in a folder, or in memory alone.

    TaskStore.open     a folder, locked for this server  ->  a store with all that is readable in it
    TaskStore.memory   a store that ends with the server
    add, read, delete, get, list

A file is the task's complete ``task_model.pt``, called ``<task id>.pt``; task ids are made by the
server, and what a caller sends as one is only ever looked up, never made a path. Files are written
beside their place and renamed, so whenever the server is killed a task is there or not. What
describes a task is kept in memory; its weights stay on disk.

A file that cannot be read is set aside as ``.corrupt``; one of a later version is left alone.
"""

import fcntl
import logging
import os
import re
import threading
from pathlib import Path
from typing import IO, Self

from metanas.artifact import sync_folder, write_atomically
from metanas.errors import ArtifactError, NewerVersionError
from metanas_serving.errors import StartupError, StoreWriteError, TaskLostError, TaskNotFoundError
from metanas_serving.facts import TaskFacts

_log = logging.getLogger(__name__)

_LOCK_NAME = ".lock"
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.pt")


class TaskStore:
    """The tasks of one server; safe to share between threads. Use ``open`` or ``memory``."""

    def __init__(self, folder: Path | None, lock_file: IO[str] | None) -> None:
        self._folder = folder
        self._lock_file = lock_file
        self._lock = threading.Lock()
        self._facts: dict[str, TaskFacts] = {}
        self._contents: dict[str, bytes] = {}

    @classmethod
    def memory(cls) -> Self:
        """A store without a folder."""
        return cls(None, None)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Take a folder, made if it is not there, and read what is in it.

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
            store._load(folder)
        except OSError as error:
            raise StartupError(
                f"cannot use {folder} as a store: {error.strerror or error}; make room in it or allow writing, "
                "or choose another --store"
            ) from error
        return store

    def close(self) -> None:
        """Let other servers have the folder."""
        if self._lock_file is not None:
            self._lock_file.close()

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
        """
        with self._lock:
            facts = self._facts.get(task_id)
            count = len(self._facts)
        if facts is None:
            raise TaskNotFoundError(
                f"no task {task_id[:64]!r} among the {count} of this server; ListTasks names them, Adapt makes one"
            )
        return facts

    def list(self) -> list[TaskFacts]:
        """Describe all tasks, oldest first."""
        with self._lock:
            facts = list(self._facts.values())
        return sorted(facts, key=lambda one: (one.server.created_unix_seconds, one.task_id))

    def __contains__(self, task_id: str) -> bool:
        with self._lock:
            return task_id in self._facts

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

    def _path(self, task_id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{task_id}.pt"

    def _load(self, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") and path.name.endswith(".partial"):
                _log.warning("removing %s: left by a server that was killed while it wrote", path)
                path.unlink(missing_ok=True)
            elif _FILE_NAME.fullmatch(path.name):
                self._load_file(path)
            elif path.name != _LOCK_NAME:
                _log.info("leaving %s alone: not the file of a task", path)
        _log.info("store %s holds %d tasks", folder, len(self._facts))

    def _load_file(self, path: Path) -> None:
        try:
            facts = TaskFacts.from_bytes(path.read_bytes(), name=path.name)
        except NewerVersionError as error:
            _log.error("not loading %s: %s", path, error)
        except OSError as error:
            _log.error("not loading %s: %s", path, error.strerror or error)
        except ArtifactError as error:
            aside = path.with_name(f"{path.name}.corrupt")
            path.rename(aside)
            _log.error("not loading %s: %s; it is set aside as %s", path, error, aside.name)
        else:
            if facts.task_id == path.stem:
                self._facts[facts.task_id] = facts
            else:
                _log.error("not loading %s: it is a copy of task %s; remove it", path, facts.task_id)
