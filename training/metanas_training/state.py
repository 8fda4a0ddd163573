"""What changes while meta-training runs, and the checkpoint that holds all of it.

    State              weights, architecture, scale, optimiser, moments, place in the plan; a ``Subject``
    save_checkpoint, load_checkpoint   State and configuration  <->  file
    start_from         a meta-model  ->  State, before the first step
    to_meta_model      State  ->  MetaModel

Random draws need no state: each step makes its generator from the seed and its own number.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from metanas.artifact import pack, unpack, write_atomically
from metanas.backbone import Backbone, build_backbone
from metanas.errors import CorruptArtifactError, InvalidConfigError
from metanas.model import MetaModel
from metanas.network import channels_last
from metanas.plain import to_plain
from metanas.preprocessing import Preprocessing
from metanas.relaxation import Architecture, initial_architecture
from metanas.schedule import Schedule
from metanas.space import Genotype, SearchSpace, Space, space_from_dict, space_to_dict
from metanas_training.config import Plan, TrainingConfig
from metanas_training.errors import CheckpointError

CHECKPOINT_KIND = "metanas-edge/training-checkpoint"

INITIAL_SCALE = 10.0
"""Of the cosine similarity, before it is learned."""


@dataclass
class State:
    """Everything that a step reads and writes."""

    network: Backbone
    architecture: Architecture
    """Empty where it is fixed."""
    log_scale: Tensor
    optimizer: Adam
    """Of the prototype and supervised losses and of MAML's outer loop; tasks have their own."""
    classifier: Tensor | None = None
    """Of the supervised warm-up: a row for each training class, ``(classes, features)``."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """Adam's second moments that Reptile carries from meta-step to meta-step."""
    step_rates: dict[str, Tensor] = field(default_factory=dict)
    """MAML++'s learned learning rates."""
    plan: Plan | None = None
    phase: int = 0
    step: int = 0
    """Steps done in this phase."""
    seconds: float = 0.0
    """Time spent in steps, over all resumptions."""
    cpu_seconds: float = 0.0
    """Processor time of this process in the same."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Accuracy on validation classes: step, seconds, accuracy."""


def new_state(config: TrainingConfig, *, space: Space, genotype: Genotype | None, classes: int | None = None) -> State:
    """Random weights from the seed, an architecture that weighs all alike.

    Args:
        classes: of the training split, where a classifier over all of them is trained.
    """
    torch.manual_seed(config.seed)
    network = build_backbone(space, genotype).to(config.device)
    channels_last(network)
    architecture: Architecture = {}
    if genotype is None and isinstance(space, SearchSpace):
        architecture = {
            name: value.to(config.device).requires_grad_() for name, value in initial_architecture(space).items()
        }
    log_scale = torch.tensor(INITIAL_SCALE, device=config.device).log().requires_grad_()
    classifier = None
    if classes is not None:
        classifier = (torch.randn(classes, space.features) / space.features**0.5).to(config.device).requires_grad_()
    weights = [*network.parameters(), log_scale, *([] if classifier is None else [classifier])]
    optimizer = Adam(
        [
            {"params": weights, "lr": config.prototype_learning_rate},
            {
                "params": list(architecture.values()),
                "lr": 0.0,  # the loop sets both rates at every step
                "betas": (0.5, 0.999),
                "weight_decay": 1e-3,
            },
        ],
        fused=True,
    )
    return State(
        network=network, architecture=architecture, log_scale=log_scale, optimizer=optimizer, classifier=classifier
    )


def start_from(state: State, meta: MetaModel, *, name: str) -> None:
    """Begin with weights, architecture and scale of a meta-model; the time that they took counts as this run's.

    Weights are found by their names, so a fixed architecture takes those of its operations out of a one-shot network.

    Args:
        name: what messages call the meta-model.

    Raises:
        InvalidConfigError: it lacks weights of this network, or has them in other sizes.
    """
    given = dict(meta.weights)
    architecture = state.architecture if meta.searches else {}
    for kind, there, wanted in (
        ("weights", given, dict(state.network.named_parameters())),
        ("architecture parameters", dict(meta.architecture), architecture),
    ):
        wrong = [key for key, value in wanted.items() if key not in there or there[key].shape != value.shape]
        if wrong:
            found = f"of shape {tuple(there[wrong[0]].shape)}" if wrong[0] in there else "missing"
            raise InvalidConfigError(
                f"{name} does not fit this network: {len(wrong)} of {len(wanted)} {kind} differ, {wrong[0]} has to be "
                f"of shape {tuple(wanted[wrong[0]].shape)} and is {found}; set [network] as it was trained"
            )
    with torch.no_grad():
        for key, parameter in state.network.named_parameters():
            parameter.copy_(given[key])
        for key, value in architecture.items():
            value.copy_(meta.architecture[key])
        state.log_scale.fill_(math.log(meta.head_scale))
    state.seconds = float(meta.provenance.get("training_seconds", 0.0))
    state.cpu_seconds = float(meta.provenance.get("training_cpu_seconds", 0.0))


def to_meta_model(
    state: State, *, preprocessing: Preprocessing, schedule: Schedule, provenance: dict[str, Any]
) -> MetaModel:
    """A snapshot as a meta-model, on the CPU."""
    return MetaModel(
        space=state.network.space,
        genotype=state.network.genotype,
        weights={name: _kept(value) for name, value in state.network.named_parameters()},
        architecture={name: _kept(value) for name, value in state.architecture.items()},
        head_scale=state.log_scale.exp().item(),
        preprocessing=preprocessing,
        schedule=schedule,
        moments={name: _kept(value) for name, value in state.moments.items()},
        step_rates={name: _kept(value) for name, value in state.step_rates.items()},
        provenance=provenance,
    )


def save_checkpoint(path: Path, state: State, config: TrainingConfig) -> None:
    """Write everything that resuming needs, atomically."""
    tensors = {
        **{f"network/{name}": value for name, value in state.network.named_parameters()},
        **{f"architecture/{name}": value for name, value in state.architecture.items()},
        **{f"moments/{name}": value for name, value in state.moments.items()},
        **{f"step_rates/{name}": value for name, value in state.step_rates.items()},
        "log_scale": state.log_scale,
    }
    if state.classifier is not None:
        tensors["classifier"] = state.classifier
    genotype = state.network.genotype
    for index, parameter in enumerate(_parameters(state.optimizer)):
        for name, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{index}/{name}"] = value
    metadata = {
        "config": config.to_dict(),
        "space": space_to_dict(state.network.space),
        "genotype": None if genotype is None else genotype.to_dict(),
        "plan": None if state.plan is None else to_plain(state.plan),
        "phase": state.phase,
        "step": state.step,
        "seconds": state.seconds,
        "cpu_seconds": state.cpu_seconds,
        "history": state.history,
    }
    write_atomically(path, pack(CHECKPOINT_KIND, metadata, tensors))


def checkpoint_config(path: Path) -> TrainingConfig:
    """The configuration alone, before it is known on which device the rest belongs.

    Raises:
        CheckpointError, ArtifactError: as ``load_checkpoint``.
    """
    metadata, _ = _read(path)
    try:
        return TrainingConfig.from_dict(metadata["config"])
    except (KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path} is incomplete or contradicts itself: {error}") from error


def load_checkpoint(path: Path) -> tuple[TrainingConfig, State]:
    """Read a checkpoint.

    Raises:
        CheckpointError: there is none.
        ArtifactError: it cannot be used.
    """
    metadata, tensors = _read(path)
    try:
        return _from_parts(metadata, tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CorruptArtifactError(f"{path} is incomplete or contradicts itself: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; start without --resume")
    return unpack(path.read_bytes(), CHECKPOINT_KIND, name=str(path))


def _from_parts(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[TrainingConfig, State]:
    config = TrainingConfig.from_dict(metadata["config"])
    plan = Plan(**metadata["plan"]) if metadata["plan"] else None
    device = config.device
    if device == "cuda" and not torch.cuda.is_available():
        if plan is None or metadata["phase"] < len(plan.phases()):
            raise CheckpointError(
                "the run was on a CUDA device, and torch sees none here; resume it where there is one"
            )
        device = "cpu"  # all steps are done; what is left never runs on a GPU
    state = new_state(
        replace(config, device=device, precision="float32"),
        space=space_from_dict(metadata["space"]),
        genotype=None if metadata["genotype"] is None else Genotype.from_dict(metadata["genotype"]),
        classes=len(tensors["classifier"]) if "classifier" in tensors else None,
    )
    with torch.no_grad():
        for name, parameter in state.network.named_parameters():
            parameter.copy_(tensors[f"network/{name}"])
        for name, alphas in state.architecture.items():
            alphas.copy_(tensors[f"architecture/{name}"])
        state.log_scale.copy_(tensors["log_scale"])
        if state.classifier is not None:
            state.classifier.copy_(tensors["classifier"])
    for index, learned in enumerate(_parameters(state.optimizer)):
        prefix = f"optimizer/{index}/"
        saved = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for name, value in saved.items():
            # In the memory layout of the parameter: the order of a sum may depend on it.
            like = torch.empty_like(learned if value.ndim else value, device=learned.device, requires_grad=False)
            state.optimizer.state[learned][name] = like.copy_(value)
    for prefix, values in (("moments/", state.moments), ("step_rates/", state.step_rates)):
        values.update(
            {key.removeprefix(prefix): value.to(device) for key, value in tensors.items() if key.startswith(prefix)}
        )
    state.plan = plan
    state.phase, state.step = metadata["phase"], metadata["step"]
    state.seconds, state.cpu_seconds = metadata["seconds"], metadata["cpu_seconds"]
    state.history = metadata["history"]
    return config, state


def _kept(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _parameters(optimizer: Adam) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
