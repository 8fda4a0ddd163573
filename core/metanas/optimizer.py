"""Adam with beta_1 = 0, started from stored second moments.

With so few steps the second moments decide the step sizes. Reptile carries them from task to
task; a server cannot depend on which task came before. So meta-training stores the moments it
reached, and every adaptation starts from that copy.

    Parameters           what is learned, by name, in three groups
    build_optimizer      parameters, rates, moments  ->  torch.optim.Adam
    collect_moments      the way back; the head's rows are averaged, so that no class keeps its own

Source: Nichol et al. (Reptile), arXiv 1803.02999; MetaNAS, Table 4.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Adam

BETA_2 = 0.999
STEP = "step"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What one task learns."""

    network: nn.Module
    head: nn.Module
    architecture: Mapping[str, Tensor] = field(default_factory=dict)
    """Leaf tensors that require gradients; empty where the architecture is fixed."""

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """All of them, by the names that moments are stored under."""
        for name, parameter in self.network.named_parameters():
            yield f"network.{name}", parameter
        for name, parameter in self.head.named_parameters():
            yield f"head.{name}", parameter
        for name, value in self.architecture.items():
            yield f"architecture.{name}", value


def build_optimizer(
    parameters: Parameters,
    moments: Mapping[str, Tensor],
    *,
    learning_rate: float,
    architecture_learning_rate: float,
    architecture_weight_decay: float,
) -> Adam:
    """Make the optimiser of one task.

    Args:
        parameters: what it moves.
        moments: as ``collect_moments`` gives them; a name that is missing starts from zero.
        learning_rate: of network and head, without weight decay.
        architecture_learning_rate, architecture_weight_decay: of the architecture.
    """
    groups = [
        {"params": [*parameters.network.parameters(), *parameters.head.parameters()], "lr": learning_rate},
        {
            "params": list(parameters.architecture.values()),
            "lr": architecture_learning_rate,
            "weight_decay": architecture_weight_decay,
        },
    ]
    optimizer = Adam([group for group in groups if group["params"]], betas=(0.0, BETA_2), fused=True)
    for name, parameter in parameters.named():
        if name in moments:
            optimizer.state[parameter] = {
                "step": moments[STEP].clone(),
                "exp_avg": torch.zeros_like(parameter),
                # In the memory layout of the parameter: the fused kernel pairs values by address, not by index.
                "exp_avg_sq": torch.empty_like(parameter, requires_grad=False).copy_(moments[name]),
            }
    return optimizer


def collect_moments(parameters: Parameters, optimizer: Adam) -> dict[str, Tensor]:
    """Second moments by parameter name; those of the head as one row for all classes.

    A parameter that no step has reached yet is left out.
    """
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.named():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        second: Tensor = state["exp_avg_sq"]
        moments[name] = second.mean(dim=0) if name.startswith("head.") else second.clone()
        moments[STEP] = torch.maximum(state["step"], moments.get(STEP, state["step"])).clone()
    return moments
