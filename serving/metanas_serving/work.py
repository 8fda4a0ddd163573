"""What passes between the server and an adaptation process, over a pipe.

    server -> process    Start once, then Order after Order, perhaps with a Stop behind it
    process -> server    Ready or Failed once, then for each Order StepReport after StepReport, among them
                         Pruned, and last Done or Failed

Plain values and arrays. Both ends are ours and the pipe is private, so pickling them is safe.
"""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metanas.progress import StepReport

if TYPE_CHECKING:  # they need torch, which the server imports while its first process starts
    from metanas.schedule import Schedule
    from metanas.space import Genotype


@dataclass(frozen=True, slots=True)
class Start:
    """What every order of the process stands on."""

    meta: bytes
    """Content of ``meta.pt``; not its path, for a file may change while the server runs."""
    meta_name: str
    """What errors call it."""
    torch_threads: int
    memory_bytes: int | None = None
    """That the process may take; None: no bound."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a new version of a task is an update of."""

    version: int
    """Of the new one."""
    parent_task_id: str
    first_task_id: str


@dataclass(frozen=True, slots=True)
class Order:
    """One task to learn."""

    task_id: str
    images: NDArray[np.uint8]
    """``(images, channels, height, width)``, prepared."""
    labels: tuple[int, ...]
    """Class number of each image."""
    class_names: tuple[str, ...]
    seed: int
    schedule: "Schedule"
    """How it is learnt."""
    request_sha256: str
    """Of the support set, seed and options, in hexadecimal: tells whether a request is the same."""
    warnings: tuple[str, ...] = ()
    """What is to be told about the task."""
    lineage: Lineage | None = None
    """What it is an update of; None: of nothing."""
    tenant: str = ""
    """Whose task it is to be."""
    ttl_seconds: float = 0.0
    """How long the task is kept once it is learnt; 0: for good."""
    threads: int = 1
    """Cores that it may use: as many as no other order needs. What is learnt does not depend on it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the order that is being worked on; nothing if there is none."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The architecture is chosen."""

    genotype: "Genotype"
    parameter_count: int
    """Head included."""


@dataclass(frozen=True, slots=True)
class Done:
    """The order is done."""

    data: bytes
    """Content of ``task_model.pt``, with the server's facts in its provenance."""
    onnx: bytes
    """The same task as ONNX: built where it disturbs no answer."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has loaded the meta-model and learnt a first, made-up task."""

    warm_up: Done


@dataclass(frozen=True, slots=True)
class Failed:
    """The order was not done, or the process cannot start."""

    error: Exception
    """Of the core's tree or of ours."""


Progress: TypeAlias = StepReport | Pruned
Message: TypeAlias = Start | Order | Stop | Ready | Progress | Done | Failed
Pipe: TypeAlias = "Connection[Message, Message]"  # quoted: the class takes no parameters at run time
