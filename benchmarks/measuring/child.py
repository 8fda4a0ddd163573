"""A process of ours that gets ready, waits, works when told, and says what it found.

The child is a module run with ``-m``. On its stdout: ``ready``, then after a line on stdin and the
work ``done``, then one line of JSON. ``Child`` is the parent's side, ``Parent`` the child's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A started child; it is ready when the constructor returns.

    Args:
        module: what runs.
        order: its argument, as JSON.
        settings: environment variables beside the inherited ones.

    Raises:
        RuntimeError: it did not get ready; why is on stderr.
    """

    def __init__(self, module: str, order: Mapping[str, Any], settings: Mapping[str, str] | None = None) -> None:
        folders = [str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(dict(order))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **(settings or {})},
        )
        try:
            self._expect("ready")
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self) -> None:
        """Let it work."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Until its work is done."""
        self._expect("done")

    def answer(self) -> Any:
        """What it found, after ``wait``."""
        return json.loads(self._line())

    def _expect(self, word: str) -> None:
        if (line := self._line().strip()) != word:
            raise RuntimeError(f"a measuring process said {line!r} in place of {word!r}; see its error above")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class Parent:
    """The child's side."""

    @staticmethod
    def wait_for_start() -> None:
        """Say that this process is ready; return when it is to work, leave when the parent is gone."""
        print("ready", flush=True)
        if not sys.stdin.readline():
            raise SystemExit("the measuring program is gone")

    @staticmethod
    def tell_done() -> None:
        """Say that the work is done; what is left is not part of it."""
        print("done", flush=True)

    @staticmethod
    def tell(answer: Any) -> None:
        """Say what was found."""
        print(json.dumps(answer), flush=True)
