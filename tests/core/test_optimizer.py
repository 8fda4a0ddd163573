"""Adam with beta_1 = 0 and stored moments, by hand and through a change of memory layout."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from metanas.head import Head
from metanas.optimizer import STEP, Parameters, build_optimizer, collect_moments, set_rates
from metanas.schedule import Schedule

RATES = Schedule(learning_rate=0.1, architecture_learning_rate=0.01, architecture_weight_decay=0.0)


class _Weights(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)


def test_a_step_from_stored_moments_by_hand() -> None:
    parameters = Parameters(_Weights(torch.tensor([1.0])), Head(1, 2), {"alpha": torch.zeros(1, requires_grad=True)})
    moments = {
        "network.values": torch.tensor([0.5]),
        "architecture.alpha": torch.tensor([2.0]),
        STEP: torch.tensor(9.0),
    }
    optimizer = build_optimizer(parameters, moments, schedule=RATES)
    parameters.network.values.grad = torch.tensor([3.0])
    parameters.architecture["alpha"].grad = torch.tensor([-1.0])
    optimizer.step()

    correction = 1 - 0.999**10
    second = 0.999 * 0.5 + 0.001 * 9.0
    assert parameters.network.values.item() == pytest.approx(1.0 - 0.1 * 3.0 / (second / correction) ** 0.5, rel=1e-5)
    second = 0.999 * 2.0 + 0.001 * 1.0
    assert parameters.architecture["alpha"].item() == pytest.approx(0.01 / (second / correction) ** 0.5, rel=1e-5)


def test_from_zero_the_first_step_is_the_learning_rate_whatever_the_gradient() -> None:
    parameters = Parameters(_Weights(torch.zeros(3)), Head(1, 2))
    optimizer = build_optimizer(parameters, {}, schedule=RATES)
    parameters.network.values.grad = torch.tensor([1e-3, -5.0, 100.0])
    optimizer.step()
    torch.testing.assert_close(parameters.network.values.detach(), torch.tensor([-0.1, 0.1, -0.1]), rtol=1e-3, atol=0)


def test_the_architecture_decays_and_the_weights_do_not() -> None:
    parameters = Parameters(_Weights(torch.ones(1)), Head(1, 2), {"alpha": torch.ones(1, requires_grad=True)})
    optimizer = build_optimizer(parameters, {}, schedule=replace(RATES, architecture_weight_decay=0.5))
    parameters.network.values.grad = torch.zeros(1)
    parameters.architecture["alpha"].grad = torch.zeros(1)
    optimizer.step()
    assert parameters.network.values.item() == 1.0
    assert parameters.architecture["alpha"].item() == pytest.approx(0.99)


@pytest.mark.parametrize("shape", [(4, 3, 1, 5), (4, 3, 5, 1), (6, 3, 3, 3), (4, 1, 3, 3), (4, 4, 1, 1)])
def test_a_moment_meets_its_own_weight_whatever_the_memory_layout(shape: tuple[int, ...]) -> None:
    """Files hold moments row by row; weights lie in channels_last. Adam's fused kernel reads both by address."""
    torch.manual_seed(0)
    values, gradient, moment = torch.randn(shape), torch.randn(shape), torch.rand(shape)

    def after(layout: torch.memory_format) -> Tensor:
        parameters = Parameters(_Weights(values.clone(memory_format=layout)), Head(1, 2))
        stored = {"network.values": moment.clone(), STEP: torch.tensor(100.0)}
        optimizer = build_optimizer(parameters, stored, schedule=RATES)
        parameters.network.values.grad = gradient.clone(memory_format=layout)
        optimizer.step()
        return parameters.network.values.detach()

    torch.testing.assert_close(after(torch.channels_last), after(torch.contiguous_format))


def test_collected_moments_of_the_head_are_one_row_that_all_classes_start_from() -> None:
    parameters = Parameters(_Weights(torch.ones(1)), Head(2, 2), {"alpha": torch.zeros(1, requires_grad=True)})
    optimizer = build_optimizer(parameters, {}, schedule=RATES)
    parameters.head.weight.grad = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    parameters.head.bias.grad = torch.tensor([1.0, 3.0])
    optimizer.step()
    moments = collect_moments(parameters, optimizer)
    # 0.001 times the mean over classes of the squares: (1 + 9) / 2, (4 + 0) / 2; (1 + 9) / 2.
    torch.testing.assert_close(moments["head.weight"], torch.tensor([0.005, 0.002]))
    torch.testing.assert_close(moments["head.bias"], torch.tensor(0.005))
    assert moments[STEP].item() == 1
    assert "network.values" not in moments  # no step has reached it

    other = Parameters(_Weights(torch.ones(1)), Head(2, 3))
    started = build_optimizer(other, moments, schedule=RATES).state[other.head.weight]
    torch.testing.assert_close(started["exp_avg_sq"], torch.tensor([[0.005, 0.002]] * 3))


def test_collecting_and_building_again_change_no_stored_moment() -> None:
    moments = {"network.values": torch.tensor([0.5]), STEP: torch.tensor(9.0)}
    parameters = Parameters(_Weights(torch.ones(1)), Head(1, 2))
    optimizer = build_optimizer(parameters, moments, schedule=RATES)
    parameters.network.values.grad = torch.ones(1)
    optimizer.step()
    collected = collect_moments(parameters, optimizer)
    optimizer.step()
    assert moments == {"network.values": torch.tensor([0.5]), STEP: torch.tensor(9.0)}
    assert collected[STEP].item() == 10


def test_steps_are_those_of_torchs_adam_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=generator)
    gradients = torch.randn(5, 50, generator=generator)
    parameters = Parameters(_Weights(start.clone()), Head(1, 2))
    ours = build_optimizer(parameters, {}, schedule=RATES)
    plain = nn.Parameter(start.clone())
    torchs = Adam([plain], lr=RATES.learning_rate, betas=(0.0, 0.999), fused=True)
    for gradient in gradients:
        for optimizer, parameter in ((ours, parameters.network.values), (torchs, plain)):
            optimizer.zero_grad(set_to_none=True)
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(parameters.network.values, plain)


def test_plain_steps_take_the_rate_of_their_group_or_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = Parameters(
        _Weights(torch.randn(50, generator=generator)), Head(3, 2), {"alpha": torch.ones(4, requires_grad=True)}
    )
    schedule = replace(RATES, optimizer="sgd")
    optimizer = build_optimizer(parameters, {}, schedule=schedule, rated=["head.bias"])
    before, expected = {name: value.detach().clone() for name, value in parameters.named()}, {}
    for name, value in parameters.named():
        value.grad = torch.randn(value.shape, generator=generator)
        rate = {"head.bias": 0.7, "architecture.alpha": 0.01}.get(name, 0.1)
        expected[name] = before[name].add(value.grad, alpha=-rate)
    set_rates(optimizer, {"head.bias": torch.tensor([0.3, 0.7])}, step=5)
    optimizer.step()
    assert all(torch.equal(value, expected[name]) for name, value in parameters.named())
    assert len(optimizer.param_groups) == 3  # not one for each parameter


_LEARN = """
import sys, torch
from metanas.backbone import build_backbone
from metanas.head import Head
from metanas.model import empty_backbone
from metanas.optimizer import Parameters, build_optimizer
from metanas.schedule import Schedule
from metanas.space import SearchSpace
space = SearchSpace(channels=2, cells=1, reduction_cells=(), nodes=1, operations=("skip_connect",))
state = torch.get_rng_state()
network = empty_backbone(space, None)
assert torch.equal(state, torch.get_rng_state()), "random numbers were used"
optimizer = build_optimizer(Parameters(network, Head(2, 2)), {}, schedule=Schedule(optimizer=sys.argv[1]))
for parameter in network.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizer.step()
optimizer.zero_grad(set_to_none=True)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_process_that_learns_never_loads_torchs_compiler(optimizer: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LEARN, optimizer], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.strip() == "[]"
