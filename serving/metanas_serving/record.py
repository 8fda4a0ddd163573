"""What a store is made of, wherever it is: an index of small records, and weights by their hash.

    Record    what an index holds of a task
    Alias     a tenant's name for one of its tasks
    Index     records and aliases by name      ``index_sqlite``, ``index_objects``
    Weights   files of tasks by their SHA-256  ``weights``

A task is kept once its record is: weights are written before their record and removed after it, so that
whenever a server is killed there is a whole task or none, and at worst weights that no record names.
Both raise ``StoreFaultError`` where their place fails.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from metanas_serving.facts import TaskFacts
from metanas_serving.usage import Usage

VERSION = 1
"""Of what an index holds."""


@dataclass(frozen=True, slots=True)
class Record:
    """A kept task."""

    facts: TaskFacts
    sha256: str
    """Of its file, in hexadecimal: the file's name among the weights."""
    size: int
    """Of its file."""

    @classmethod
    def of(cls, facts: TaskFacts, data: bytes) -> Self:
        """The record of a task.

        Args:
            data: its file's content.
        """
        return cls(facts, hashlib.sha256(data).hexdigest(), len(data))

    @property
    def place(self) -> tuple[float, str]:
        """Its place in a list of tasks, oldest first."""
        return self.facts.server.created_unix_seconds, self.facts.task_id

    def to_json(self) -> str:
        """For an index."""
        values = {"version": VERSION, "sha256": self.sha256, "bytes": self.size, "facts": self.facts.to_dict()}
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of ``to_json``; KeyError, TypeError or ValueError if it is not what that made."""
        values: dict[str, Any] = json.loads(text)
        return cls(TaskFacts.from_dict(values["facts"]), values["sha256"], values["bytes"])


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that a tenant gave to one of its tasks."""

    tenant: str
    name: str
    task_id: str
    is_pinned: bool = False
    """Whether its task is to stay in memory."""


class Index(Protocol):
    """Records and aliases; safe to share between threads. Each change is kept as a whole when it returns."""

    look_seconds: float
    """How often it may be asked what has expired."""

    def put(self, record: Record) -> None:
        """Keep a record, perhaps in place of one of the same task."""

    def get(self, task_id: str, *, tenant: str | None = None) -> Record | None:
        """Find a record, perhaps of a tenant: one of another takes as long as none."""

    def page(self, tenant: str | None, *, after: tuple[float, str] | None, limit: int) -> list[Record]:
        """At most ``limit`` records of a tenant, or of all, oldest first, behind a place."""

    def versions(self, first_task_id: str) -> list[Record]:
        """All versions of one task, oldest first."""

    def expired(self, now: float) -> list[str]:
        """Ids of tasks whose time is over and that have no alias."""

    def remove(self, task_id: str) -> None:
        """Remove a record; nothing if there is none."""

    def weights(self) -> set[str]:
        """Hashes of all weights that records name."""

    def usage(self, tenant: str | None) -> Usage:
        """Tasks and bytes of a tenant, or of all."""

    def alias(self, tenant: str, name: str) -> Alias | None:
        """Find an alias."""

    def aliases(self, tenant: str | None) -> list[Alias]:
        """All aliases of a tenant, or of all, by name."""

    def alias_of(self, task_id: str) -> Alias | None:
        """One of the aliases of a task."""

    def alias_count(self, tenant: str) -> int:
        """How many aliases a tenant has."""

    def put_alias(self, alias: Alias) -> None:
        """Keep an alias, perhaps moved from another task."""

    def remove_alias(self, tenant: str, name: str) -> None:
        """Remove an alias; nothing if there is none."""

    def secret(self) -> bytes:
        """32 random bytes, always the same for one store."""

    def close(self) -> None:
        """Leave the place to others."""


class Weights(Protocol):
    """Files by their SHA-256; safe to share between threads."""

    def write(self, sha256: str, data: bytes) -> None:
        """Keep a file; it is there as a whole when this returns."""

    def read(self, sha256: str) -> bytes:
        """A file's content; FileNotFoundError if it has gone."""

    def remove(self, sha256: str) -> None:
        """Remove a file; nothing if there is none."""

    def set_aside(self, sha256: str) -> str:
        """Give a damaged file another name, which comes back."""

    def leftovers(self) -> Iterable[str]:
        """Names of files that may be left of what a killed server began; ``remove_leftover`` takes them."""

    def sha256_of(self, leftover: str) -> str | None:
        """The hash that a leftover is named by; None: it is a part of a file."""

    def is_left(self, leftover: str) -> bool:
        """Whether no server can be about to keep it."""

    def remove_leftover(self, leftover: str) -> None:
        """Remove a leftover."""
