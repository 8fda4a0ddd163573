"""The index of a store on a local disk, or in memory: one SQLite database.

    SqliteIndex.open     a file           ->  the index in it
    SqliteIndex.make     a file, records  ->  a file with an index of these: as a whole or not at all
    SqliteIndex.memory   an index that ends with the server

Changes go through one connection and are on the disk when they return (write-ahead log, synchronous
FULL); readers have a connection of their own, so that no answer waits for a disk. Records that were
asked last are kept as they are: to read one again takes some 200 microseconds.
"""

import secrets
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from metanas.artifact import sync_folder
from metanas_serving.errors import StartupError, StoreFaultError
from metanas_serving.record import VERSION, Alias, Record
from metanas_serving.usage import Usage

SECRET_BYTES = 32

_REMEMBERED = 1024
_EXPIRED_AT_ONCE = 100
# After so many pages of 4 KiB the log goes into the database: on a small disk it is not to be the larger one.
_LOG_PAGES = 100

_TABLES = f"""
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    created REAL NOT NULL,
    first_task_id TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    expires REAL NOT NULL,
    record TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tasks_in_order ON tasks (created, task_id);
CREATE INDEX tasks_of_tenant ON tasks (tenant, created, task_id);
CREATE INDEX usage_of_tenant ON tasks (tenant, bytes);
CREATE INDEX tasks_that_expire ON tasks (expires) WHERE expires > 0;
CREATE INDEX versions ON tasks (first_task_id);
CREATE TABLE aliases (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    task_id TEXT NOT NULL,
    pinned INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE INDEX aliases_of_task ON aliases (task_id);
CREATE TABLE secret (bytes BLOB NOT NULL);
PRAGMA user_version = {VERSION};
"""


class SqliteIndex:
    """Records and aliases in SQLite; see ``record.Index``."""

    look_seconds = 1.0

    def __init__(self, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._writer, self._reader = writer, reader
        self._writing = threading.RLock()
        self._reading = self._writing if reader is writer else threading.RLock()
        self._remembered: OrderedDict[str, Record] = OrderedDict()

    @classmethod
    def memory(cls) -> Self:
        """An index without a file."""
        connection = _connect(":memory:")
        _make_tables(connection)
        return cls(connection, connection)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the database in a file.

        Raises:
            StartupError: it cannot be used.
        """
        try:
            writer = _connect(str(path))
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("PRAGMA synchronous = FULL")
            writer.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            version = int(writer.execute("PRAGMA user_version").fetchone()[0])
            if version > VERSION:
                raise StartupError(
                    f"{path} was written by a later version (format {version}, this one reads up to {VERSION}); "
                    "upgrade metanas-edge or choose another --store"
                )
            if version == 0:
                raise sqlite3.DatabaseError("it holds no index")
            return cls(writer, _connect(str(path)))
        except sqlite3.Error as error:
            raise StartupError(
                f"cannot use the index {path}: {error}; make room or allow reading and writing; if it is damaged, "
                "put it back from a copy, or remove it: it is made again from the tasks' files, without aliases and "
                "idempotency keys"
            ) from error

    @classmethod
    def make(cls, path: Path, records: Iterable[Record]) -> None:
        """Make the database in a file.

        Raises:
            StartupError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            connection = _connect(str(partial))
            with closing(connection):
                connection.execute("PRAGMA auto_vacuum = FULL")  # what is deleted leaves the disk
                connection.execute("PRAGMA synchronous = FULL")
                _make_tables(connection)
                with cls(connection, connection)._change():
                    for record in records:
                        _insert(connection, record)
            partial.replace(path)
            sync_folder(path.parent)
        except (OSError, sqlite3.Error, StoreFaultError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StartupError(
                f"cannot make the index {path}: {error}; make room in the store or allow writing, or choose another "
                "--store"
            ) from error

    def put(self, record: Record) -> None:
        """Keep a record."""
        with self._change(record.facts.task_id) as connection:
            _insert(connection, record)

    def get(self, task_id: str, *, tenant: str | None = None) -> Record | None:
        """Find a record, perhaps of a tenant: one of another takes as long as none."""
        with self._reading:
            record = self._remembered.get(task_id)
            if record is None or tenant not in (None, record.facts.server.tenant):
                # The same look for what is not there and for what is another's.
                found = self._records("WHERE task_id = ? AND (? IS NULL OR tenant = ?)", task_id, tenant, tenant)
                if not found:
                    return None
                record = found[0]
                self._remembered[task_id] = record
                if len(self._remembered) > _REMEMBERED:
                    self._remembered.popitem(last=False)
            self._remembered.move_to_end(task_id)
            return record

    def page(self, tenant: str | None, *, after: tuple[float, str] | None, limit: int) -> list[Record]:
        """Records of a tenant, or of all, oldest first, behind a place."""
        conditions, values = ["(created, task_id) > (?, ?)"], [*(after or (float("-inf"), ""))]
        if tenant is not None:
            conditions.append("tenant = ?")
            values.append(tenant)
        return self._records(f"WHERE {' AND '.join(conditions)} ORDER BY created, task_id LIMIT ?", *values, limit)

    def versions(self, first_task_id: str) -> list[Record]:
        """All versions of one task, oldest first."""
        return self._records("WHERE first_task_id = ? ORDER BY created, task_id", first_task_id)

    def expired(self, now: float) -> list[str]:
        """Ids of tasks whose time is over and that have no alias."""
        rows = self._rows(
            "SELECT task_id FROM tasks WHERE expires > 0 AND expires <= ? "
            "AND NOT EXISTS (SELECT 1 FROM aliases WHERE aliases.task_id = tasks.task_id) LIMIT ?",
            now,
            _EXPIRED_AT_ONCE,
        )
        return [task_id for (task_id,) in rows]

    def remove(self, task_id: str) -> None:
        """Remove a record."""
        with self._change(task_id) as connection:
            connection.execute("DELETE FROM tasks WHERE task_id = ?", (task_id,))

    def weights(self) -> set[str]:
        """Hashes of all weights that records name."""
        return {sha256 for (sha256,) in self._rows("SELECT sha256 FROM tasks")}

    def usage(self, tenant: str | None) -> Usage:
        """Tasks and bytes of a tenant, or of all."""
        columns = "SELECT count(*), coalesce(sum(bytes), 0) FROM tasks"
        rows = self._rows(columns) if tenant is None else self._rows(f"{columns} WHERE tenant = ?", tenant)
        return Usage(*rows[0])

    def alias(self, tenant: str, name: str) -> Alias | None:
        """Find an alias."""
        found = self._aliases("WHERE tenant = ? AND name = ?", tenant, name)
        return found[0] if found else None

    def aliases(self, tenant: str | None) -> list[Alias]:
        """All aliases of a tenant, or of all, by name."""
        if tenant is None:
            return self._aliases("ORDER BY name, tenant")
        return self._aliases("WHERE tenant = ? ORDER BY name", tenant)

    def alias_of(self, task_id: str) -> Alias | None:
        """One of the aliases of a task."""
        found = self._aliases("WHERE task_id = ? ORDER BY tenant, name LIMIT 1", task_id)
        return found[0] if found else None

    def alias_count(self, tenant: str) -> int:
        """How many aliases a tenant has."""
        return int(self._rows("SELECT count(*) FROM aliases WHERE tenant = ?", tenant)[0][0])

    def put_alias(self, alias: Alias) -> None:
        """Keep an alias."""
        with self._change() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO aliases (tenant, name, task_id, pinned) VALUES (?, ?, ?, ?)",
                (alias.tenant, alias.name, alias.task_id, alias.is_pinned),
            )

    def remove_alias(self, tenant: str, name: str) -> None:
        """Remove an alias."""
        with self._change() as connection:
            connection.execute("DELETE FROM aliases WHERE tenant = ? AND name = ?", (tenant, name))

    def secret(self) -> bytes:
        """32 random bytes, made with the database."""
        return bytes(self._rows("SELECT bytes FROM secret")[0][0])

    def close(self) -> None:
        """Close the file."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def _records(self, condition: str, *values: Any) -> list[Record]:
        rows = self._rows(f"SELECT record FROM tasks {condition}", *values)
        return [Record.from_json(text) for (text,) in rows]

    def _aliases(self, condition: str, *values: Any) -> list[Alias]:
        rows = self._rows(f"SELECT tenant, name, task_id, pinned FROM aliases {condition}", *values)
        return [Alias(tenant, name, task_id, is_pinned=bool(pinned)) for tenant, name, task_id, pinned in rows]

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._reading:
            try:
                return self._reader.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StoreFaultError(f"the index of the store cannot be read: {error}") from error

    @contextmanager
    def _change(self, task_id: str | None = None) -> Iterator[sqlite3.Connection]:
        """One change, of a task perhaps, kept as a whole or not at all."""
        with self._writing:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreFaultError(f"the index of the store cannot be written: {error}") from error
            if task_id is not None:
                with self._reading:  # so that none who read before the change remembers it after it
                    self._remembered.pop(task_id, None)


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.executescript(f"BEGIN IMMEDIATE; {_TABLES}")
    connection.execute("INSERT INTO secret VALUES (?)", (secrets.token_bytes(SECRET_BYTES),))
    connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, record: Record) -> None:
    facts = record.facts
    row = (
        facts.task_id,
        facts.server.tenant,
        facts.server.created_unix_seconds,
        facts.first_task_id,
        record.sha256,
        record.size,
        facts.server.expires_unix_seconds,
        record.to_json(),
    )
    connection.execute(f"INSERT OR REPLACE INTO tasks VALUES ({', '.join('?' * len(row))})", row)
