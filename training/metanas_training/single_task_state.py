"""What changes while a single-task search runs, and the checkpoint that holds all of it.

    SearchState      weights, head, architecture, both optimisers, place in the run
    new_state        seed, settings  ->  SearchState
    save_checkpoint, load_checkpoint, restore    SearchState  <->  file

Random draws need no state: each epoch and step makes its generator from the seed and its number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from metanas.artifact import pack, unpack, write_atomically
from metanas.errors import CorruptArtifactError
from metanas.head import Head, prototype_head
from metanas.network import Network, channels_last
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import STRATEGIES, Architecture, Strategy, initial_architecture, relax
from metanas_training.errors import CheckpointError
from metanas_training.single_task_config import SingleTaskConfig
from metanas_training.single_task_images import Labelled

CHECKPOINT_KIND = "metanas-edge/single-task-checkpoint"


@dataclass
class SearchState:
    """Everything that a step reads and writes."""

    network: Network
    head: Head
    architecture: Architecture
    weight_optimizer: SGD
    architecture_optimizer: Adam
    step: int = 0
    """Steps done, each one of the architecture and one of the weights."""
    sums: dict[str, float] = field(default_factory=dict)
    """Losses and accuracies of this epoch's steps so far, added up."""
    seconds: float = 0.0
    """Time spent in steps, over all resumptions."""
    cpu_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    """What ``metrics.jsonl`` holds: a row for each epoch."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of network and head."""
        return [*self.network.parameters(), *self.head.parameters()]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run is resumed with."""

    config: SingleTaskConfig
    strategy: Strategy
    seed: int
    data: str
    """Name of the training images."""
    fingerprint: int
    """Of both halves."""


def new_state(
    config: SingleTaskConfig, *, seed: int, strategy: Strategy, examples: Labelled, preprocessing: Preprocessing
) -> SearchState:
    """Random weights from the seed, an architecture that weighs all alike, a head of prototypes.

    Args:
        examples: images of every class; their mean features are the first rows of the head.
    """
    torch.manual_seed(seed)
    space = config.space()
    network = Network(space)
    channels_last(network)
    architecture = {name: value.requires_grad_() for name, value in initial_architecture(space).items()}
    with torch.no_grad():
        mixtures = relax(architecture, space, temperature=1.0, strategy=strategy)
        features = network(
            scale(examples.images, preprocessing), {name: mixture.rows for name, mixture in mixtures.items()}
        )
    n_way = int(examples.labels.max()) + 1
    head = prototype_head(features, examples.labels, n_way=n_way, scale=config.head_scale)
    return SearchState(
        network=network,
        head=head,
        architecture=architecture,
        weight_optimizer=SGD(
            [*network.parameters(), *head.parameters()],
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        ),
        architecture_optimizer=Adam(
            list(architecture.values()),
            lr=config.architecture_learning_rate,
            betas=cast(tuple[float, float], config.architecture_betas),
            weight_decay=config.architecture_weight_decay,
        ),
    )


def save_checkpoint(path: Path, state: SearchState, settings: RunSettings) -> None:
    """Write everything that resuming needs, atomically."""
    tensors = {
        **{f"network/{name}": value for name, value in state.network.named_parameters()},
        **{f"head/{name}": value for name, value in state.head.named_parameters()},
        **{f"architecture/{name}": value for name, value in state.architecture.items()},
    }
    for name, optimizer in _optimizers(state).items():
        for index, parameter in enumerate(_learned(optimizer)):
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{name}/{index}/{key}"] = value
    metadata = {
        "config": settings.config.to_dict(),
        "strategy": settings.strategy,
        "seed": settings.seed,
        "data": settings.data,
        "fingerprint": settings.fingerprint,
        "step": state.step,
        "sums": state.sums,
        "seconds": state.seconds,
        "cpu_seconds": state.cpu_seconds,
        "history": state.history,
    }
    write_atomically(path, pack(CHECKPOINT_KIND, metadata, tensors))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a checkpoint file."""

    settings: RunSettings
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    name: str


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: there is none.
        ArtifactError: it cannot be used.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; start without --resume")
    metadata, tensors = unpack(path.read_bytes(), CHECKPOINT_KIND, name=str(path))
    try:
        if metadata["strategy"] not in STRATEGIES:
            raise ValueError(f"unknown strategy {metadata['strategy']!r}")
        settings = RunSettings(
            config=SingleTaskConfig.from_dict(metadata["config"]),
            strategy=metadata["strategy"],
            seed=int(metadata["seed"]),
            data=str(metadata["data"]),
            fingerprint=int(metadata["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{path} is incomplete or contradicts itself: {error}") from error
    return Checkpoint(settings=settings, metadata=metadata, tensors=tensors, name=str(path))


def restore(state: SearchState, checkpoint: Checkpoint) -> None:
    """Bring a new state to where the checkpoint was written.

    Raises:
        CorruptArtifactError: something is missing from it, or has another shape.
    """
    tensors, metadata = checkpoint.tensors, checkpoint.metadata
    try:
        with torch.no_grad():
            for name, parameter in state.network.named_parameters():
                parameter.copy_(tensors[f"network/{name}"])
            for name, parameter in state.head.named_parameters():
                parameter.copy_(tensors[f"head/{name}"])
            for name, alphas in state.architecture.items():
                alphas.copy_(tensors[f"architecture/{name}"])
        for name, optimizer in _optimizers(state).items():
            for index, learned in enumerate(_learned(optimizer)):
                prefix = f"{name}/{index}/"
                for key, value in tensors.items():
                    if key.startswith(prefix):
                        # In the memory layout of the parameter: the order of a sum may depend on it.
                        like = torch.empty_like(learned, requires_grad=False)
                        kept = like.copy_(value) if value.ndim else value.clone()
                        optimizer.state[learned][key.removeprefix(prefix)] = kept
        state.step, state.sums, state.history = int(metadata["step"]), metadata["sums"], metadata["history"]
        state.seconds, state.cpu_seconds = metadata["seconds"], metadata["cpu_seconds"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptArtifactError(f"{checkpoint.name} is incomplete or contradicts itself: {error}") from error


def _optimizers(state: SearchState) -> dict[str, Optimizer]:
    return {"weight_optimizer": state.weight_optimizer, "architecture_optimizer": state.architecture_optimizer}


def _learned(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
