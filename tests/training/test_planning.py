"""Minutes become steps."""

from collections.abc import Callable
from typing import Any

import pytest

from metanas_training import planning
from metanas_training.config import NetworkConfig, Plan, TrainingConfig
from metanas_training.group import Group
from metanas_training.planning import plan_for_minutes


@pytest.fixture
def plan(
    make_config: Callable[..., TrainingConfig], make_state: Any, make_classes: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Plan]:
    """A plan where an image costs 1/16 s in the dense network, a quarter of it after the search."""
    monkeypatch.setattr(planning, "_time_batch", lambda *_, images, sparse: images / (64 if sparse else 16))

    def make(minutes: float, **values: Any) -> Plan:
        config = make_config(plan=None, minutes=minutes, **values)
        return plan_for_minutes(config, make_state(config), train=make_classes(), group=Group())

    return make


@pytest.mark.parametrize("warm_up", ["prototype", "meta"])
def test_more_minutes_make_a_longer_plan_and_every_plan_has_steps(plan: Callable[..., Plan], warm_up: str) -> None:
    assert plan(100, warm_up=warm_up).warm_up > plan(10, warm_up=warm_up).warm_up
    assert plan(0.001, warm_up=warm_up).warm_up == 1
    assert plan(100, warm_up=warm_up).joint > plan(0.001, warm_up=warm_up).joint == 1


def test_the_steps_of_a_search_fill_four_fifths_of_the_minutes(plan: Callable[..., Plan]) -> None:
    found = plan(100)
    sparse = found.search - found.fall
    # A batch is 8 images; a meta-step is 2 tasks of 2 + 1 batches of 4 images.
    seconds = 0.5 * found.warm_up + 0.3 * found.fall + 0.125 * sparse + 6 * 4 / 64 * found.joint
    assert seconds == pytest.approx(0.8 * 6000, rel=0.01)
    assert 0.125 * sparse > 0.5 * found.warm_up


def test_a_fixed_architecture_is_not_searched_and_has_no_joint_phase_without_a_share(plan: Callable[..., Plan]) -> None:
    network = NetworkConfig(kind="conv_blocks", filters=4, blocks=2)
    assert plan(100, network=network).search == 0
    assert plan(100, network=network, joint_share=0.0) == Plan(warm_up=9600)
    assert plan(100, network=network, warm_up="meta") == Plan(joint=3200)


def test_two_processes_do_in_the_same_minutes_what_they_share_twice_as_often(
    make_config: Any, make_state: Any, make_classes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_time_batch", lambda *_, images, sparse: images / (64 if sparse else 16))
    config = make_config(plan=None, minutes=100, prototype_batches=2)
    plans = []
    for size in (1, 2):
        group = Group(size=size)
        monkeypatch.setattr(Group, "largest", lambda _, value: value)
        plans.append(plan_for_minutes(config, make_state(config), train=make_classes(), group=group))
    assert plans[1].warm_up == pytest.approx(2 * plans[0].warm_up, abs=1)
    assert plans[1].joint == pytest.approx(2 * plans[0].joint, abs=1)


def test_a_sparse_batch_is_timed_on_fewer_operations_than_a_dense_one(
    make_config: Any, make_state: Any, make_classes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(plan=None)
    state = make_state(config)
    rows: list[int] = []
    forward = type(state.network).forward

    def count(self: Any, images: Any, weights: Any, *, skip_below: float) -> Any:
        rows.append(sum(int((value >= skip_below).sum()) for value in weights.values()))
        return forward(self, images, weights, skip_below=skip_below)

    monkeypatch.setattr(type(state.network), "forward", count)
    for sparse in (False, True):
        assert planning._time_batch(config, state, make_classes(), images=4, sparse=sparse) > 0
    assert rows[0] == 2 * 9 * 7  # every operation of every edge of both cells
    assert 2 * 3 <= rows[-1] <= 2 * 9
    assert not any(value.any() for value in state.architecture.values())
    assert all(parameter.grad is None for parameter in state.network.parameters())
