"""The single-task search of Table 3: one run end to end, resumed bit for bit, and the table over runs."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from metanas.errors import InvalidConfigError
from metanas.preprocessing import Preprocessing
from metanas.relaxation import STRATEGIES, Strategy
from metanas.space import Genotype
from metanas_training.datasets import ImageClasses
from metanas_training.errors import CheckpointError, DatasetError, NonFiniteError
from metanas_training.single_task import SingleTaskSearch, architecture_step, fixed_mixtures, run_mixture, weight_step
from metanas_training.single_task_cli import main
from metanas_training.single_task_config import SingleTaskConfig, read_config
from metanas_training.single_task_images import Labelled, augment, halve, together
from metanas_training.single_task_pruning import evaluate
from metanas_training.single_task_state import RunSettings, SearchState, load_checkpoint, new_state, restore
from metanas_training.single_task_table import ResultsError, markdown_table, read_results

REPOSITORY = Path(__file__).resolve().parents[2]

TINY: dict[str, Any] = {
    "image_size": 8, "train_images": 80, "test_images": 40, "crop_padding": 1, "channels": 4, "cells": 3,
    "reduction_cells": (1, 2), "nodes": 3, "operations": ("avg_pool_3x3", "skip_connect", "conv_3x3"), "epochs": 3,
    "batch_size": 16, "fall_epochs": 2, "statistics_images": 40, "architecture_learning_rate": 0.05,
}  # fmt: skip
STEPS = 6  # of TINY: 40 images in a half are 2 whole batches of 16, 3 times

PREPROCESSING = Preprocessing(channels=3, height=8, width=8, mean=(0.5,) * 3, deviation=(0.25,) * 3)


def _pixels(count: int, *, seed: int) -> NDArray[np.uint8]:
    """Records of the binary CIFAR-10, labels 0..9 in turn: a pattern of the class with some noise."""
    patterns = np.random.default_rng(0).integers(0, 2, (10, 3, 4, 4)) * 160
    noise = np.random.default_rng(seed).integers(0, 90, (count, 3, 32, 32))
    labels = np.arange(count) % 10
    images = np.kron(patterns, np.ones((1, 1, 8, 8), dtype=int))[labels] + noise
    return np.concatenate((labels[:, None], images.reshape(count, -1)), axis=1).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up CIFAR-10: 100 training and 50 test images."""
    folder = tmp_path_factory.mktemp("data") / "cifar10"
    folder.mkdir()
    for number in range(1, 6):
        _pixels(20, seed=number).tofile(folder / f"data_batch_{number}.bin")
    _pixels(50, seed=6).tofile(folder / "test_batch.bin")
    return folder.parent


@pytest.fixture
def toml(tmp_path: Path) -> Callable[..., Path]:
    """Write settings as a TOML file."""

    def write(**values: Any) -> Path:
        path = tmp_path / "tiny.toml"
        settings = {**TINY, **values}
        lines = (f"{key} = {json.dumps(value)}" for key, value in settings.items())
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def images() -> Labelled:
    records = _pixels(40, seed=7)
    pixels = torch.from_numpy(records[:, 1:].reshape(40, 3, 32, 32)[:, :, ::4, ::4].copy())
    return Labelled(pixels, torch.from_numpy(records[:, 0]).to(torch.int64))


def _state(images: Labelled, strategy: Strategy = "operations_and_inputs", **values: Any) -> SearchState:
    config = SingleTaskConfig(**{**TINY, **values})
    return new_state(config, seed=0, strategy=strategy, examples=images, preprocessing=PREPROCESSING)


def _everything(state: SearchState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        **{f"network/{name}": value for name, value in state.network.named_parameters()},
        **{f"head/{name}": value for name, value in state.head.named_parameters()},
        **state.architecture,
    }
    for kind, optimizer in (("sgd", state.weight_optimizer), ("adam", state.architecture_optimizer)):
        for number, values in enumerate(optimizer.state.values()):
            tensors.update({f"{kind}/{number}/{name}": value for name, value in values.items() if value is not None})
    return {name: value.detach().clone() for name, value in tensors.items()}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def _without_times(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and rows of a run, less what no two runs have in common."""
    times = {"seconds", "cpu_seconds", "evaluation_seconds", "evaluation_cpu_seconds"}
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    result, *rows = ({name: value for name, value in row.items() if name not in times} for row in (results, *read))
    return result, rows


# The command


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_leaves_settings_a_row_for_each_epoch_and_what_pruning_cost(
    root: Path, toml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: Strategy
) -> None:
    output = tmp_path / "run"
    arguments = ["--strategy", strategy.replace("_", "-"), "--config", str(toml()), "--seed", "3"]
    arguments += ["--output", str(output), "--data-root", str(root)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "accuracy before pruning" in printed
    assert f"wrote {output / 'results.json'}" in printed

    config = json.loads((output / "config.json").read_text())
    assert (config["strategy"], config["seed"]) == (strategy, 3)
    assert SingleTaskConfig.from_dict(config["config"]) == SingleTaskConfig(**TINY)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 2), (2, 4), (3, 6)]
    assert [row["temperature"] for row in rows] == pytest.approx([math.sqrt(0.05), 0.05, 0.05])
    assert rows[0]["weight_loss"] > rows[2]["weight_loss"] > 0

    result = json.loads((output / "results.json").read_text())
    assert result["strategy"] == strategy
    assert result["seed"] == 3
    assert result["images"] == {"weights": 40, "architecture": 40, "test": 40}
    assert result["lost_points"] == pytest.approx(100 * (result["before"] - result["after"]))
    assert all(0 <= result[name] <= 1 for name in ("before", "after", "after_remeasured"))
    assert result["parameters_after"] < result["parameters_before"]
    assert result.keys() >= {"seconds", "cpu_seconds", "code_version", "torch_version", "python_version"}
    genotype = Genotype.from_dict(result["genotype"])
    if strategy != "operations_and_inputs":  # the rule of DARTS: k edges, one operation each, weight 1
        assert all(len(node) == 2 and {edge.weight for edge in node} == {1.0} for node in genotype.normal)
    assert main(arguments) == 2  # a second run does not overwrite the first
    assert f"{output} already holds a run; continue it with --resume {output}" in capsys.readouterr().err


@pytest.mark.parametrize("stop_at", [1, 4])  # in the middle of an epoch, and between two
def test_a_run_stopped_by_a_signal_and_resumed_ends_in_the_bits_of_an_uninterrupted_one(
    root: Path, toml: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = ["--strategy", "operations-and-inputs", "--config", str(toml()), "--data-root", str(root)]
    step = SingleTaskSearch._step

    def interrupted(search: SingleTaskSearch) -> dict[str, float]:
        if search.state.step + 1 == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return step(search)

    with monkeypatch.context() as patched:
        patched.setattr(SingleTaskSearch, "_step", interrupted)
        assert main([*arguments, "--output", str(stopped)]) == 130
    assert load_checkpoint(stopped / "checkpoint.pt").metadata["step"] == stop_at
    assert not (stopped / "results.json").exists()
    torch.manual_seed(99)
    assert main(["--resume", str(stopped), "--data-root", str(root)]) == 0
    assert main([*arguments, "--output", str(whole)]) == 0

    one, other = (load_checkpoint(run / "checkpoint.pt") for run in (stopped, whole))
    assert one.settings == other.settings
    assert one.tensors.keys() == other.tensors.keys()
    assert {name.split("/")[0] for name in one.tensors} == {
        "network", "head", "architecture", "weight_optimizer", "architecture_optimizer",
    }  # fmt: skip
    assert not _changed(dict(one.tensors), dict(other.tensors))
    assert _without_times(stopped) == _without_times(whole)


def test_a_run_is_not_resumed_with_other_images(
    root: Path, toml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    arguments = ["--strategy", "none", "--config", str(toml(epochs=1, fall_epochs=1)), "--output", str(output)]
    assert main([*arguments, "--data-root", str(root)]) == 0
    other = tmp_path / "other" / "cifar10"
    other.mkdir(parents=True)
    for file in (root / "cifar10").iterdir():
        records = np.fromfile(file, dtype=np.uint8)
        records[5] ^= 255
        records.tofile(other / file.name)
    assert main(["--resume", str(output), "--data-root", str(other.parent)]) == 1
    assert "was made with other images" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"no checkpoint .*; start without --resume"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    root: Path, toml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = toml(learning_rate=1e30, learning_rate_end=1e30, gradient_clip=1e30, head_scale=1e30)
    arguments = ["--strategy", "none", "--config", str(wild), "--data-root", str(root)]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    assert "single_task_search: the loss is" in message
    assert f"step 2 of {STEPS}" in message
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give --strategy and --config, or --resume RUN, or --table RUN..."),
        (["--strategy", "none"], 2, "give --strategy and --config"),
        (["--resume", "x", "--seed", "1", "--strategy", "none"], 2, "from the run; leave out --strategy, --seed"),
        (["--table", "x", "--resume", "y"], 2, "--table only reads finished runs; leave out --resume"),
        (["--strategy", "none", "--config", "nowhere.toml"], 1, "No such file"),
        (["--strategy", "none", "--config", "nowhere.toml", "--seed", "-1"], 2, "--seed must be at least 0, got -1"),
        (["--resume", "nowhere"], 1, "no checkpoint nowhere/checkpoint.pt; start without --resume"),
        (["--table", "nowhere"], 1, "no nowhere/results.json: that run is not finished"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_obeyed_are_refused(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert message in capsys.readouterr().err


def test_data_that_are_missing_or_too_few_end_in_code_1(
    root: Path, toml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--strategy", "none", "--output", str(tmp_path / "run")]
    assert main([*arguments, "--config", str(toml()), "--data-root", str(tmp_path)]) == 1
    assert "CIFAR-10 is not there" in capsys.readouterr().err
    assert main([*arguments, "--config", str(toml(train_images=200)), "--data-root", str(root)]) == 1
    assert "so train_images must be 0 or 20..100" in capsys.readouterr().err


# Settings


def test_the_configuration_of_the_papers_scale_is_that_of_darts_with_constant_filters() -> None:
    config = read_config(REPOSITORY / "configs" / "single_task_cifar10.toml")
    assert (config.learning_rate, config.learning_rate_end, config.momentum) == (0.025, 0.001, 0.9)
    assert (config.weight_decay, config.gradient_clip) == (3e-4, 5.0)
    assert (config.architecture_learning_rate, config.architecture_weight_decay) == (3e-4, 1e-3)
    assert config.architecture_betas == (0.5, 0.999)
    assert (config.epochs, config.batch_size, config.channels, config.cells, config.nodes) == (50, 64, 16, 8, 4)
    assert (config.reduction_cells, config.inputs_per_node) == ((2, 5), 2)
    assert (config.image_size, config.crop_padding, config.train_images, config.test_images) == (32, 4, 0, 0)
    assert config == SingleTaskConfig()


def test_the_reduced_configuration_can_be_used() -> None:
    config = read_config(REPOSITORY / "configs" / "single_task_cifar10_reduced.toml")
    assert SingleTaskConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chanels": 4}, "has no setting chanels"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": True}, "epochs must be a whole number of at least 1, got True"),
        ({"epochs": 2, "fall_epochs": 3}, "fall_epochs must be at most epochs, 2, got 3"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
        ({"train_images": -1}, "train_images must be a whole number of at least 0, got -1"),
        ({"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        ({"learning_rate": "fast"}, "learning_rate must be a finite number, got 'fast'"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"architecture_betas": [0.5]}, r"architecture_betas must be two numbers in \[0, 1\), got \[0.5\]"),
        ({"architecture_betas": 0.5}, "architecture_betas must be a list of numbers, got 0.5"),
        ({"temperature_end": 2.0}, "temperature_end must be at most 1 and threshold below 1, got 2.0 and 0.01"),
        ({"skip_below": 1e-3}, "skip_below must be under the square of threshold, 0.0001, got 0.001"),
        ({"operations": ["conv_3x3", "conv_3x3"]}, "operations must be distinct"),
        ({"reduction_cells": [3]}, r"reduction_cells must name cells 0\.\.2"),
        ({"reduction_cells": 3}, "reduction_cells must be a list of whole numbers, got 3"),
        ({"operations": "conv_3x3"}, "operations must be a list of names, got 'conv_3x3'"),
        ({"channels": 1.5}, "channels must be a whole number of at least 1, got 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    toml: Callable[..., Path], values: dict[str, Any], message: str
) -> None:
    path = toml(**{name: value for name, value in values.items() if value == value})
    if values != {name: value for name, value in values.items() if value == value}:
        path.write_text(path.read_text() + "learning_rate = nan\n")  # json writes NaN, TOML nan
    with pytest.raises(InvalidConfigError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("epochs = \n")
    with pytest.raises(InvalidConfigError, match=r"x\.toml is no TOML file"):
        read_config(path)


# Images


@pytest.fixture
def numbered() -> ImageClasses:
    """Two classes of seven and eight images; every image is filled with a number of its own."""
    preprocessing = Preprocessing(channels=1, height=2, width=2)
    values = torch.arange(15, dtype=torch.uint8).reshape(15, 1, 1, 1).expand(15, 1, 2, 2)
    return ImageClasses("numbered", ("low", "high"), (values[:7].clone(), values[7:].clone()), preprocessing)


def test_the_halves_are_disjoint_balanced_and_drawn_by_the_seed(numbered: ImageClasses) -> None:
    weights, architecture = halve(numbered, images=0, seed=0)
    numbers = [set(half.images[:, 0, 0, 0].tolist()) for half in (weights, architecture)]
    assert [len(found) for found in numbers] == [6, 6]
    assert not numbers[0] & numbers[1]
    for half in (weights, architecture):
        assert half.labels.bincount().tolist() == [3, 3]
        assert torch.equal(half.labels, (half.images[:, 0, 0, 0] >= 7).to(torch.int64))
    again, other = (halve(numbered, images=0, seed=seed)[0] for seed in (0, 1))
    assert again.fingerprint == weights.fingerprint != other.fingerprint
    assert [len(half) for half in halve(numbered, images=11, seed=0)] == [4, 4]  # rounded down
    for images in (3, 20):
        with pytest.raises(DatasetError, match=rf"{images} training images .* train_images must be 0 or 4\.\.12"):
            halve(numbered, images=images, seed=0)


def test_test_images_are_all_or_the_first_of_each_class(numbered: ImageClasses) -> None:
    assert together(numbered, images=0).images[:, 0, 0, 0].tolist() == list(range(15))
    few = together(numbered, images=5)
    assert few.images[:, 0, 0, 0].tolist() == [0, 1, 7, 8]
    assert few.labels.tolist() == [0, 0, 1, 1]
    for images in (1, 16):
        with pytest.raises(DatasetError, match=r"test_images must be 0 or 2\.\.14"):
            together(numbered, images=images)


def test_an_augmented_image_is_a_shift_of_the_original_or_of_its_mirror_image() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(1, 2, 3, 3)
    padded = torch.nn.functional.pad(image[0, 0], (1, 1, 1, 1))
    allowed = {}
    for down in range(3):
        for right in range(3):
            crop = padded[down : down + 3, right : right + 3]
            allowed[tuple(crop.flatten().tolist())] = (down, right, False)
            allowed[tuple(crop.flip(1).flatten().tolist())] = (down, right, True)
    found = augment(image.expand(400, 2, 3, 3), padding=1, generator=torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8
    assert torch.equal(found[:, 0], found[:, 1])  # all channels alike
    seen = {tuple(one.flatten().tolist()) for one in found[:, 0]}
    assert seen == set(allowed)  # every shift, mirrored and not


def test_without_padding_an_image_is_itself_or_mirrored() -> None:
    image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2).expand(50, 1, 2, 2)
    found = augment(image, padding=0, generator=torch.Generator().manual_seed(0))
    assert {tuple(one.flatten().tolist()) for one in found} == {(0, 1, 2, 3), (1, 0, 3, 2)}


# The search


def _search(images: Labelled, tmp_path: Path, **values: Any) -> SingleTaskSearch:
    config = SingleTaskConfig(**{**TINY, **values})
    settings = RunSettings(config=config, strategy="operations_and_inputs", seed=0, data="made up", fingerprint=0)
    return SingleTaskSearch(
        settings,
        _state(images, **values),
        halves=(images, images),
        preprocessing=PREPROCESSING,
        checkpoint=tmp_path / "checkpoint.pt",
    )


def test_the_temperature_falls_geometrically_and_the_learning_rate_by_half_a_cosine(
    images: Labelled, tmp_path: Path
) -> None:
    search = _search(images, tmp_path, epochs=4, fall_epochs=2, temperature_end=0.0625)
    assert search.epoch_steps == 2
    assert [search.temperature(step) for step in range(8)] == pytest.approx([0.5, 0.25, 0.125] + [0.0625] * 5)
    assert search.learning_rate(0) == 0.025
    assert search.learning_rate(4) == pytest.approx(0.013)  # half way between 0.025 and 0.001
    assert search.learning_rate(8) == pytest.approx(0.001)


def test_a_search_learns_what_distinguishes_the_classes(images: Labelled, tmp_path: Path) -> None:
    search = _search(images, tmp_path, epochs=12, fall_epochs=12)
    rows: list[dict[str, float]] = []
    assert search.run(on_epoch=rows.append, should_stop=lambda: False)
    assert rows[-1]["weight_accuracy"] > 0.5 > rows[0]["weight_accuracy"]
    assert rows[-1]["largest_operation_weight"] > rows[0]["largest_operation_weight"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_step_moves_its_own_half_of_the_parameters_only(images: Labelled, strategy: Strategy) -> None:
    state = _state(images, strategy)
    x = (images.images.to(torch.float32) / 255 - 0.5) / 0.25
    shared: dict[str, Any] = {"temperature": 0.5, "strategy": strategy, "skip_below": 0.0}
    start = _everything(state)
    architecture_step(state, x, labels=images.labels, **shared)
    middle = _everything(state)
    moved = _changed(start, middle)
    assert {"normal.alpha", "reduction.alpha"} <= moved <= set(state.architecture)
    # Inputs that are just added up have nothing to learn; a node with k inputs has one combination.
    assert {name for name in moved if "beta" in name} == (
        {"normal.beta.1", "normal.beta.2", "reduction.beta.1", "reduction.beta.2"}
        if strategy == "operations_and_inputs"
        else set()
    )
    weight_step(state, x, labels=images.labels, gradient_clip=5.0, **shared)
    moved = _changed(middle, _everything(state))
    assert moved
    assert all(name.startswith(("network/", "head/")) for name in moved)


def test_the_gradient_of_all_weights_together_is_clipped(images: Labelled) -> None:
    state = _state(images, weight_decay=0.0, momentum=0.0, learning_rate=1.0)
    before = _everything(state)
    x = (images.images.to(torch.float32) / 255 - 0.5) / 0.25
    weight_step(
        state, x, labels=images.labels, temperature=1.0, strategy="none", skip_below=0.0, gradient_clip=1e-3
    )  # fmt: skip
    after = _everything(state)
    length = sum((after[name] - before[name]).double().square().sum() for name in before) ** 0.5
    assert float(length) == pytest.approx(1e-3, rel=0.02)


def test_what_weighs_nothing_is_pruned_at_no_cost_and_what_weighs_costs(images: Labelled) -> None:
    state = _state(images)
    with torch.no_grad():  # operation 2 from the last two inputs of every node, all else at weight 0
        for name, values in state.architecture.items():
            values.zero_()
            if name.endswith("alpha"):
                values[:, 2] = 100.0
            else:
                values[-1] = 100.0
    shared: dict[str, Any] = {
        "test": images, "examples": images, "preprocessing": PREPROCESSING, "temperature": 0.05, "threshold": 0.01,
    }  # fmt: skip
    result = evaluate(state, strategy="operations_and_inputs", **shared)
    assert result.before == result.after == result.after_remeasured
    assert [[edge.source for edge in node] for node in result.genotype.normal] == [[0, 1], [1, 2], [2, 3]]
    assert {(edge.operation, edge.weight) for node in result.genotype.reduction for edge in node} == {("conv_3x3", 1.0)}
    assert result.to_dict()["lost_points"] == 0.0

    kept_all = evaluate(state, strategy="operations", **shared)  # the inputs are added up, then all but two go
    assert all(len(node) == 2 for node in kept_all.genotype.normal)
    assert kept_all.parameters_after == result.parameters_after < result.parameters_before


def test_the_one_shot_network_is_judged_with_statistics_of_the_examples(images: Labelled) -> None:
    state = _state(images)
    few = Labelled(images.images[:20], images.labels[:20])
    evaluate(
        state, test=images, examples=few, preprocessing=PREPROCESSING, temperature=0.05, threshold=0.01,
        strategy="none",
    )  # fmt: skip
    assert not state.network.training
    x = (few.images.to(torch.float32) / 255 - 0.5) / 0.25
    torch.testing.assert_close(state.network.stem_norm.mean, state.network.stem(x).mean(dim=(0, 2, 3)))


def test_a_checkpoint_of_another_network_is_refused(images: Labelled, tmp_path: Path) -> None:
    search = _search(images, tmp_path)
    assert search.run(on_epoch=lambda _: None, should_stop=lambda: search.state.step == 1) is False
    with pytest.raises(Exception, match=r"checkpoint\.pt is incomplete or contradicts itself"):
        restore(_state(images, channels=6), load_checkpoint(tmp_path / "checkpoint.pt"))


def test_a_step_whose_loss_is_not_finite_raises_before_the_checkpoint_is_replaced(
    images: Labelled, tmp_path: Path
) -> None:
    search = _search(images, tmp_path)
    with torch.no_grad():
        search.state.head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=f"the loss is nan at architecture step 1 of {STEPS}"):
        search.run(on_epoch=lambda _: None, should_stop=lambda: False)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_operations_left_out_for_their_weight_change_the_answer_by_no_more_than_that(images: Labelled) -> None:
    state = _state(images)
    with torch.no_grad():
        state.architecture["normal.alpha"][:, 0] = 1.0
        state.architecture["reduction.alpha"][:, 0] = 1.0
    x = (images.images.to(torch.float32) / 255 - 0.5) / 0.25
    mixtures = fixed_mixtures(state, temperature=0.08, strategy="operations")
    assert sum(float((mixture.rows < 5e-5).sum()) for mixture in mixtures.values()) > 0
    with torch.no_grad():
        whole, sparse = (run_mixture(state, x, mixtures=mixtures, skip_below=below) for below in (0.0, 5e-5))
    torch.testing.assert_close(whole, sparse, atol=0.02, rtol=0)


# The table


def _write_result(folder: Path, strategy: str, seed: int, before: float, after: float, /, **values: Any) -> Path:
    folder.mkdir(parents=True)
    result = {
        "strategy": strategy, "seed": seed, "data": "made up", "config": {"epochs": 3}, "before": before,
        "after": after, "after_remeasured": before, "lost_points": 100 * (before - after),
        "parameters_before": 1000, "parameters_after": 500, "cpu_seconds": 60.0, **values,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(result))
    return folder


def test_the_table_has_mean_standard_error_and_range_over_the_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [_write_result(tmp_path / f"n{seed}", "none", seed, 0.5, after) for seed, after in ((1, 0.1), (0, 0.2))]
    runs.append(_write_result(tmp_path / "o", "operations_and_inputs", 0, 0.40, 0.39))
    assert main(["--table", *map(str, runs)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table == markdown_table(read_results(runs)).splitlines()
    assert table[0].startswith("| sparsification | seeds | before pruning, % | after pruning, % | lost, points |")
    # Of 10 and 20: mean 15, deviation 7.07, over the root of two 5.
    assert table[2].startswith(
        "| none | 0, 1 | 50.0 ± 0.0 (50.0 to 50.0) | 15.0 ± 5.0 (10.0 to 20.0) | 35.0 ± 5.0 (30.0 to 40.0) |"
    )
    assert table[3].startswith("| operations and inputs | 0 | 40.0 | 39.0 | 1.0 | 40.0 | 1000 | 500 | 60 |")
    assert {line.count("|") for line in table} == {table[0].count("|")}
    gained = _write_result(tmp_path / "gained", "operations", 0, 0.4, 0.4002)
    assert "| 40.0 | 40.0 | 0.0 |" in markdown_table(read_results([gained]))  # not -0.0


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first = _write_result(tmp_path / "a", "none", 0, 0.5, 0.1)
    for folder, values, message in (
        ("config", {"config": {"epochs": 4}}, "cannot be compared: they differ in epochs"),
        ("data", {"data": "other"}, "cannot be compared: they differ in data"),
        ("seed", {"seed": 0}, "are the same run: strategy none, seed 0; leave one out"),
        ("strategy", {"strategy": "both"}, "is damaged: unknown strategy 'both'"),
        ("number", {"before": "much"}, "is damaged: could not convert string to float"),
    ):
        other = _write_result(tmp_path / folder, "none", 1, 0.5, 0.1, **values)
        with pytest.raises(ResultsError, match=message):
            read_results([first, other])
    (tmp_path / "config" / "results.json").write_text("{")
    with pytest.raises(ResultsError, match=r"results\.json is damaged"):
        read_results([tmp_path / "config"])


def test_settings_are_not_changed_by_a_run(images: Labelled, tmp_path: Path) -> None:
    search = _search(images, tmp_path)
    before = replace(search.settings.config)
    search.run(on_epoch=lambda _: None, should_stop=lambda: False)
    assert search.settings.config == before
