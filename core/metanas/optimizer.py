"""How one task's parameters move: Adam with beta_1 = 0 from stored moments, or plain gradient steps.

Adam is Reptile's. With so few steps the second moments decide the step sizes. Reptile carries them from task to
task; a server cannot depend on which task came before. So meta-training stores the moments it
reached, and every adaptation starts from that copy.

Plain steps are MAML's, whose meta-gradient is of just these steps. MAML++ learns a rate for
each parameter tensor and step.

    Parameters           what is learned, by name, in three groups
    build_optimizer      parameters, rates, moments  ->  torch.optim.Adam or torch.optim.SGD
    set_rates            learned rates of one step  ->  into the optimiser
    collect_moments      the way back; the head's rows are averaged, so that no class keeps its own

Sources: Nichol et al. (Reptile), arXiv 1803.02999; MetaNAS, Table 4; MAML++, arXiv 1810.09502.
"""

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from metanas.schedule import Schedule

BETA_2 = 0.999
STEP = "step"

NETWORK, HEAD, ARCHITECTURE = "network.", "head.", "architecture."
"""Prefixes of the names of parameters."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What one task learns."""

    network: nn.Module
    head: nn.Module
    architecture: Mapping[str, Tensor] = field(default_factory=dict)
    """Leaf tensors that require gradients; empty where the architecture is fixed."""

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """All of them, by the names that moments and learned rates are stored under."""
        for name, parameter in self.network.named_parameters():
            yield f"{NETWORK}{name}", parameter
        for name, parameter in self.head.named_parameters():
            yield f"{HEAD}{name}", parameter
        for name, value in self.architecture.items():
            yield f"{ARCHITECTURE}{name}", value


def parameter_names(network: Iterable[str], architecture: Iterable[str]) -> list[str]:
    """The names of ``Parameters.named``, from the parameter names of a network and of an architecture."""
    return [
        *(NETWORK + name for name in network),
        *(HEAD + name for name in ("weight", "bias")),
        *(ARCHITECTURE + name for name in architecture),
    ]


def build_optimizer(
    parameters: Parameters,
    moments: Mapping[str, Tensor],
    *,
    schedule: Schedule,
    rated: Collection[str] = (),
) -> Optimizer:
    """Make the optimiser of one task.

    Args:
        parameters: what it moves.
        moments: as ``collect_moments`` gives them; a name that is missing starts from zero. Plain
            steps have none.
        schedule: which optimiser, learning rates and weight decay.
        rated: names of parameters that ``set_rates`` will give rates of their own; for plain steps.
    """
    if schedule.optimizer == "sgd":
        return _plain(parameters, schedule, rated)
    groups = [
        {
            "params": [*parameters.network.parameters(), *parameters.head.parameters()],
            "lr": schedule.learning_rate,
            "weight_decay": schedule.weight_decay,
        },
        {
            "params": list(parameters.architecture.values()),
            "lr": schedule.architecture_learning_rate,
            "weight_decay": schedule.architecture_weight_decay,
        },
    ]
    optimizer = _EagerAdam([group for group in groups if group["params"]], betas=(0.0, BETA_2), fused=True)
    for name, parameter in parameters.named():
        if name in moments:
            optimizer.state[parameter] = {
                "step": moments[STEP].clone(),
                "exp_avg": torch.zeros_like(parameter),
                # In the memory layout of the parameter: the fused kernel pairs values by address, not by index.
                "exp_avg_sq": torch.empty_like(parameter, requires_grad=False).copy_(moments[name]),
            }
    return optimizer


class _Eager(Optimizer):
    """Of a class of torch's: without the import of torch's compiler that its methods begin with.

    It takes more than a second, once a process, and nothing here is compiled. The same code runs, without what
    torch's decorators put around it.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        inspect.unwrap(Optimizer.zero_grad)(self, set_to_none)

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            return inspect.unwrap(super().step.__func__)(self, closure)  # type: ignore[attr-defined]


class _EagerAdam(_Eager, Adam):
    """Adam, eager."""


class _EagerSGD(_Eager, SGD):
    """Plain steps, eager."""


def _plain(parameters: Parameters, schedule: Schedule, rated: Collection[str]) -> SGD:
    of_weights = {"lr": schedule.learning_rate, "weight_decay": schedule.weight_decay}
    of_architecture = {
        "lr": schedule.architecture_learning_rate,
        "weight_decay": schedule.architecture_weight_decay,
    }
    own: list[dict[str, Any]] = []
    weights: dict[str, Any] = {"params": [], **of_weights}
    architecture: dict[str, Any] = {"params": [], **of_architecture}
    for name, value in parameters.named():
        is_architecture = name.startswith(ARCHITECTURE)
        if name in rated:
            own.append({"params": [value], "name": name, **(of_architecture if is_architecture else of_weights)})
        else:
            (architecture if is_architecture else weights)["params"].append(value)
    # Of all parameters of a group at once: the same steps, to the bit, and a loop in C++ in place of one in Python.
    return _EagerSGD([group for group in (weights, architecture, *own) if group["params"]], foreach=True)


def set_rates(optimizer: Optimizer, step_rates: Mapping[str, Tensor], *, step: int) -> None:
    """Give plain steps the learned rates of ``step`` (from 0); steps past the last learned one have its rates.

    Args:
        optimizer: of ``build_optimizer`` with these names as ``rated``; Adam stays as it is.
        step_rates: ``(learned steps,)`` by parameter name.
    """
    for group in optimizer.param_groups:
        rates = step_rates.get(group.get("name", ""))
        if rates is not None:
            group["lr"] = rates[min(step, len(rates) - 1)].item()


def collect_moments(parameters: Parameters, optimizer: Optimizer) -> dict[str, Tensor]:
    """Second moments by parameter name; those of the head as one row for all classes.

    A parameter that no step has reached yet is left out; plain steps have none.
    """
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.named():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        second: Tensor = state["exp_avg_sq"]
        moments[name] = second.mean(dim=0) if name.startswith(HEAD) else second.clone()
        moments[STEP] = torch.maximum(state["step"], moments.get(STEP, state["step"])).clone()
    return moments
