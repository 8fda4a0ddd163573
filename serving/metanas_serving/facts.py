"""What the server knows about a task, beside what it learnt.

    ServerFacts   id, time, seconds, warnings: kept in the task's file, in its provenance
    TaskFacts     those, and all that describes the task without its weights: what an index keeps of it

A file of the store is a complete ``task_model.pt``, so it can be taken out and used anywhere, and an index
that was lost is made again from the files.
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
    expires_unix_seconds: float = 0.0
    """When it is deleted unless an alias points at it; 0: never."""

    def written_into(self, task: TaskModel) -> TaskModel:
        """The same task with these facts in its provenance."""
        return dataclasses.replace(task, provenance={**task.provenance, _KEY: self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return {**asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; KeyError, TypeError or ValueError if no server wrote it."""
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
            expires_unix_seconds=float(values.get("expires_unix_seconds", 0.0)),
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
                server=ServerFacts.from_dict(metadata["provenance"][_KEY]),
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for an index."""
        return {
            "server": self.server.to_dict(),
            "class_names": list(self.class_names),
            "genotype": self.genotype.to_dict(),
            "report": self.report.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "support_image_count": self.support_image_count,
            "trust": self.trust.to_dict(),
            "schedule": None if self.schedule is None else self.schedule.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; KeyError, TypeError or ValueError if it is not what that made."""
        schedule = values["schedule"]
        return cls(
            server=ServerFacts.from_dict(values["server"]),
            class_names=tuple(values["class_names"]),
            genotype=Genotype.from_dict(values["genotype"]),
            report=AdaptationReport.from_dict(values["report"]),
            preprocessing=Preprocessing.from_dict(values["preprocessing"]),
            support_image_count=values["support_image_count"],
            trust=Trust(**values["trust"]),
            schedule=None if schedule is None else Schedule.from_dict(schedule),
        )

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.server.task_id

    @property
    def first_task_id(self) -> str:
        """The id of its first version, perhaps its own."""
        return self.server.first_task_id or self.server.task_id
