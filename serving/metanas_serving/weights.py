"""Files of tasks by the SHA-256 of their content: on a local disk, or in memory.

    WeightFiles       a folder's files, ``<hash>.pt``, each a complete ``task_model.pt``
    WeightsInMemory   the same without a folder

A file is written beside its place, put on the disk and renamed, so whenever the server is killed it is
there as a whole or not. What was half written, and what no record names, are leftovers.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from metanas.artifact import sync_folder, write_atomically
from metanas.errors import ArtifactError
from metanas_serving.errors import StoreFaultError

_FILE_NAME = re.compile(r"([0-9a-f]{64})\.pt")


class WeightFiles:
    """Files in a folder that no one else writes; see ``record.Weights``."""

    def __init__(self, folder: Path) -> None:
        """Take a folder, made if it is not there; what is half written in it is removed."""
        folder.mkdir(exist_ok=True)
        self._folder = folder
        for entry in os.scandir(folder):
            if entry.name.startswith(".") and entry.name.endswith(".partial"):
                os.unlink(entry)

    def write(self, sha256: str, data: bytes) -> None:
        """Keep a file."""
        try:
            write_atomically(self._path(sha256), data)
        except (ArtifactError, OSError) as error:
            raise StoreFaultError(str(error)) from error

    def read(self, sha256: str) -> bytes:
        """A file's content."""
        try:
            return self._path(sha256).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreFaultError(f"cannot read {self._path(sha256)}: {error.strerror or error}") from error

    def remove(self, sha256: str) -> None:
        """Remove a file."""
        self.remove_leftover(f"{sha256}.pt")

    def set_aside(self, sha256: str) -> str:
        """Give a damaged file another name."""
        path = self._path(sha256)
        aside = path.with_name(f"{path.name}.corrupt")
        try:
            path.rename(aside)
        except OSError as error:
            raise StoreFaultError(f"it cannot be set aside: {error.strerror or error}") from error
        return aside.name

    def leftovers(self) -> Iterator[str]:
        """All files that were not set aside."""
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries]
        yield from filter(_FILE_NAME.fullmatch, names)

    def sha256_of(self, leftover: str) -> str | None:
        """The hash that a leftover is named by."""
        found = _FILE_NAME.fullmatch(leftover)
        return found and found[1]

    def is_left(self, leftover: str) -> bool:
        """Yes: one server alone writes here, one file at a time."""
        return True

    def remove_leftover(self, leftover: str) -> None:
        """Remove a leftover."""
        try:
            (self._folder / leftover).unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise StoreFaultError(f"cannot remove {self._folder / leftover}: {error.strerror or error}") from error

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.pt"


class WeightsInMemory:
    """Files that end with the server; see ``record.Weights``."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def write(self, sha256: str, data: bytes) -> None:
        """Keep a file."""
        self._contents[sha256] = data

    def read(self, sha256: str) -> bytes:
        """A file's content."""
        try:
            return self._contents[sha256]
        except KeyError:
            raise FileNotFoundError(sha256) from None

    def remove(self, sha256: str) -> None:
        """Remove a file."""
        self._contents.pop(sha256, None)

    def set_aside(self, sha256: str) -> str:
        """Forget a file: what is damaged in memory helps no one."""
        self.remove(sha256)
        return sha256

    def leftovers(self) -> Iterator[str]:
        """None: nothing outlives a kill."""
        yield from ()

    def sha256_of(self, leftover: str) -> str | None:
        """The hash that a leftover is named by."""
        return leftover

    def is_left(self, leftover: str) -> bool:
        """Yes: one server alone writes here, one file at a time."""
        return True

    def remove_leftover(self, leftover: str) -> None:
        """Remove a leftover."""
        self.remove(leftover)
