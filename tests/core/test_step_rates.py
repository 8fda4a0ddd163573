"""Plain gradient steps, by the schedule's rates or by learned ones, against a loop written out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metanas.artifact import META_KIND, load_meta, meta_from_bytes, meta_to_bytes, pack, save_meta, unpack
from metanas.errors import InvalidConfigError
from metanas.head import Head, balanced_cross_entropy
from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.optimizer import Parameters, parameter_names
from metanas.preprocessing import scale
from metanas.schedule import Schedule
from metanas.snapshots import AdaptationTrace
from metanas.steps import operation_weights, start_head, step_temperature
from metanas.tasks import SupportSet

PLAIN = Schedule(
    architecture_steps=3,
    weight_steps=2,
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=0.01,
    architecture_learning_rate=0.5,
    architecture_weight_decay=0.02,
    temperature_end=0.5,
    skip_below=0.0,
)


def _learned_rates(meta: MetaModel, steps: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: 0.1 * torch.rand(steps, generator=generator) for name in parameter_names(meta.weights, meta.architecture)
    }


def _rate(meta: MetaModel, name: str, step: int) -> float:
    if meta.step_rates:
        return meta.step_rates[name][min(step, len(meta.step_rates[name]) - 1)].item()
    return PLAIN.architecture_learning_rate if name.startswith("architecture.") else PLAIN.learning_rate


def _step(meta: MetaModel, parameters: Parameters, support: SupportSet, *, step: int) -> None:
    """The step of equation 3, with weight decay."""
    weights = None
    if parameters.architecture:
        temperature = step_temperature(step, PLAIN.architecture_steps, PLAIN)
        weights = operation_weights(
            meta.build_network(), parameters.architecture, schedule=PLAIN, temperature=temperature
        )
    class_weights = 1 / torch.tensor(support.shots, dtype=torch.float32)
    logits = parameters.head(parameters.network(scale(support.images, meta.preprocessing), weights))
    named = dict(parameters.named())
    gradients = torch.autograd.grad(
        balanced_cross_entropy(logits, support.labels, class_weights), list(named.values()), materialize_grads=True
    )
    with torch.no_grad():
        for (name, value), gradient in zip(named.items(), gradients, strict=True):
            decay = PLAIN.architecture_weight_decay if name.startswith("architecture.") else PLAIN.weight_decay
            value -= _rate(meta, name, step) * (gradient + decay * value)


@pytest.mark.parametrize("learned_steps", [0, 2, 4])
def test_adaptation_by_plain_steps_is_the_loop_written_out(
    make_meta: Any, make_support: Any, learned_steps: int
) -> None:
    meta, support = make_meta(schedule=PLAIN, moments=True), make_support()
    if learned_steps:
        meta = replace(meta, step_rates=_learned_rates(meta, learned_steps))
    traces: list[AdaptationTrace] = []
    task = adapt(meta, support, on_trace=traces.append)

    images = scale(support.images, meta.preprocessing)
    network = meta.build_network()
    architecture = {name: value.clone().requires_grad_() for name, value in meta.architecture.items()}
    weights = operation_weights(network, architecture, schedule=PLAIN, temperature=1.0)
    head, _ = start_head(
        network, weights=weights, images=images, labels=support.labels, n_way=3, scale=meta.head_scale, skip_below=0.0
    )
    for step in range(3):
        _step(meta, Parameters(network, head, architecture), support, step=step)
    for name, value in traces[0].one_shot.named_parameters():
        torch.testing.assert_close(value, dict(network.named_parameters())[name], msg=name)
    torch.testing.assert_close(traces[0].head.weight, head.weight)

    pruned = traces[0].pruned
    for step in range(3, 5):
        _step(meta, Parameters(pruned.network, pruned.head), support, step=step)
    finished = dict(task.network.named_parameters())
    for name, value in pruned.named_parameters():
        torch.testing.assert_close(finished[name], value.detach(), rtol=1e-4, atol=1e-5, msg=name)


def test_learned_rates_make_another_task_model_than_the_schedules(make_meta: Any, make_support: Any) -> None:
    meta = make_meta(schedule=PLAIN)
    learned = replace(meta, step_rates=_learned_rates(meta, 2))
    one, other = adapt(meta, make_support()), adapt(learned, make_support())
    assert not torch.equal(one.network.head.weight, other.network.head.weight)


def test_plain_steps_ignore_moments_and_adam_ignores_learned_rates(make_meta: Any, make_support: Any) -> None:
    def weight(meta: MetaModel) -> Tensor:
        head: Head = adapt(meta, make_support()).network.head
        return head.weight

    plain, adam = make_meta(schedule=PLAIN), make_meta()
    assert torch.equal(weight(plain), weight(make_meta(schedule=PLAIN, moments=True)))
    assert torch.equal(weight(adam), weight(replace(adam, step_rates=_learned_rates(adam, 2))))


def test_learned_rates_survive_the_file_of_the_meta_model(make_meta: Any, tmp_path: Path) -> None:
    meta = make_meta(schedule=PLAIN)
    meta = replace(meta, step_rates=_learned_rates(meta, 5))
    save_meta(tmp_path / "meta.pt", meta)
    loaded = load_meta(tmp_path / "meta.pt")
    assert loaded.schedule.optimizer == "sgd"
    assert loaded.step_rates.keys() == meta.step_rates.keys()
    assert all(torch.equal(loaded.step_rates[name], meta.step_rates[name]) for name in meta.step_rates)


def test_a_file_from_before_plain_steps_loads_and_adapts_by_adam(make_meta: Any) -> None:
    metadata, tensors = unpack(meta_to_bytes(make_meta()), META_KIND, name="the file")
    del metadata["schedule"]["optimizer"]
    assert not any(name.startswith("step_rates/") for name in tensors)
    loaded = meta_from_bytes(pack(META_KIND, metadata, tensors))
    assert loaded.schedule.optimizer == "adam"
    assert not loaded.step_rates


def test_rates_that_do_not_fit_the_parameters_are_refused(make_meta: Any) -> None:
    meta = make_meta()
    rates = _learned_rates(meta, 2)
    with pytest.raises(InvalidConfigError, match=r"step_rates do not fit the search space: head.bias \(and 0 more\)"):
        replace(meta, step_rates={name: value for name, value in rates.items() if name != "head.bias"})
    with pytest.raises(InvalidConfigError, match=r"step_rates: head.bias is \(1,\), the search space needs \(2,\)"):
        replace(meta, step_rates={**rates, "head.bias": torch.ones(1)})
    with pytest.raises(InvalidConfigError, match=r"is \(0,\), the search space needs \(1,\)"):
        replace(meta, step_rates={name: torch.ones(0) for name in rates})


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="unknown optimizer 'lbfgs'; known are adam, sgd"):
        Schedule(optimizer="lbfgs")  # type: ignore[arg-type]
