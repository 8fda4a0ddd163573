"""The tasks of an evaluation that are done, so that an interrupted one goes on where it was.

One file for each meta-model, ``.tasks-SHA256.jsonl`` in the folder of the evaluation. Its
first line says what was measured: the meta-model, the data, the settings. A file of other tasks is
started anew, and a finished evaluation removes it: only one that was interrupted goes on, with
what the same version of the package has measured.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

import metanas
from metanas_training.run_files import RunFile
from metanas_training.scores import TaskScore


class Journal:
    """Scores by the number of their task.

    Args:
        folder: of the evaluation; None: nothing is kept.
        settings: whatever else decides which tasks there are; not how many.
    """

    def __init__(self, folder: Path | None, file: RunFile, *, data: str, settings: Mapping[str, Any]) -> None:
        self.scores: dict[int, TaskScore] = {}
        self._header = {"meta": file.sha256, "data": data, "code_version": metanas.__version__, **settings}
        self._path = None if folder is None else folder / f".tasks-{file.sha256[:16]}.jsonl"
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            lines = _complete_lines(self._path)
            if lines and lines[0] == self._header:
                self.scores = {line["task"]: TaskScore.from_dict(line["score"]) for line in lines[1:]}
            self._file = self._path.open("w", encoding="utf-8")
            self._write(self._header)
            for task, score in self.scores.items():
                self._write({"task": task, "score": score.to_dict()})
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, task: int, score: TaskScore) -> None:
        """Keep one score."""
        self.scores[task] = score
        self._write({"task": task, "score": score.to_dict()})

    def remove(self) -> None:
        """Forget everything: the evaluation is done, and the next one measures anew."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """A crash may have cut the last line: it and what follows are left out."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
