"""What the server knows about a task, beside what it learnt.

    ServerFacts   id, time, seconds, warnings: kept in the task's file, in its provenance
    TaskFacts     those, and all that describes the task without its weights

A file of the store is a complete ``task_model.pt``, so it can be taken out and used anywhere.
"""

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any, Self

from metanas.errors import CorruptArtifactError
from metanas.model import AdaptationReport, TaskModel
from metanas.preprocessing import Preprocessing
from metanas.space import Genotype

_KEY = "server"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server adds to a task."""

    task_id: str
    created_unix_seconds: float
    adapt_seconds: float
    """How long the adaptation ran; waiting for it not counted."""
    warnings: tuple[str, ...] = ()
    """What fell back or is doubtful, in words."""

    def written_into(self, task: TaskModel) -> TaskModel:
        """The same task with these facts in its provenance."""
        values: dict[str, Any] = {**asdict(self), "warnings": list(self.warnings)}
        return dataclasses.replace(task, provenance={**task.provenance, _KEY: values})

    @classmethod
    def read_from(cls, task: TaskModel, *, name: str) -> Self:
        """The inverse of ``written_into``; ``name`` is what errors call the file.

        Raises:
            CorruptArtifactError: the task holds no such facts: no server wrote it.
        """
        try:
            values = task.provenance[_KEY]
            return cls(
                task_id=str(values["task_id"]),
                created_unix_seconds=float(values["created_unix_seconds"]),
                adapt_seconds=float(values["adapt_seconds"]),
                warnings=tuple(str(warning) for warning in values["warnings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"{name} is a task model without a server's facts ({error}); a store holds only what a server wrote"
            ) from error


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """A task without its weights: small enough to be kept for every task."""

    server: ServerFacts
    class_names: tuple[str, ...]
    genotype: Genotype
    report: AdaptationReport
    preprocessing: Preprocessing
    support_image_count: int

    @classmethod
    def of(cls, task: TaskModel, *, name: str) -> Self:
        """Describe a task that a server wrote; ``name`` is what errors call its file.

        Raises:
            CorruptArtifactError: no server wrote it.
        """
        return cls(
            server=ServerFacts.read_from(task, name=name),
            class_names=task.class_names,
            genotype=task.genotype,
            report=task.report,
            preprocessing=task.preprocessing,
            support_image_count=len(task.support.labels),
        )

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.server.task_id
