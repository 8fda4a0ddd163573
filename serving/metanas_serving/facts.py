"""What the server knows about a task, beside what it learnt.

    ServerFacts   id, time, seconds, warnings: kept in the task's file, in its provenance
    TaskFacts     those, and all that describes the task without its weights

A file of the store is a complete ``task_model.pt``, so it can be taken out and used anywhere.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from metanas.artifact import TASK_KIND, unpack
from metanas.errors import CorruptArtifactError, InvalidConfigError
from metanas.model import AdaptationReport, TaskModel
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas.space import Genotype
from metanas.trust import Trust

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
    request_sha256: str = ""
    """Of what it was learnt from; empty for a task of an earlier version of the server."""
    version: int = 1
    parent_task_id: str = ""
    """Of the task that it is an update of; empty for a first version."""
    first_task_id: str = ""
    """Of the first version; empty for a first version."""
    tenant: str = ""
    """Whose it is; empty for a task of a server without tokens, or of an earlier version."""

    def written_into(self, task: TaskModel) -> TaskModel:
        """The same task with these facts in its provenance."""
        values: dict[str, Any] = {**asdict(self), "warnings": list(self.warnings)}
        return dataclasses.replace(task, provenance={**task.provenance, _KEY: values})

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any]) -> Self:
        """The inverse of ``written_into``; KeyError, TypeError or ValueError if no server wrote it."""
        values = provenance[_KEY]
        return cls(
            task_id=str(values["task_id"]),
            created_unix_seconds=float(values["created_unix_seconds"]),
            adapt_seconds=float(values["adapt_seconds"]),
            warnings=tuple(str(warning) for warning in values["warnings"]),
            request_sha256=str(values.get("request_sha256", "")),
            version=int(values.get("version", 1)),
            parent_task_id=str(values.get("parent_task_id", "")),
            first_task_id=str(values.get("first_task_id", "")),
            tenant=str(values.get("tenant", "")),
        )


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """A task without its weights: small enough to be kept for every task."""

    server: ServerFacts
    class_names: tuple[str, ...]
    genotype: Genotype
    report: AdaptationReport
    preprocessing: Preprocessing
    support_image_count: int
    trust: Trust
    schedule: Schedule | None
    """How it was learnt; None for a task of an earlier version."""

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str) -> Self:
        """Describe a task from its file's content; ``name`` is what errors call the file.

        The network is not built: that takes many times as long, and a store may hold thousands.

        Raises:
            WrongKindError, CorruptArtifactError, NewerVersionError: the content cannot be used, or
                no server wrote it.
        """
        metadata, tensors = unpack(data, TASK_KIND, name=name)
        try:
            schedule = metadata["provenance"].get("schedule")
            return cls(
                server=ServerFacts.from_provenance(metadata["provenance"]),
                class_names=tuple(metadata["class_names"]),
                genotype=Genotype.from_dict(metadata["genotype"]),
                report=AdaptationReport.from_dict(metadata["report"]),
                preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
                support_image_count=len(tensors["support/labels"]),
                trust=Trust(**metadata.get("trust", {})),
                schedule=None if schedule is None else Schedule.from_dict(schedule),
            )
        except (KeyError, TypeError, ValueError, InvalidConfigError) as error:
            raise CorruptArtifactError(
                f"{name} is not what a server writes ({type(error).__name__}: {error}); "
                "a store holds only the tasks of a server"
            ) from error

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.server.task_id

    @property
    def first_task_id(self) -> str:
        """The id of its first version, perhaps its own."""
        return self.server.first_task_id or self.server.task_id
