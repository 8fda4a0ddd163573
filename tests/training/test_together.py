"""Tasks learned together against the same tasks learned one by one.

In float64 the two agree to rounding from the very first step. In float32 they agree to 1e-4 once
Adam's moments are those of a run: from moments of zero its first step is the rate times the
sign of the gradient, so where all there is of a gradient is rounding, the sign is a toss of a coin.
A bias before a batch norm has no other gradient ever, and is left out of the comparison.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

import metanas_training.reptile
import metanas_training.together
from metanas.errors import InvalidConfigError
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas.statistics import measuring
from metanas.steps import operation_weights
from metanas_training.config import NetworkConfig, Plan
from metanas_training.episodes import generator_for, sample_episode
from metanas_training.errors import NonFiniteError
from metanas_training.meta_learner import ARCHITECTURE, MOMENTS, NETWORK, Contribution, MetaTask
from metanas_training.reptile import Reptile, live_parameters, task_tensors
from metanas_training.stacked import measure_statistics
from metanas_training.state import State
from metanas_training.together import TogetherReptile

SCHEDULE = Schedule(architecture_steps=2, weight_steps=0, batch_size=4, skip_below=0.0)
LOOP = Reptile(
    schedule=SCHEDULE,
    preprocessing=Preprocessing(height=8, width=8),
    learning_rate=0.5,
    architecture_learning_rate=0.25,
)
NETWORKS = {
    "search": NetworkConfig(channels=4, cells=2, nodes=2, reduction_cells=(1,)),
    "wide": NetworkConfig(channels=10, cells=2, nodes=2, reduction_cells=(0, 1)),
    "fixed": NetworkConfig(
        kind="fixed", genotype="autometa", nodes=5, affine=True, channels=4, cells=2, reduction_cells=(1,)
    ),
    "conv_blocks": NetworkConfig(kind="conv_blocks", filters=6, blocks=2),
}
CASES = {
    "search": ("search", LOOP, True),
    "search, wide": ("wide", LOOP, True),
    "search, architecture still": ("search", LOOP, False),
    "search, DropPath": ("search", replace(LOOP, drop_path=0.3), True),
    "search, Gumbel noise": ("search", replace(LOOP, schedule=replace(SCHEDULE, relaxation="gumbel")), True),
    "search, distortions": ("search", replace(LOOP, schedule=replace(SCHEDULE, augmentation=0.5)), True),
    "search, one-hot": ("search", replace(LOOP, schedule=replace(SCHEDULE, relaxation="gumbel_hard")), True),
    "search, everything random": (
        "search",
        replace(LOOP, drop_path=0.3, schedule=replace(SCHEDULE, relaxation="gumbel", strategy="operations")),
        True,
    ),
    "search, weight decay": ("search", replace(LOOP, schedule=replace(SCHEDULE, weight_decay=0.1)), True),
    "search, plain steps": ("search", replace(LOOP, schedule=replace(SCHEDULE, optimizer="sgd")), True),
    "fixed": ("fixed", LOOP, False),
    "fixed, DropPath": ("fixed", replace(LOOP, drop_path=0.3), False),
    "conv_blocks": ("conv_blocks", LOOP, False),
}

MakeSubject = Callable[..., State]
MakeTasks = Callable[..., list[MetaTask]]


@pytest.fixture
def make_subject(make_config: Any, make_state: Any) -> MakeSubject:
    """A subject whose architecture parameters differ."""

    def make(kind: str, *, dtype: torch.dtype = torch.float32) -> State:
        subject: State = make_state(make_config(network=NETWORKS[kind], plan=Plan(joint=1)))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for value in subject.architecture.values():
                value += torch.randn(value.shape, generator=generator)
        subject.network.to(dtype)
        subject.architecture = {
            name: value.detach().to(dtype).requires_grad_() for name, value in subject.architecture.items()
        }
        subject.log_scale = subject.log_scale.detach().to(dtype).requires_grad_()
        return subject

    return make


@pytest.fixture
def make_tasks(make_classes: Any) -> MakeTasks:
    """Tasks with fresh generators at every call."""

    def make(count: int = 3, *, n_way: int = 3, n_shot: int = 2, first: int = 0) -> list[MetaTask]:
        classes = make_classes()
        return [
            MetaTask(
                sample_episode(classes, n_way=n_way, n_shot=n_shot, n_query=0, generator=generator_for(0, task)),
                generator_for(1, task),
            )
            for task in range(first, first + count)
        ]

    return make


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both paths compute in float64."""

    def doubled(*arguments: Any, **options: Any) -> Any:
        data = task_tensors(*arguments, **options)
        return replace(data, images=data.images.double(), class_weights=data.class_weights.double())

    for module in (metanas_training.reptile, metanas_training.together):
        monkeypatch.setattr(module, "task_tensors", doubled)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _biases_before_a_norm(subject: State) -> set[str]:
    """Parameters without a gradient: a batch norm takes away what they add."""
    return {
        f"{prefix}{name}.bias"
        for name, module in subject.network.named_modules()
        if isinstance(module, nn.Conv2d) and module.bias is not None
        for prefix in (NETWORK, f"{MOMENTS}network.")
    }


def _warm(subject: State, learner: Reptile, make_tasks: MakeTasks, *, learn_architecture: bool, steps: int = 3) -> None:
    """Some meta-steps, for moments; one task after the other."""
    for step in range(steps):
        part = learner.learn(subject, make_tasks(2, first=100 + 2 * step), learn_architecture=learn_architecture)
        learner.move(subject, part.mean(), decay=1.0, learn_architecture=learn_architecture)


def _distances(one: Contribution, other: Contribution, subject: State) -> dict[str, float]:
    """For each name the largest difference relative to the largest value.

    Differences within the spacing of the subject's own numbers do not count: a change of a weight is only known
    to so much after the weight has been rounded at every step of every task.
    """
    assert one.values.keys() == other.values.keys()
    assert one.tasks == other.tasks
    spacings = {
        name: one.tasks * SCHEDULE.architecture_steps * torch.finfo(value.dtype).eps * value.abs().max().item()
        for name, value in live_parameters(subject).items()
    }
    distances = {}
    for name, value in one.values.items():
        largest = other.values[name].abs().max().item()
        distance = (value - other.values[name]).abs().max().item() - spacings.get(name, 0.0)
        distances[name] = distance / max(largest, 1e-300) if distance > 0 else 0.0
    return distances


def _assert_close(one: Contribution, other: Contribution, subject: State, *, relative: float) -> None:
    without = _biases_before_a_norm(subject)
    far = {
        name: distance
        for name, distance in _distances(one, other, subject).items()
        if not distance <= relative and name not in without
    }
    assert not far
    assert one.loss == pytest.approx(other.loss, rel=relative)
    assert one.accuracy == pytest.approx(other.accuracy, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("float64")
def test_in_float64_tasks_learn_the_same_together_and_one_by_one(
    case: str, make_subject: MakeSubject, make_tasks: MakeTasks
) -> None:
    kind, loop, learn_architecture = CASES[case]
    subject = make_subject(kind, dtype=torch.float64)
    alone = loop.learn(subject, make_tasks(), learn_architecture=learn_architecture)
    together = TogetherReptile(loop).learn(subject, make_tasks(), learn_architecture=learn_architecture)
    _assert_close(together, alone, subject, relative=1e-9)
    moved = [name for name, value in together.values.items() if name.startswith(ARCHITECTURE) and value.any()]
    assert bool(moved) == learn_architecture


@pytest.mark.parametrize("case", CASES)
def test_in_float32_tasks_learn_the_same_once_there_are_moments(
    case: str, make_subject: MakeSubject, make_tasks: MakeTasks
) -> None:
    kind, loop, learn_architecture = CASES[case]
    subject = make_subject(kind)
    _warm(subject, loop, make_tasks, learn_architecture=learn_architecture)
    alone = loop.learn(subject, make_tasks(), learn_architecture=learn_architecture)
    together = TogetherReptile(loop).learn(subject, make_tasks(), learn_architecture=learn_architecture)
    _assert_close(together, alone, subject, relative=1e-4)


@pytest.mark.parametrize("case", ["search, everything random", "fixed, DropPath"])
def test_each_task_draws_as_much_from_its_generator_as_alone(
    case: str, make_subject: MakeSubject, make_tasks: MakeTasks
) -> None:
    kind, loop, learn_architecture = CASES[case]
    subject, tasks, others = make_subject(kind), make_tasks(2), make_tasks(2)
    loop.learn(subject, tasks, learn_architecture=learn_architecture)
    TogetherReptile(loop).learn(subject, others, learn_architecture=learn_architecture)
    for one, other in zip(tasks, others, strict=True):
        assert torch.equal(one.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize(("kind", "learn_architecture"), [("search", True), ("fixed", False), ("conv_blocks", False)])
def test_adapted_tasks_have_the_statistics_of_their_support_sets(
    kind: str, learn_architecture: bool, make_subject: MakeSubject, make_tasks: MakeTasks
) -> None:
    subject = make_subject(kind)
    _warm(subject, LOOP, make_tasks, learn_architecture=learn_architecture)
    tasks = make_tasks()
    images = [task_tensors(task, preprocessing=LOOP.preprocessing, device=torch.device("cpu")).images for task in tasks]

    def weights(network: Any, architecture: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return operation_weights(network, architecture, schedule=SCHEDULE, temperature=SCHEDULE.temperature_end)

    alone = []
    for task, support in zip(make_tasks(), images, strict=True):
        change = LOOP.learn(subject, [task], learn_architecture=learn_architecture).values
        one = copy.deepcopy(subject)
        with torch.no_grad():
            for name, value in live_parameters(one).items():
                value.copy_(value.double() + change[name])
            with measuring(one.network):
                one.network(support, weights(one.network, one.architecture))
        alone.append(dict(one.network.named_buffers()))

    adapted = TogetherReptile(LOOP).adapt(subject, tasks, learn_architecture=learn_architecture)
    architecture = adapted.parameters.architecture
    each = [
        weights(subject.network, {name: value[task].detach() for name, value in architecture.items()}) or {}
        for task in range(len(tasks))
    ]
    stacked = {name: torch.stack([one[name] for one in each]) for name in each[0]} or None
    network: Any = adapted.parameters.network
    before = {name: value.clone() for name, value in network.named_buffers()}
    statistics = measure_statistics(network, torch.stack(images), weights=stacked)
    assert statistics.keys() == {name for name in before if name.endswith((".mean", ".variance"))}
    for name, values in statistics.items():
        for value, of_task in zip(values, alone, strict=True):
            if name in _means_after_a_bias(subject):
                continue
            largest = of_task[name].abs().max().item()
            torch.testing.assert_close(value, of_task[name], rtol=0, atol=1e-4 * max(largest, 1e-2), msg=name)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def _means_after_a_bias(subject: State) -> set[str]:
    """A mean follows the bias of its convolution wherever rounding leads it."""
    return {"norms.0.mean", "norms.1.mean"} if _biases_before_a_norm(subject) else set()


def test_an_operation_that_a_task_skips_changes_nothing_in_it(make_subject: MakeSubject, make_tasks: MakeTasks) -> None:
    subject = make_subject("search")
    skipping = replace(LOOP, schedule=replace(SCHEDULE, skip_below=9e-3, temperature_end=0.3))
    _warm(subject, LOOP, make_tasks, learn_architecture=True)
    alone = skipping.learn(subject, make_tasks(), learn_architecture=True)
    together = TogetherReptile(skipping).learn(subject, make_tasks(), learn_architecture=True)
    every = LOOP.learn(subject, make_tasks(), learn_architecture=True)
    assert any(value > 0.1 for value in _distances(every, alone, subject).values())
    far = {
        name: distance
        for name, distance in _distances(together, alone, subject).items()
        # The moments of what is skipped fade by beta_2 at each step, where alone they stay.
        if not distance <= (2.1e-3 if name.startswith(MOMENTS) else 1e-4)
    }
    assert not far


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_change_nothing(chunk: int, make_subject: MakeSubject, make_tasks: MakeTasks) -> None:
    subject = make_subject("search")
    _warm(subject, LOOP, make_tasks, learn_architecture=True)
    whole = TogetherReptile(LOOP).learn(subject, make_tasks(), learn_architecture=True)
    parts = TogetherReptile(LOOP, chunk=chunk).learn(subject, make_tasks(), learn_architecture=True)
    _assert_close(parts, whole, subject, relative=1e-4)


@pytest.mark.parametrize("kind", ["search", "conv_blocks"])
def test_learning_leaves_the_subject_as_it_was_to_the_bit(
    kind: str, make_subject: MakeSubject, make_tasks: MakeTasks
) -> None:
    subject = make_subject(kind)
    _warm(subject, LOOP, make_tasks, learn_architecture=kind == "search", steps=1)
    before = copy.deepcopy(subject)
    TogetherReptile(LOOP).learn(subject, make_tasks(), learn_architecture=True)
    for name, value in {**live_parameters(subject), **dict(subject.network.named_buffers())}.items():
        assert torch.equal(value, {**live_parameters(before), **dict(before.network.named_buffers())}[name]), name
    assert subject.moments.keys() == before.moments.keys()
    assert all(torch.equal(value, before.moments[name]) for name, value in subject.moments.items())
    assert subject.network.training


def test_the_move_is_reptiles(make_subject: MakeSubject, make_tasks: MakeTasks) -> None:
    subject, other = make_subject("search"), make_subject("search")
    learner = TogetherReptile(LOOP)
    mean = learner.learn(subject, make_tasks(), learn_architecture=True).mean()
    learner.move(subject, mean, decay=0.5, learn_architecture=True)
    LOOP.move(other, mean, decay=0.5, learn_architecture=True)
    for name, value in live_parameters(subject).items():
        assert torch.equal(value, live_parameters(other)[name]), name
    assert subject.moments["step"].item() == SCHEDULE.architecture_steps


@pytest.mark.parametrize("kind", ["search", "conv_blocks"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_moves_the_weights_much_the_same_way(
    precision: Any, kind: str, make_subject: MakeSubject, make_tasks: MakeTasks
) -> None:
    subject = make_subject(kind)
    _warm(subject, LOOP, make_tasks, learn_architecture=kind == "search")
    full = TogetherReptile(LOOP).learn(subject, make_tasks(), learn_architecture=True)
    low = TogetherReptile(LOOP, precision=precision).learn(subject, make_tasks(), learn_architecture=True)
    assert low.loss == pytest.approx(full.loss, rel=0.1)
    without = _biases_before_a_norm(subject)
    names = [name for name in full.values if not name.startswith(MOMENTS) and name not in without]
    one, other = (torch.cat([part.values[name].flatten() for name in names]) for part in (full, low))
    assert not torch.equal(one, other)
    assert nn.functional.cosine_similarity(one, other, dim=0) > 0.95


def test_a_gradient_that_overflows_is_taken_again_with_a_smaller_factor(
    make_subject: MakeSubject, make_tasks: MakeTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, learner = make_subject("conv_blocks"), TogetherReptile(LOOP, precision="float16")
    _warm(subject, LOOP, make_tasks, learn_architecture=False)
    plain = learner.learn(subject, make_tasks(), learn_architecture=False)
    monkeypatch.setattr(
        metanas_training.together,
        "GradScaler",
        lambda device, enabled: GradScaler(device, init_scale=2.0**40, enabled=enabled),
    )
    again = learner.learn(subject, make_tasks(), learn_architecture=False)
    assert again.values["moments/step"].item() == plain.values["moments/step"].item()
    one, other = (part.values["network/convs.0.weight"].flatten() for part in (plain, again))
    assert nn.functional.cosine_similarity(one, other, dim=0) > 0.99


def test_tasks_of_unequal_shapes_are_refused(make_subject: MakeSubject, make_tasks: MakeTasks) -> None:
    tasks = [*make_tasks(2), *make_tasks(1, n_way=4)]
    with pytest.raises(
        InvalidConfigError,
        match=r"task 3 has 4 classes and images \(8, 1, 8, 8\), task 1 has 3 and \(6, 1, 8, 8\); .*one by one",
    ):
        TogetherReptile(LOOP).learn(make_subject("conv_blocks"), tasks, learn_architecture=False)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="unknown precision 'int8'; known are float32, bfloat16, float16"):
        TogetherReptile(LOOP, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(InvalidConfigError, match="chunk must be at least 1 task, got 0"):
        TogetherReptile(LOOP, chunk=0)


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_loss_that_is_no_number_names_step_and_task(
    chunk: int | None, make_subject: MakeSubject, make_tasks: MakeTasks
) -> None:
    subject: Any = make_subject("conv_blocks")
    tasks = make_tasks()
    with torch.no_grad():
        subject.network.convs[0].weight[0] = torch.inf
    with pytest.raises(
        NonFiniteError, match="the loss is nan at inner step 1 of task 1; start again with lower learning rates"
    ):
        TogetherReptile(LOOP, chunk=chunk).learn(subject, tasks, learn_architecture=False)


def test_no_tasks_make_an_empty_contribution(make_subject: MakeSubject) -> None:
    part = TogetherReptile(LOOP).learn(make_subject("conv_blocks"), [], learn_architecture=False)
    assert part.tasks == 0
    assert not any(value.any() for value in part.values.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_tasks_learn_the_same_together_and_one_by_one(
    case: str, make_subject: MakeSubject, make_tasks: MakeTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    kind, loop, learn_architecture = CASES[case]
    subject = _on_gpu(make_subject(kind))
    _warm(subject, loop, make_tasks, learn_architecture=learn_architecture)
    alone = loop.learn(subject, make_tasks(), learn_architecture=learn_architecture)
    together = TogetherReptile(loop).learn(subject, make_tasks(), learn_architecture=learn_architecture)
    _assert_close(together, alone, subject, relative=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_tasks_are_learned_faster_together(
    precision: Any, make_config: Any, make_state: Any, make_tasks: MakeTasks, capsys: pytest.CaptureFixture[str]
) -> None:
    network = NetworkConfig(channels=28)
    subject = _on_gpu(make_state(make_config(network=network, plan=Plan(joint=1))))
    loop = replace(LOOP, schedule=replace(SCHEDULE, architecture_steps=5, batch_size=20))
    tasks = make_tasks(10, n_way=4, n_shot=5)
    rates = {}
    for name, learner in (("one by one", loop), ("together", TogetherReptile(loop, precision=precision))):
        for _ in range(2):  # the first is for cuDNN to choose its algorithms
            torch.cuda.synchronize()
            began = time.perf_counter()
            learner.learn(subject, tasks, learn_architecture=True)
            torch.cuda.synchronize()
            rates[name] = len(tasks) / (time.perf_counter() - began)
    with capsys.disabled():
        print(f"\n{precision}: " + ", ".join(f"{name} {rate:.1f} tasks/s" for name, rate in rates.items()))
    assert rates["together"] > rates["one by one"]


def _on_gpu(subject: State) -> State:
    subject.network.to("cuda")
    subject.architecture = {
        name: value.detach().cuda().requires_grad_() for name, value in subject.architecture.items()
    }
    subject.log_scale = subject.log_scale.detach().cuda().requires_grad_()
    return subject
