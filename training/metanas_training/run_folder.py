"""The folder of one run: everything that it takes to know, resume and compare it.

config.json        every setting
environment.json   versions, machine, command line
metrics.jsonl      one line a step: loss, accuracy, seconds; accuracy on validation classes now and then
tensorboard/       the same as curves
checkpoint.pt      from which --resume continues
meta.pt            the meta-model, once it is done
meta.json          its provenance with the accuracy on held-out classes, and the history

RunFolder   open it, write a step, close it
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

import metanas
from metanas.artifact import write_atomically, write_json
from metanas.errors import InvalidConfigError
from metanas_training.config import TrainingConfig
from metanas_training.progress import StepOutcome

PACKAGES = ("torch", "numpy", "pillow", "torchmeta", "Hershey-Fonts")


def claim(path: Path, config: TrainingConfig, *, fresh: bool) -> None:
    """Make the folder of a run and write its settings; of two runs that want one folder, one gets it.

    Args:
        fresh: whether the run starts from nothing.

    Raises:
        InvalidConfigError: ``fresh``, and the folder holds a run.
    """
    path.mkdir(parents=True, exist_ok=True)
    if fresh:
        try:
            (path / "config.json").open("x").close()
        except FileExistsError as error:
            how = f"continue it with --resume {path}" if (path / "checkpoint.pt").exists() else "remove it"
            raise InvalidConfigError(f"{path} already holds a run; {how}, or choose another --output") from error
    write_json(path / "config.json", config.to_dict())


class RunFolder:
    """Writes what a run leaves behind.

    Args:
        path: as ``claim`` has made it.
        done: steps that the run has done already: lines and curves beyond them, of steps that were
            taken after the last checkpoint and are taken again, are dropped.
    """

    def __init__(self, path: Path, *, done: int, command: Sequence[str]) -> None:
        self.path = path
        write_json(path / "environment.json", environment(command))
        self._metrics = path / "metrics.jsonl"
        kept = [line for line in _lines(self._metrics) if _step(line) <= done]
        write_atomically(self._metrics, "".join(kept).encode())
        self._file = self._metrics.open("a", encoding="utf-8", buffering=1)
        self._writer = SummaryWriter(str(path / "tensorboard"), purge_step=done + 1)

    def write(self, outcome: StepOutcome) -> None:
        """One step."""
        values = {
            "loss": outcome.loss,
            "accuracy": outcome.accuracy,
            "images_per_second": outcome.images / outcome.seconds,
            "tasks_per_second": outcome.tasks / outcome.seconds,
            "validation_accuracy": outcome.validation,
        }
        row: dict[str, Any] = {"step": outcome.step, "phase": outcome.phase, "seconds": outcome.seconds}
        for name, value in values.items():
            if value is not None:
                row[name] = value
                self._writer.add_scalar(name, value, outcome.step)
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._writer.close()


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions and machine, without anything that names a person or a place."""
    return {
        "metanas_edge": metanas.__version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "machine": platform.machine(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "command": [Path(sys.argv[0]).name, *map(_without_folders, command)],
    }


def _without_folders(argument: str) -> str:
    """``folder:/some/where/pictures`` as ``folder:pictures``."""
    kind, separator, path = argument.rpartition(":")
    return f"{kind}{separator}{Path(path).name}" if "/" in path else argument


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _lines(path: Path) -> list[str]:
    """The complete lines of a file; a crash may have cut the last."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _step(line: str) -> int:
    return int(json.loads(line)["step"])
