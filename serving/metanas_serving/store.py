"""Learnt tasks, kept: a place (``record``) with rules.

    TaskStore.open     a folder or a URL  ->  a store with all that is in it
    TaskStore.memory   a store that ends with the server
    add, read, delete, get, page, list, versions
    owned, owned_by    get and list for one tenant, as if there were no others
    usage              how many tasks and bytes a tenant has
    sweep              removes what a killed server left half done

A file is the task's complete ``task_model.pt``, named by its SHA-256; task ids are made by the server, and
what a caller sends as one is only ever looked up, never made a path. A file is compared with its hash
whenever it is read; one that is damaged is set aside, which the log says, and whoever asked for it.

One lock, ``changing``, guards every change, so that of a file and its record no one sees half.
"""

import builtins
import hashlib
import logging
import re
import threading
from pathlib import Path
from typing import IO, Self

from metanas_serving import local_store
from metanas_serving.errors import StoreFaultError, StoreWriteError, TaskLostError, TaskNotFoundError
from metanas_serving.facts import TaskFacts
from metanas_serving.index_objects import ObjectIndex, ObjectWeights
from metanas_serving.index_sqlite import SqliteIndex
from metanas_serving.objects import Objects
from metanas_serving.record import Index, Record, Weights
from metanas_serving.usage import Usage
from metanas_serving.weights import WeightsInMemory

_log = logging.getLogger(__name__)

_TASK_ID = re.compile(r"[0-9a-f]{32}")
_PAGE = 500


class TaskStore:
    """The tasks of one server; safe to share between threads. Use ``open`` or ``memory``."""

    def __init__(self, index: Index, weights: Weights, *, lock_file: IO[str] | None = None) -> None:
        self.index = index
        self.changing = threading.RLock()
        self._weights = weights
        self._lock_file = lock_file

    @classmethod
    def memory(cls) -> Self:
        """A store without a place."""
        return cls(SqliteIndex.memory(), WeightsInMemory())

    @classmethod
    def open(cls, place: Path | str) -> Self:
        """Take a folder, made if it is not there, or what is under a URL of fsspec.

        Raises:
            StartupError: it cannot be used, or another server has the folder.
        """
        if "://" in str(place):
            objects = Objects.open(str(place))
            _log.info("store %s, shared with whatever server uses it", place)
            return cls(ObjectIndex(objects), ObjectWeights(objects))
        lock_file, index, weights = local_store.take(Path(place))
        store = cls(index, weights, lock_file=lock_file)
        _log.info("store %s holds %d tasks", place, index.usage(None).tasks)
        return store

    def close(self) -> None:
        """Let other servers have the place."""
        with self.changing:
            self.index.close()
            if self._lock_file is not None:
                self._lock_file.close()

    def add(self, facts: TaskFacts, data: bytes) -> None:
        """Keep a task; it is there, whatever happens, when this returns.

        Args:
            data: its file's content.

        Raises:
            StoreWriteError: the place cannot be written.
        """
        record = Record.of(facts, data)
        with self.changing:
            try:
                self._weights.write(record.sha256, data)
                self.index.put(record)
            except StoreFaultError as error:
                self._discard(record)
                raise StoreWriteError(
                    f"the task was learnt but cannot be kept: {error}; make room in the store or allow writing, "
                    "then adapt again"
                ) from error

    def get(self, task_id: str) -> TaskFacts:
        """Describe a task.

        Raises:
            TaskNotFoundError: there is none of that id.
            StoreFaultError: the place cannot be read.
        """
        return self._record(task_id).facts

    def page(
        self, tenant: str | None, *, after: tuple[float, str] | None = None, limit: int = _PAGE
    ) -> builtins.list[Record]:
        """At most ``limit`` tasks of a tenant, or of all, oldest first, behind the place of another.

        Raises:
            StoreFaultError: the place cannot be read.
        """
        return self.index.page(tenant, after=after, limit=limit)

    def list(self, tenant: str | None = None) -> builtins.list[TaskFacts]:
        """Describe all tasks, or all of a tenant, oldest first."""
        facts: list[TaskFacts] = []
        after: tuple[float, str] | None = None
        while records := self.page(tenant, after=after):
            facts += [record.facts for record in records]
            after = records[-1].place
        return facts

    def versions(self, first_task_id: str) -> builtins.list[TaskFacts]:
        """Describe all versions of one task, oldest first.

        Args:
            first_task_id: of the first of them, which perhaps is deleted.
        """
        return [record.facts for record in self.index.versions(first_task_id)]

    def owned(self, task_id: str, *, tenant: str) -> TaskFacts:
        """Describe a task of a tenant.

        Raises:
            TaskNotFoundError: the tenant has none of that id.
        """
        return self._record(task_id, tenant=tenant).facts

    def owned_by(self, tenant: str) -> "builtins.list[TaskFacts]":
        """Describe all tasks of a tenant, oldest first."""
        return self.list(tenant)

    def usage(self, tenant: str) -> Usage:
        """How much of the store a tenant has taken."""
        return self.index.usage(tenant)

    def __contains__(self, task_id: str) -> bool:
        return self._find(task_id) is not None

    def read(self, task_id: str) -> bytes:
        """The content of a task's file.

        Raises:
            TaskNotFoundError: there is no task of that id.
            TaskLostError: its file has gone, or is damaged: then it is set aside.
            StoreFaultError: the place cannot be read.
        """
        record = self._record(task_id)
        try:
            data = self._weights.read(record.sha256)
        except FileNotFoundError as error:
            self.get(task_id)  # deleted a moment ago: says so
            raise TaskLostError(
                f"the file of task {task_id} has gone; put it back, or delete the task and adapt again"
            ) from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise self._set_aside(record, len(data))
        return data

    def delete(self, task_id: str) -> None:
        """Forget a task and remove its file.

        Raises:
            TaskNotFoundError: there is no task of that id.
            StoreWriteError: the place cannot be written; the task stays.
        """
        with self.changing:
            record = self._record(task_id)
            try:
                self.index.remove(task_id)
            except StoreFaultError as error:
                raise StoreWriteError(
                    f"cannot delete task {task_id}: {error}; allow writing, then try again"
                ) from error
            self._discard(record)

    def sweep(self) -> int:
        """Remove files that no record names: of tasks whose writing or removing was broken off.

        Returns:
            How many were removed.
        """
        removed = 0
        names = list(self._weights.leftovers())
        named = self.index.weights()
        for name in names:
            sha256 = self._weights.sha256_of(name)
            if sha256 in named or not self._weights.is_left(name):
                continue
            with self.changing:  # what was just being added when the names were read has its record now
                if sha256 is None or sha256 not in self.index.weights():
                    _log.warning("removing %s: left by a server that was killed", name)
                    self._weights.remove_leftover(name)
                    removed += 1
        return removed

    def _find(self, task_id: str, *, tenant: str | None = None) -> Record | None:
        return self.index.get(task_id, tenant=tenant) if _TASK_ID.fullmatch(task_id) else None

    def _record(self, task_id: str, *, tenant: str | None = None) -> Record:
        record = self._find(task_id, tenant=tenant)
        if record is None:
            raise TaskNotFoundError(f"no task {task_id[:64]!r} on this server; ListTasks names yours, Adapt makes one")
        return record

    def _discard(self, record: Record) -> None:
        """Remove the file of a task without a record; what cannot be removed now is left to ``sweep``."""
        try:
            if self.index.get(record.facts.task_id) != record:
                self._weights.remove(record.sha256)
        except StoreFaultError as error:
            _log.warning("the file %s is left over until the server starts again: %s", record.sha256, error)

    def _set_aside(self, record: Record, size: int) -> TaskLostError:
        task_id = record.facts.task_id
        text = (
            f"the file of task {task_id} ({size} bytes, {record.size} were written) is damaged: it does not match "
            "its checksum"
        )
        with self.changing:
            try:
                aside = self._weights.set_aside(record.sha256)
                if self.index.get(task_id) == record:
                    self.index.remove(task_id)
                text += f"; it is set aside as {aside}, adapt the task again"
            except (StoreFaultError, FileNotFoundError) as error:
                text += f"; it cannot be set aside: {error}"
        _log.error("%s", text)
        return TaskLostError(text)
