"""A server process: started as a user starts it, measured from outside, ended in either way.

ServerProcess         started by the constructor, serving when that returns
ServerProcess.stop    SIGTERM, and the exit code
ServerProcess.kill    kill -9
Memory                of one process, now
files_in              what lies in a folder, for comparison
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from measuring.subjects import ROOT

STOP_SECONDS = 120.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in bytes."""

    resident: int
    """All that is in memory of it, shared libraries too."""
    anonymous: int
    """What is its own: heap, stacks, arenas; no files."""

    @classmethod
    def of(cls, process_id: int) -> "Memory":
        """Read it.

        Raises:
            OSError: there is no such process.
        """
        fields = {}
        for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.split()
        return cls(resident=1024 * int(fields["VmRSS"][0]), anonymous=1024 * int(fields["RssAnon"][0]))


class ServerProcess:
    """A server on a port of loopback.

    Args:
        arguments: of ``serving/server.py``, beside the port.
        log_path: where its log goes, behind what is there.
        port: 0 for a free one; that of a server before it, so that its clients find this one.
    """

    def __init__(self, *arguments: str, log_path: Path, port: int = 0) -> None:
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "serving" / "server.py"), "--port", str(port), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except BaseException:  # told to end meanwhile
            self.kill()
            raise
        if not line.startswith("serving on "):
            self.kill()
            raise RuntimeError(f"the server does not start: {log_path.read_text(errors='replace').strip()[-2000:]}")
        self.address = line.removeprefix("serving on ").strip()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    @property
    def process_id(self) -> int:
        """Of the server itself."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of its adaptation processes."""
        found: list[int] = []
        for task in Path(f"/proc/{self.process_id}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # a thread that has ended meanwhile
                continue
        return sorted(found)

    def stop(self) -> int:
        """End it by SIGTERM; the exit code."""
        self._process.terminate()
        try:
            return self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not stop within {STOP_SECONDS:g} s after SIGTERM") from None
        finally:
            self._close()

    def kill(self) -> None:
        """End it by kill -9, if it runs."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


def kill_process(process_id: int) -> None:
    """kill -9 for one process; nothing if it has ended."""
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGKILL)


def wait_until_gone(process_ids: list[int], *, seconds: float) -> list[int]:
    """Wait until processes have ended; those that have not."""
    end = time.monotonic() + seconds
    while (left := [one for one in process_ids if _is_alive(one)]) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return left


def _is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def files_in(folder: Path) -> dict[str, int]:
    """Bytes of all files under a folder by their names in it, hidden ones too.

    Not those that SQLite has beside an index only while it is open.
    """
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }
