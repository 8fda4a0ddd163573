"""The index of a store that several servers share, and its weights: small objects under one URL.

    ObjectIndex     tasks/ID.json, aliases/=TENANT/NAME.json, secret
    ObjectWeights   weights/HASH.pt

There is no database: a task is there with its record, an alias moves with the object that holds it, and a list
of tasks is a list of objects. Records never change, so each is read once; whether a task or an alias is still
there is asked again after ``FRESH_SECONDS``: so long a server may answer by what another has just changed.
"""

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from metanas.errors import ArtifactError, InvalidConfigError
from metanas_serving.errors import StoreFaultError, TaskLostError
from metanas_serving.index_sqlite import SECRET_BYTES
from metanas_serving.objects import Objects
from metanas_serving.record import Alias, Record
from metanas_serving.usage import Usage

_log = logging.getLogger(__name__)

FRESH_SECONDS = 2.0

# Weights without a record may be those of a task that another server is about to keep.
LEFTOVER_SECONDS = 86_400.0
_AT_ONCE = 16
_RECORD = re.compile(r"tasks/([0-9a-f]{32})\.json")
_ALIAS = re.compile(r"aliases/=([^/]*)/([^/]+)\.json")
_WEIGHTS = re.compile(r"weights/([0-9a-f]{64})\.pt")


class ObjectIndex:
    """Records and aliases as objects; see ``record.Index``."""

    look_seconds = 60.0  # each time all objects are listed

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._seen: dict[str, float] = {}
        self._aliases: dict[tuple[str, str], tuple[Alias | None, float]] = {}

    def put(self, record: Record) -> None:
        """Keep a record."""
        self._objects.put(_record_name(record.facts.task_id), record.to_json().encode())
        self._remember(record)

    def get(self, task_id: str, *, tenant: str | None = None) -> Record | None:
        """Find a record; one that was seen a moment ago is not looked for again, unless it is another tenant's."""
        with self._lock:
            record, seen = self._records.get(task_id), self._seen.get(task_id, 0.0)
        is_wanted = record is not None and tenant in (None, record.facts.server.tenant)
        if is_wanted and time.monotonic() - seen < FRESH_SECONDS:
            return record
        record = self._read(task_id)
        if record is None:
            self._forget([task_id])
        else:
            self._remember(record)
        return record if record is not None and tenant in (None, record.facts.server.tenant) else None

    def page(self, tenant: str | None, *, after: tuple[float, str] | None, limit: int) -> list[Record]:
        """Records of a tenant, or of all, oldest first, behind a place."""
        records = [record for record in self._all(tenant) if after is None or record.place > after]
        return records[:limit]

    def versions(self, first_task_id: str) -> list[Record]:
        """All versions of one task, oldest first."""
        return [record for record in self._all(None) if record.facts.first_task_id == first_task_id]

    def expired(self, now: float) -> list[str]:
        """Ids of tasks whose time is over and that have no alias."""
        over = [one.facts for one in self._all(None) if 0 < one.facts.server.expires_unix_seconds <= now]
        named = {alias.task_id for alias in self.aliases(None)} if over else set()
        return [facts.task_id for facts in over if facts.task_id not in named]

    def remove(self, task_id: str) -> None:
        """Remove a record."""
        self._objects.remove(_record_name(task_id))
        self._forget([task_id])

    def weights(self) -> set[str]:
        """Hashes of all weights that records name."""
        return {record.sha256 for record in self._all(None)}

    def usage(self, tenant: str | None) -> Usage:
        """Tasks and bytes of a tenant, or of all."""
        records = self._all(tenant)
        return Usage(len(records), sum(record.size for record in records))

    def alias(self, tenant: str, name: str) -> Alias | None:
        """Find an alias; one that was seen a moment ago is not looked for again."""
        with self._lock:
            alias, seen = self._aliases.get((tenant, name), (None, 0.0))
        return alias if seen and time.monotonic() - seen < FRESH_SECONDS else self._read_alias(tenant, name)

    def aliases(self, tenant: str | None) -> list[Alias]:
        """All aliases of a tenant, or of all, by name."""
        found = [_ALIAS.fullmatch(name) for name in self._objects.names("aliases")]
        places = [(match[1], match[2]) for match in found if match and tenant in (None, match[1])]
        aliases = [alias for place in places if (alias := self._read_alias(*place)) is not None]
        return sorted(aliases, key=lambda alias: (alias.name, alias.tenant))

    def alias_of(self, task_id: str) -> Alias | None:
        """One of the aliases of a task."""
        return next((alias for alias in self.aliases(None) if alias.task_id == task_id), None)

    def alias_count(self, tenant: str) -> int:
        """How many aliases a tenant has."""
        return sum(name.startswith(f"aliases/={tenant}/") for name in self._objects.names("aliases"))

    def put_alias(self, alias: Alias) -> None:
        """Keep an alias."""
        values = {"task_id": alias.task_id, "pinned": alias.is_pinned}
        self._objects.put(_alias_name(alias.tenant, alias.name), json.dumps(values).encode())
        with self._lock:
            self._aliases[alias.tenant, alias.name] = alias, time.monotonic()

    def remove_alias(self, tenant: str, name: str) -> None:
        """Remove an alias."""
        self._objects.remove(_alias_name(tenant, name))
        with self._lock:
            self._aliases.pop((tenant, name), None)

    def secret(self) -> bytes:
        """32 random bytes: those of the server that was first."""
        with suppress(FileNotFoundError):
            return self._objects.get("secret")
        self._objects.create("secret", secrets.token_bytes(SECRET_BYTES))  # another server may be faster
        return self._objects.get("secret")

    def close(self) -> None:
        """Nothing is held."""

    def _all(self, tenant: str | None) -> list[Record]:
        """Records that are there now, oldest first."""
        matches = [_RECORD.fullmatch(name) for name in self._objects.names("tasks")]
        task_ids = {match[1] for match in matches if match}
        with self._lock:
            gone, new = self._records.keys() - task_ids, sorted(task_ids - self._records.keys())
        self._forget(gone)
        with ThreadPoolExecutor(_AT_ONCE) as readers:
            for record in readers.map(self._read_if_usable, new):
                if record is not None:
                    self._remember(record)
        with self._lock:
            found = [self._records[task_id] for task_id in task_ids if task_id in self._records]
        return sorted((one for one in found if tenant in (None, one.facts.server.tenant)), key=lambda one: one.place)

    def _read(self, task_id: str) -> Record | None:
        name = _record_name(task_id)
        try:
            return Record.from_json(self._objects.get(name))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, ArtifactError, InvalidConfigError) as error:
            raise TaskLostError(
                f"{name} is no record of a task ({type(error).__name__}: {error}); remove it and adapt the task again"
            ) from error

    def _read_if_usable(self, task_id: str) -> Record | None:
        try:
            return self._read(task_id)
        except TaskLostError as error:
            _log.error("not listing task %s: %s", task_id, error)
            return None

    def _read_alias(self, tenant: str, name: str) -> Alias | None:
        alias: Alias | None = None
        try:
            values = json.loads(self._objects.get(_alias_name(tenant, name)))
            alias = Alias(tenant, name, str(values["task_id"]), is_pinned=bool(values["pinned"]))
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError) as error:
            raise StoreFaultError(f"{_alias_name(tenant, name)} is no alias ({type(error).__name__})") from error
        with self._lock:
            if alias is None:  # not remembered: whoever makes names up is not to fill the memory
                self._aliases.pop((tenant, name), None)
            else:
                self._aliases[tenant, name] = alias, time.monotonic()
        return alias

    def _remember(self, record: Record) -> None:
        with self._lock:
            self._records[record.facts.task_id] = record
            self._seen[record.facts.task_id] = time.monotonic()

    def _forget(self, task_ids: "Sequence[str] | set[str]") -> None:
        with self._lock:
            for task_id in task_ids:
                self._records.pop(task_id, None)
                self._seen.pop(task_id, None)


class ObjectWeights:
    """Files of tasks as objects; see ``record.Weights``."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def write(self, sha256: str, data: bytes) -> None:
        """Keep a file."""
        self._objects.put(_weights_name(sha256), data)

    def read(self, sha256: str) -> bytes:
        """A file's content."""
        return self._objects.get(_weights_name(sha256))

    def remove(self, sha256: str) -> None:
        """Remove a file."""
        self._objects.remove(_weights_name(sha256))

    def set_aside(self, sha256: str) -> str:
        """Give a damaged file another name."""
        name = _weights_name(sha256)
        self._objects.move(name, f"{name}.corrupt")
        return f"{name}.corrupt"

    def leftovers(self) -> Iterator[str]:
        """All files, and what a server that was killed had written of any object."""
        for folder in ("weights", "tasks", "aliases"):
            for name in self._objects.names(folder):
                if _WEIGHTS.fullmatch(name) or name.endswith(".partial"):
                    yield name

    def is_left(self, leftover: str) -> bool:
        """Whether it is old enough to be of no server that is at work."""
        age = self._objects.age_seconds(leftover)
        return age is not None and age > LEFTOVER_SECONDS

    def sha256_of(self, leftover: str) -> str | None:
        """The hash that a leftover is named by."""
        found = _WEIGHTS.fullmatch(leftover)
        return found and found[1]

    def remove_leftover(self, leftover: str) -> None:
        """Remove a leftover."""
        self._objects.remove(leftover)


def _record_name(task_id: str) -> str:
    return f"tasks/{task_id}.json"


def _alias_name(tenant: str, name: str) -> str:
    return f"aliases/={tenant}/{name}.json"


def _weights_name(sha256: str) -> str:
    return f"weights/{sha256}.pt"
