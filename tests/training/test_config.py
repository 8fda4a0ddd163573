"""Configurations: what files hold, what options override, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metanas.errors import InvalidConfigError
from metanas.space import NO_CELLS
from metanas_training.arguments import parse, read_arguments
from metanas_training.config import NetworkConfig, TrainingConfig, read_config
from metanas_training.datasets import default_preprocessing

CONFIGS = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "configs").glob("*.toml")
    if not path.name.startswith("single_task")
)


def _read(*arguments: str) -> TrainingConfig:
    return read_arguments(parse([*arguments, "--device", "cpu"]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_in_configs_is_a_run_that_survives_its_own_json(path: Path) -> None:
    config = _read("--config", str(path))
    assert TrainingConfig.from_dict(config.to_dict()) == config
    config.network.space(default_preprocessing(config.data, image_size=config.image_size))
    assert (config.network.fixed_genotype() is None) == (config.network.kind == "search")


def test_table_4_is_in_the_files_to_the_letter() -> None:
    for data, shots, alpha_rate in (("omniglot", 10, 5e-4), ("miniimagenet", 15, 1e-3)):
        config = _read("--config", str(CONFIGS[0].parent / f"{data}_metanas.toml"))
        assert (config.task.batch_size, config.meta_batch_size, config.train_shots) == (20, 10, shots)
        assert (config.inner_steps, config.task.architecture_steps, config.task.weight_steps) == (5, 50, 50)
        assert (config.task.learning_rate, config.task.architecture_learning_rate) == (1e-3, alpha_rate)
        assert (config.meta_learning_rate, config.meta_architecture_learning_rate) == (1.0, 0.6)
        assert (config.task.weight_decay, config.task.architecture_weight_decay) == (0.0, 1e-3)
        assert config.plan is not None
        assert (config.plan.warm_up, config.plan.joint) == (15_000, 15_000)
        assert (config.network.channels, config.network.cells, config.network.nodes) == (28, 4, 3)


def test_an_option_overrides_the_file_and_set_reaches_every_setting(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("seed = 3\nn_way = 7\n[network]\nchannels = 12\n[task]\nbatch_size = 9\n")
    config = _read("--config", str(file), "--ways", "5", "--set", "task.relaxation=gumbel", "--set", "drop_path=0.1")
    assert (config.seed, config.n_way, config.network.channels, config.task.batch_size) == (3, 5, 12, 9)
    assert (config.task.relaxation, config.drop_path) == ("gumbel", 0.1)
    assert _read("--set", "network.operations=['skip_connect', 'conv_5x5']").network.operations == (
        "skip_connect", "conv_5x5",
    )  # fmt: skip


def test_minutes_on_the_command_line_replace_the_plan_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[plan]\njoint = 3\n")
    assert _read("--config", str(file)).plan is not None
    config = _read("--config", str(file), "--minutes", "2")
    assert config.plan is None
    assert config.minutes == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 3", "the configuration has no setting sed; there are data, image_size"),
        ("[task]\nlr = 1.0", r"\[task\] has no setting lr; there are architecture_steps"),
        ("seed = 'a'", "the configuration seed must be int, got 'a'"),
        ("grey = 1", "the configuration grey must be bool, got 1"),
        ("task = 3", r"\[task\] must be a table, got 3"),
        ("[network]\nkind = 'cnn'", "network.kind must be search, fixed, conv_blocks, got 'cnn'"),
        ("[network]\nkind = 'fixed'", 'network.genotype belongs to kind "fixed" and is needed there'),
        ("image_size = '28'", "image_size must be a whole number of at least 1, got '28'"),
        ("image_size = 0", "image_size must be a whole number of at least 1, got 0"),
        ("eval_queries = 0", "eval_queries must be a whole number of at least 1, got 0"),
        ("validation_tasks = -1", "validation_tasks must be a whole number of at least 1, got -1"),
        (
            "meta_architecture_learning_rate = nan",
            "meta_architecture_learning_rate must be above 0 and finite, got nan",
        ),
        ("search_temperature_end = 0", "search_temperature_end must be above 0 and finite, got 0"),
        ("search_skip_below = 2.0", "search_skip_below must be at least 0 and under the threshold 0.01, got 2.0"),
        ("seed = 99999999999999999999999999", r"seed must be 0..2\^63 - 1, got 9999"),
        ("[network]\nreduction_cells = ['a']", "reduction_cells, entry 1 must be int, got 'a'"),
        ("[network]\nreduction_cells = [1.5]", "reduction_cells, entry 1 must be int, got 1.5"),
        ("[network]\nkind = 'conv_blocks'\nchannels = 9", "network.channels means nothing to kind 'conv_blocks'"),
        ("[network]\nfilters = 9", "network.filters means nothing to kind 'search'"),
        ("drop_path = 0.1\n[network]\nkind = 'conv_blocks'", "conv_blocks has no paths to drop"),
        ("[task]\nrelaxation = 'gumbel'\n[network]\nkind = 'conv_blocks'", "relaxation gumbel is for a search"),
        (
            "[task]\nrelaxation = 'gumbel'\nstrategy = 'none'",
            "relaxation gumbel relaxes nothing with task.strategy none",
        ),
        ("minutes = 5\n[plan]\njoint = 3", "the file has minutes and a .plan.; it must have one of them"),
        ("[network]\naffine = true", "a search needs batch norms without scale and shift: set network.affine to"),
        ("meta_learner = 'maml'", 'MAML takes plain inner steps: set optimizer = "sgd" in'),
        ("learned_rates = true", "multi_step_loss, learned_rates, gradient_clip and meta_optimizer adam are for MAML"),
        ("spread_rates = true", "spread_rates is for MAML, with no more inner_steps .5. than a task has steps"),
        ("variation_strength = -1", "variation_strength must be at least 0 and finite, got -1"),
        ("variation_softening = 0.5", "variation_softening must be at least 1 and finite, got 0.5"),
        ("variation_head_rate = inf", "variation_head_rate must be at least 0 and finite, got inf"),
        ("variation_strength = 1", 'variation_strength takes plain steps: set optimizer = "sgd" in'),
        (
            "device = 'cpu'\nprecision = 'bfloat16'",
            "precision bfloat16 is for together = true; warm-up and search take bfloat16, and",
        ),
        ("precision = 'float16'", "precision float16 is for together"),
        ("drop_path = 1.0", "drop_path must be at least 0 and under 1, got 1.0"),
        ("warm_up = 'meta'\n[plan]\nsearch = 3\njoint = 1", "plan.search is for a search space after a prototype"),
        ("seed = ", "is not TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(InvalidConfigError, match=message):
        _read("--config", str(file))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"cannot read .*none\.toml: No such file"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "holds no genotype .'genotype'.; take the genotype.json of meta_evaluate.py"),
        ("no json", "holds no genot"),
    ],
)
def test_a_genotype_file_that_holds_none_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "genotype.json"
    file.write_text(content)
    with pytest.raises(InvalidConfigError, match=message):
        NetworkConfig(kind="fixed", genotype=str(file)).fixed_genotype()


def test_a_genotype_file_becomes_the_fixed_architecture(tmp_path: Path) -> None:
    file = tmp_path / "genotype.json"
    file.write_text('{"genotype": {"normal": [[[0, "conv_3x3", 0.9]]], "reduction": [[[1, "skip_connect", 1.0]]]}}')
    found = NetworkConfig(kind="fixed", genotype=str(file), nodes=1).fixed_genotype()
    assert found is not None
    assert found.normal[0][0].operation == "conv_3x3"
    assert NetworkConfig(kind="conv_blocks").fixed_genotype() == NO_CELLS


def test_unknown_values_of_set_are_refused(tmp_path: Path) -> None:
    settings: list[tuple[str, Any]] = [("novalue", "--set needs SETTING=VALUE"), ("a.b=1", "has no setting a")]
    settings.append(("plan=3", r"\[plan\] must be a table, got 3; set its steps, such as plan.joint=3"))
    for text, message in settings:
        with pytest.raises(InvalidConfigError, match=message):
            _read("--set", text)


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        (["--meta-epochs", "6"], (6, 24, 12, 6)),
        (["--meta-epochs", "6", "--warm-up", "meta"], (6, 0, 0, 6)),
        (["--meta-epochs", "6", "--warm-up", "meta", "--network", "conv_blocks"], (0, 0, 0, 6)),
        (["--meta-epochs", "6", "--network", "conv_blocks"], (6, 0, 0, 6)),
        (["--meta-epochs", "6", "--config", "omniglot_reptile_cnn.toml"], (0, 0, 0, 6)),
        (["--meta-epochs", "6", "--config", "omniglot_metanas.toml"], (15_000, 0, 0, 6)),
        (["--set", "plan.warm_up=5", "--config", "omniglot_metanas.toml"], (5, 0, 0, 15_000)),
    ],
)
def test_steps_on_the_command_line_replace_those_of_a_file_and_what_it_does_not_name_is_0(
    arguments: list[str], plan: tuple[int, ...]
) -> None:
    folder = CONFIGS[0].parent
    found = _read(*[str(folder / word) if word.endswith(".toml") else word for word in arguments]).plan
    assert found is not None
    assert (found.warm_up, found.search, found.fall, found.joint) == plan


def test_steps_that_are_no_whole_number_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match=r"plan\.joint must be int, got '5'"):
        _read("--set", "plan.joint='5'")


def test_spread_rates_are_divided_among_the_steps_that_serving_takes() -> None:
    task = {"optimizer": "sgd", "learning_rate": 0.4, "architecture_learning_rate": 0.1}
    config = TrainingConfig.from_dict({"meta_learner": "first_order_maml", "spread_rates": True, "task": task})

    assert config.serving_schedule.learning_rate == pytest.approx(0.4 * 5 / 100)
    assert config.serving_schedule.architecture_learning_rate == pytest.approx(0.1 * 5 / 100)
    assert replace(config, spread_rates=False).serving_schedule == config.task
