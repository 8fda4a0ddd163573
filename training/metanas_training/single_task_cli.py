"""The command line of the single-task search: a configuration in, a run folder out; or Table 3 over such folders.

A run folder holds

    config.json       every setting, the strategy, the seed
    metrics.jsonl     a row for each epoch
    results.json      accuracy before and after pruning, genotype, sizes, time, versions
    checkpoint.pt     from which --resume continues

Exit codes: 0 done; 1 the data or a file cannot be used, or the loss is not finite; 2 wrong
arguments or settings; 130 stopped by Ctrl-C or SIGTERM after the step it was in, checkpoint
written; a second signal stops at once, at the last checkpoint.
"""

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

import metanas
from metanas import native
from metanas.allocator import keep_freed_memory
from metanas.artifact import write_atomically, write_json
from metanas.errors import InvalidConfigError, MetaNASError
from metanas.relaxation import STRATEGIES, Strategy
from metanas_training.datasets import data_root
from metanas_training.datasets.cifar10 import cifar10_preprocessing, load_cifar10
from metanas_training.errors import CheckpointError
from metanas_training.single_task import SingleTaskSearch
from metanas_training.single_task_config import read_config
from metanas_training.single_task_images import Labelled, halve, together
from metanas_training.single_task_pruning import PruningResult, evaluate
from metanas_training.single_task_state import RunSettings, SearchState, load_checkpoint, new_state, restore
from metanas_training.single_task_table import RESULTS, markdown_table, read_results
from metanas_training.stopping import stop_flag

logger = logging.getLogger("metanas_training")

INTERRUPTED = 130
CHECKPOINT = "checkpoint.pt"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search, or print the table, from command-line arguments; the exit code comes back."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _check(arguments)
        if arguments.table is not None:
            print(markdown_table(read_results(arguments.table)))
            return 0
        return _run(arguments)
    except InvalidConfigError as error:
        print(f"single_task_search: {error}", file=sys.stderr)
        return 2
    except (MetaNASError, OSError) as error:
        print(f"single_task_search: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside of the steps, or the second one
        print("single_task_search: stopped", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="single_task_search.py",
        description="Search an architecture on CIFAR-10 by first-order DARTS, prune it, and say what pruning cost "
        "(MetaNAS, CVPR 2020, Table 3).",
        epilog="Exit codes: 0 done, 1 data or a file cannot be used or the loss is not finite, 2 wrong arguments or "
        "settings, 130 stopped (resume it).",
    )
    add = parser.add_argument
    add("--strategy", choices=[name.replace("_", "-") for name in STRATEGIES], help="what the search makes sparse")
    add("--config", type=Path, metavar="TOML", help="all other settings, as in configs/single_task_cifar10.toml")
    add("--seed", type=int, default=None, help="default: 0")
    add("--output", type=Path, help="run folder (default: runs/CONFIG-STRATEGY-seedSEED)")
    add("--data-root", type=Path, default=None, help="where cifar10 lies (default: METANAS_DATA, ../shared/data)")
    add("--resume", type=Path, metavar="RUN", help="continue the run in this folder; all settings come from it")
    add("--table", type=Path, nargs="+", metavar="RUN", help="print the table over finished runs instead")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raise InvalidConfigError where the arguments cannot be obeyed together."""
    given = [f"--{name}" for name in ("strategy", "config", "seed", "output") if getattr(arguments, name) is not None]
    if arguments.table is not None:
        others = [*given, *(["--resume"] if arguments.resume is not None else [])]
        if others:
            raise InvalidConfigError(f"--table only reads finished runs; leave out {', '.join(others)}")
    elif arguments.resume is not None:
        if given:
            raise InvalidConfigError(f"--resume takes all settings from the run; leave out {', '.join(given)}")
    elif arguments.strategy is None or arguments.config is None:
        raise InvalidConfigError("give --strategy and --config, or --resume RUN, or --table RUN...")
    elif arguments.seed is not None and arguments.seed < 0:
        raise InvalidConfigError(f"--seed must be at least 0, got {arguments.seed}")


def _run(arguments: argparse.Namespace) -> int:
    checkpoint = None
    if arguments.resume is not None:
        output = cast(Path, arguments.resume)
        checkpoint = load_checkpoint(output / CHECKPOINT)
        config, strategy = checkpoint.settings.config, checkpoint.settings.strategy
        seed = checkpoint.settings.seed
        logger.info("resuming %s", output)
    else:
        config, seed = read_config(arguments.config), arguments.seed or 0
        strategy = cast(Strategy, arguments.strategy.replace("-", "_"))
        output = arguments.output or Path("runs") / f"{arguments.config.stem}-{arguments.strategy}-seed{seed}"
        if (output / CHECKPOINT).exists():
            raise InvalidConfigError(
                f"{output} already holds a run; continue it with --resume {output}, or choose another --output"
            )
    torch.set_num_threads(config.threads)
    native.set_threads(config.threads)
    keep_freed_memory()
    root = arguments.data_root or data_root()
    preprocessing = cifar10_preprocessing(config.image_size)
    train = load_cifar10(root, "train", preprocessing=preprocessing)
    halves = halve(train, images=config.train_images, seed=seed)
    test = together(load_cifar10(root, "test", preprocessing=preprocessing), images=config.test_images)
    logger.info("%s: %d images for the weights, %d for the architecture, %d to test", train.name, *map(len, halves),
                len(test))  # fmt: skip
    examples = Labelled(halves[0].images[: config.statistics_images], halves[0].labels[: config.statistics_images])
    settings = RunSettings(
        config=config,
        strategy=strategy,
        seed=seed,
        data=train.name,
        fingerprint=halves[0].fingerprint ^ halves[1].fingerprint,
    )
    state = new_state(config, seed=seed, strategy=strategy, examples=examples, preprocessing=preprocessing)
    if checkpoint is not None:
        if settings != checkpoint.settings:
            raise CheckpointError(
                f"{checkpoint.name} was made with other images, {checkpoint.settings.data}, than {train.name} under "
                f"{root}; give the same ones by --data-root"
            )
        restore(state, checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", {"config": config.to_dict(), "strategy": strategy, "seed": seed})
    search = SingleTaskSearch(
        settings, state, halves=halves, preprocessing=preprocessing, checkpoint=output / CHECKPOINT
    )

    def show(row: dict[str, float]) -> None:
        # All rows at once: a run that was killed between checkpoint and line would miss or repeat one.
        write_atomically(output / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in state.history).encode())
        logger.info(
            "epoch %d/%d: temperature %.3f, loss %.3f, accuracy %.1f %% (architecture half %.1f %%), largest "
            "operation weight %.2f, %.0f s",
            row["epoch"], config.epochs, row["temperature"], row["weight_loss"], 100 * row["weight_accuracy"],
            100 * row["architecture_accuracy"], row["largest_operation_weight"], row["seconds"],
        )  # fmt: skip

    with stop_flag() as stopped:
        finished = search.run(on_epoch=show, should_stop=lambda: bool(stopped))
    if not finished:
        logger.info("stopped; continue with: python training/single_task_search.py --resume %s", output)
        return INTERRUPTED
    started, cpu_started = time.perf_counter(), time.process_time()
    result = evaluate(
        state,
        test=test,
        examples=examples,
        preprocessing=preprocessing,
        temperature=search.temperature(search.steps - 1),
        strategy=strategy,
        threshold=config.threshold,
    )
    report = {
        **result.to_dict(),
        **_provenance(settings, state, halves=halves, test=test),
        "evaluation_seconds": time.perf_counter() - started,
        "evaluation_cpu_seconds": time.process_time() - cpu_started,
    }
    write_json(output / RESULTS, report)
    print(_summary(result, strategy))
    print(f"wrote {output / RESULTS}")
    return 0


def _provenance(
    settings: RunSettings, state: SearchState, *, halves: tuple[Labelled, Labelled], test: Labelled
) -> dict[str, Any]:
    return {
        "strategy": settings.strategy,
        "seed": settings.seed,
        "data": settings.data,
        "images": {"weights": len(halves[0]), "architecture": len(halves[1]), "test": len(test)},
        "config": settings.config.to_dict(),
        "architecture": {name: value.tolist() for name, value in state.architecture.items()},
        "seconds": state.seconds,
        "cpu_seconds": state.cpu_seconds,
        "code_version": metanas.__version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
    }


def _summary(result: PruningResult, strategy: Strategy) -> str:
    return "\n".join(
        (
            f"CIFAR-10, sparsification: {strategy.replace('_', ' ')}",
            f"  accuracy before pruning                  {100 * result.before:.1f} %",
            f"  accuracy after pruning                   {100 * result.after:.1f} %",
            f"  the same, statistics measured anew       {100 * result.after_remeasured:.1f} %",
            f"  parameters                               {result.parameters_before:,} -> {result.parameters_after:,}",
        )
    )
