"""A folder on a local disk as the place of a store, locked for one server.

    take     a folder  ->  the lock, the index, the weights

    .lock           held while a server has the folder; the number of its process
    index.sqlite    the index, with SQLite's two files beside it
    weights/        files of tasks

Opening it reads no task, however many there are. Where there are files of tasks but no index, it is made
again from them.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from metanas.errors import ArtifactError
from metanas_serving.errors import StartupError
from metanas_serving.facts import TaskFacts
from metanas_serving.index_sqlite import SqliteIndex
from metanas_serving.record import Record
from metanas_serving.weights import WeightFiles

_log = logging.getLogger(__name__)

_LOCK_NAME, _INDEX_NAME, _WEIGHTS_NAME = ".lock", "index.sqlite", "weights"
_FILE_NAME = re.compile(r"([0-9a-f]{64})\.pt")
_FIRST_FILE_NAME = re.compile(r"[0-9a-f]{32}\.pt")


def take(folder: Path) -> tuple[IO[str], SqliteIndex, WeightFiles]:
    """Take a folder, made if it is not there; it is free again when the first of the three is closed.

    Raises:
        StartupError: it cannot be used, or another server has it.
    """
    lock_file = _lock(folder)
    try:
        weights = WeightFiles(folder / _WEIGHTS_NAME)
        path = folder / _INDEX_NAME
        for partial in folder.glob(f".{_INDEX_NAME}.*.partial*"):
            partial.unlink(missing_ok=True)
        if any(_FIRST_FILE_NAME.fullmatch(entry.name) for entry in os.scandir(folder)):
            raise StartupError(
                f"{folder} is the store of an earlier version, one file for each task; choose another --store, and "
                "adapt the tasks again"
            )
        if not path.exists():
            SqliteIndex.make(path, _found(folder / _WEIGHTS_NAME))
        return lock_file, SqliteIndex.open(path), weights
    except BaseException as error:
        lock_file.close()
        if isinstance(error, OSError):
            raise _unusable(folder, error) from error
        raise


def _lock(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_file = (folder / _LOCK_NAME).open("a+")
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock_file.seek(0)
        owner = lock_file.read(32).strip() or "unknown"
        lock_file.close()
        raise StartupError(
            f"another server (process {owner}) uses the store {folder}; stop it or choose another --store"
        ) from error
    try:
        lock_file.truncate(0)
        lock_file.write(f"{os.getpid()}\n")
        lock_file.flush()
    except OSError as error:
        lock_file.close()
        raise _unusable(folder, error) from error
    return lock_file


def _unusable(folder: Path, error: OSError) -> StartupError:
    return StartupError(
        f"cannot use {folder} as a store: {error.strerror or error}; make room in it or allow writing, "
        "or choose another --store"
    )


def _found(weights: Path) -> Iterator[Record]:
    """The records of the files that are there: none, unless an index was lost."""
    for path in sorted(weights.iterdir()):
        if _FILE_NAME.fullmatch(path.name):
            _log.warning("there is no index beside %s; taking it in", path)
            data = path.read_bytes()
            try:
                record = Record.of(TaskFacts.from_bytes(data, name=path.name), data)
            except ArtifactError as error:
                _log.error("not taking in %s: %s", path, error)
                path.rename(path.with_name(f"{path.name}.corrupt"))
                continue
            if record.sha256 == path.stem:
                yield record
            else:
                _log.error("not taking in %s: its name is not the hash of its content", path)
                path.rename(path.with_name(f"{path.name}.corrupt"))
