"""From the command line of meta-training to a configuration.

build_parser      the options
read_arguments    arguments -> TrainingConfig: defaults, then ``--config FILE``, then options, then ``--set``
"""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metanas.errors import InvalidConfigError
from metanas_training.config import TrainingConfig, read_config

OPTIONS: tuple[tuple[str, str, Any, str], ...] = (
    ("--data", "data", str, "glyphs (default), omniglot, miniimagenet, cifar_fs, fc100, torchmeta:NAME, folder:PATH"),
    ("--image-size", "image_size", int, "pixels a side (default: 28 for drawings, 84 else; 32 for CIFAR)"),
    ("--seed", "seed", int, "of everything random"),
    ("--device", "device", str, "cpu, cuda or auto"),
    ("--threads", "threads", int, "torch threads"),
    ("--minutes", "minutes", float, "time to plan for"),
    ("--warm-up", "warm_up", str, "prototype, supervised or meta (the meta-learner itself, as in the paper)"),
    ("--meta-learner", "meta_learner", str, "reptile, maml or first_order_maml (MAML: with --set task.optimizer=sgd)"),
    ("--meta-epochs", "plan.joint", int, "meta-steps of the joint phase, instead of --minutes"),
    ("--warm-up-steps", "plan.warm_up", int, "steps before the architecture learns"),
    ("--search-steps", "plan.search", int, "prototype steps with architecture"),
    ("--fall-steps", "plan.fall", int, "of those, while the temperature falls"),
    ("--start", "start", str, "a meta.pt to begin with, in place of random weights"),
    ("--network", "network.kind", str, "search, fixed or conv_blocks"),
    ("--genotype", "network.genotype", str, "with --network fixed: a name, a genotype.json or random:SEED"),
    ("--channels", "network.channels", int, "filters of every operation"),
    ("--ways", "n_way", int, "classes of a task"),
    ("--train-shots", "train_shots", int, "images a class in meta-training tasks"),
    ("--meta-batch-size", "meta_batch_size", int, "tasks of a meta-step"),
    ("--meta-learning-rate", "meta_learning_rate", float, ""),
    ("--inner-learning-rate", "task.learning_rate", float, ""),
    ("--inner-architecture-learning-rate", "task.architecture_learning_rate", float, ""),
    ("--pair-classes", "pair_classes", int, "classes of a prototype batch"),
    ("--prototype-batches", "prototype_batches", int, "batches of a prototype step; processes share them"),
    ("--checkpoint-minutes", "checkpoint_minutes", float, ""),
    ("--eval-tasks", "eval_tasks", int, "held-out tasks at the end"),
    ("--eval-shots", "eval_shots", int, ""),
)
"""(option, setting, type, help)."""


def build_parser() -> argparse.ArgumentParser:
    """The options; those that were not given are not in the namespace."""
    parser = argparse.ArgumentParser(
        prog="meta_train.py",
        description="Meta-learn weights and architecture for few-shot image classification (MetaNAS, CVPR 2020).",
        epilog="Exit codes: 0 done, 1 data or checkpoint cannot be used, 2 wrong arguments, 130 stopped (resume it).",
    )
    parser.add_argument("--config", type=Path, default=None, help="a TOML file of settings, as in configs/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="any setting of the TOML file, such as task.relaxation=gumbel",
    )
    parser.add_argument("--data-root", type=Path, default=None, help="where data lie (default: METANAS_DATA)")
    parser.add_argument("--output", type=Path, default=None, help="run folder (default: runs/NAME-seedSEED)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run; all settings come from it")
    parser.add_argument("--grey", action="store_true", default=argparse.SUPPRESS, help="folders: one channel, not RGB")
    for option, setting, kind, text in OPTIONS:
        parser.add_argument(
            option, dest=setting, type=kind, default=argparse.SUPPRESS, help=f"{text} [{setting}]".strip(), metavar="X"
        )
    return parser


def read_arguments(arguments: argparse.Namespace) -> TrainingConfig:
    """The configuration that the arguments ask for.

    Raises:
        InvalidConfigError: settings that contradict each other, or that there are not.
    """
    values = read_config(arguments.config) if arguments.config is not None else {}
    planned = values.get("plan") is not None
    given = given_settings(arguments)
    for setting, value in given.items():
        _put(values, setting, value)
    _complete_plan(values, given, planned=planned)
    values["device"] = _device(values.get("device", "auto"))
    return TrainingConfig.from_dict(values)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Setting by setting what the command line names."""
    names = {setting for _, setting, _, _ in OPTIONS} | {"grey"}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    for text in arguments.set:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InvalidConfigError(f"--set needs SETTING=VALUE, got {text!r}")
        given[name] = _parse(value)
    return given


def check_resume(arguments: argparse.Namespace) -> None:
    """Raise InvalidConfigError if ``--resume`` comes with settings, which could not be obeyed."""
    given = [option for option, setting, _, _ in OPTIONS if hasattr(arguments, setting)]
    given += [f"--{name}" for name in ("config", "output", "set") if getattr(arguments, name)]
    given += ["--grey"] if hasattr(arguments, "grey") else []
    if given:
        raise InvalidConfigError(f"--resume takes all settings from the run; leave out {', '.join(given)}")


def _parse(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _put(values: dict[str, Any], setting: str, value: Any) -> None:
    *tables, name = setting.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InvalidConfigError(f"there is no setting {setting}: {table} is no table")
    values[name] = value


def _complete_plan(values: dict[str, Any], given: Mapping[str, Any], *, planned: bool) -> None:
    """Fill in the steps that follow from others, and refuse a plan beside minutes.

    Args:
        planned: whether the file has a plan.
    """
    if not isinstance(values.get("plan", {}), dict | None):
        raise InvalidConfigError(f"[plan] must be a table, got {values['plan']!r}; set its steps, such as plan.joint=3")
    steps = {name: value for name, value in given.items() if name.startswith("plan.")}
    if steps and "minutes" in given:
        raise InvalidConfigError("give --minutes or --meta-epochs, not both")
    if "minutes" in given:
        values.pop("plan", None)  # the file's
        return
    if "minutes" in values and values.get("plan") is not None and not steps:
        raise InvalidConfigError("the file has minutes and a [plan]; it must have one of them")
    if not steps or planned:
        return  # what a file's plan does not name is 0
    plan = values["plan"]
    if "joint" not in plan:
        raise InvalidConfigError("--warm-up-steps, --search-steps and --fall-steps need --meta-epochs")
    for name, value in plan.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidConfigError(f"plan.{name} must be int, got {value!r}")
    searches = values.get("network", {}).get("kind", "search") == "search"
    by_meta_learner = values.get("warm_up") == "meta"
    plan.setdefault("warm_up", plan["joint"] if searches or not by_meta_learner else 0)
    plan.setdefault("search", 4 * plan["warm_up"] if searches and not by_meta_learner else 0)
    plan.setdefault("fall", (plan["search"] + 1) // 2)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfigError("--device cuda: torch sees no CUDA device; use --device cpu or auto")
    return name


def default_output(arguments: argparse.Namespace, config: TrainingConfig) -> Path:
    """Where a run goes that was given no ``--output``."""
    name = arguments.config.stem if arguments.config is not None else config.data.replace(":", "-").replace("/", "_")
    return Path("runs") / f"{name}-seed{config.seed}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The namespace of a command line."""
    return build_parser().parse_args(argv)
