"""A place of small objects that several servers share: any URL of fsspec.

    Objects.open   a URL, ``s3://bucket/tasks`` and the like  ->  the objects under it
    get, put, create, remove, move, names, age_seconds

An object is put as a whole where the place does that: object stores do, and files are written beside their
place and renamed. Of other places of fsspec (a plain FTP server, say) a reader may see a part; then its checksum
does not fit. Whatever a place raises comes out as ``StoreFaultError``, except that something is not there.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from metanas.artifact import write_atomically
from metanas_serving.errors import StartupError, StoreFaultError


class Objects:
    """Objects under one URL, by names with slashes; safe to share between threads."""

    def __init__(self, files: Any, root: str, *, url: str) -> None:
        self._files = files
        self._root = root.rstrip("/")
        self._url = url
        self._is_local = "file" in _protocols(files)

    @classmethod
    def open(cls, url: str) -> "Objects":
        """Take what is under a URL; it is reached for the first time.

        Raises:
            StartupError: fsspec or its part for this kind of URL is not installed, or the place does not answer.
        """
        try:
            import fsspec
        except ImportError as error:
            raise StartupError(
                f"--store {url} needs fsspec; pip install 'metanas-edge[fsspec]', or name a folder"
            ) from error
        try:
            # What a listing said is no longer true once another server has written.
            files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StartupError(f"cannot use {url} as a store: {error}") from error
        objects = cls(files, root, url=url)
        try:
            objects.names("tasks")
        except StoreFaultError as error:
            raise StartupError(f"cannot use {url} as a store: {error}; check address, rights and network") from error
        return objects

    def get(self, name: str) -> bytes:
        """An object's content; FileNotFoundError if there is none."""
        with self._translated(f"cannot read {name}"):
            return bytes(self._files.cat_file(self._path(name)))

    def put(self, name: str, data: bytes) -> None:
        """Keep an object, perhaps in place of another."""
        with self._translated(f"cannot write {name}"):
            path = self._path(name)
            if self._is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
            else:
                self._files.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Keep an object if there is none of that name; whether there was none."""
        with self._translated(f"cannot write {name}"):
            path = self._path(name)
            try:
                if self._is_local:
                    _link(Path(path), data)
                else:
                    self._files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True

    def remove(self, name: str) -> None:
        """Remove an object; nothing if there is none."""
        try:
            with self._translated(f"cannot remove {name}"):
                self._files.rm_file(self._path(name))
        except FileNotFoundError:
            pass

    def move(self, name: str, to: str) -> None:
        """Give an object another name; FileNotFoundError if there is none."""
        with self._translated(f"cannot move {name}"):
            self._files.mv(self._path(name), self._path(to))

    def names(self, folder: str) -> list[str]:
        """Names of all objects whose names begin with a folder's."""
        with self._translated(f"cannot list {folder}"):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._path(folder))
            except FileNotFoundError:
                return []
            return sorted(path.removeprefix(f"{self._root}/") for path in found)

    def age_seconds(self, name: str) -> float | None:
        """How long ago an object was put; None if it has gone, or the place does not say."""
        try:
            with self._translated(f"cannot look at {name}"):
                facts = self._files.info(self._path(name))
        except FileNotFoundError:
            return None
        for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
            put_at = facts.get(key)
            if isinstance(put_at, datetime):
                return time.time() - put_at.timestamp()
            if isinstance(put_at, int | float):
                return time.time() - put_at
        return None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, StoreFaultError):
            raise
        except Exception as error:  # each place raises errors of its own
            raise StoreFaultError(f"{what} at {self._url} ({type(error).__name__}: {error})") from error


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _link(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not, and only if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        write_atomically(whole, data)
        os.link(whole, path)
    finally:
        whole.unlink(missing_ok=True)
