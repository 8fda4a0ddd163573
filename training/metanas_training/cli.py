"""The command line of meta-training: arguments in, a run folder out.

A run folder holds

    meta.pt           the meta-model
    meta.json         configuration, accuracy on held-out classes, versions
    checkpoint.pt     from which --resume continues
    tensorboard/      scalars: loss, accuracy, validation accuracy

Exit codes: 0 done; 1 the data or the checkpoint cannot be used; 2 wrong arguments;
130 stopped by Ctrl-C or SIGTERM after the step it was in, checkpoint written; a second signal
stops at once, at the last checkpoint.
"""

import argparse
import json
import logging
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import metanas
from metanas.allocator import keep_freed_memory
from metanas.artifact import save_meta, write_atomically
from metanas.errors import InvalidConfigError, MetaNASError
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas.space import SearchSpace
from metanas_training.config import Plan, TrainingConfig
from metanas_training.datasets import ImageClasses, data_root, default_preprocessing, load_classes
from metanas_training.evaluate import Evaluation, TaskScore, evaluate
from metanas_training.loop import StepOutcome, Trainer
from metanas_training.state import State, load_checkpoint, new_state, to_meta_model

logger = logging.getLogger("metanas_training")

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run meta-training from command-line arguments; the exit code comes back."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return _run(arguments)
    except InvalidConfigError as error:
        print(f"meta_train: {error}", file=sys.stderr)
        return 2
    except (MetaNASError, OSError) as error:
        print(f"meta_train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside of the steps, or the second one
        print("meta_train: stopped", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    defaults = TrainingConfig()
    parser = argparse.ArgumentParser(
        prog="meta_train.py",
        description="Meta-learn weights and architecture for few-shot image classification (MetaNAS, CVPR 2020).",
        epilog="Exit codes: 0 done, 1 data or checkpoint cannot be used, 2 wrong arguments, 130 stopped (resume it).",
    )
    add = parser.add_argument
    add("--data", default=defaults.data, help="glyphs (default), omniglot or folder:PATH")
    add("--data-root", type=Path, default=None, help="where omniglot lies (default: METANAS_DATA, ../shared/data)")
    add("--output", type=Path, default=None, help="run folder (default: runs/DATA-seedSEED)")
    add("--resume", type=Path, metavar="RUN", help="continue the run in this folder; all settings come from it")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--threads", type=int, default=defaults.threads, help="torch threads (default: %(default)s)")
    add("--seed", type=int, default=defaults.seed)
    add("--minutes", type=float, default=None, help=f"time to plan for (default: {defaults.minutes:g})")
    add("--meta-epochs", type=int, default=None, help="meta-steps of the joint phase, instead of --minutes")
    add("--warm-up", default=defaults.warm_up, choices=["prototype", "reptile"])
    add("--warm-up-steps", type=int, default=None, help="steps before the architecture learns (default: meta-epochs)")
    add("--search-steps", type=int, default=None, help="prototype steps with architecture (default: 4 x warm-up)")
    add("--fall-steps", type=int, default=None, help="of those, while the temperature falls (default: half)")
    add("--channels", type=int, default=defaults.channels)
    add("--image-size", type=int, default=None, help="pixels a side (default: 28, for folders 84)")
    add("--grey", action="store_true", help="folders: one channel instead of RGB")
    add("--ways", type=int, default=defaults.n_way, dest="n_way", help="classes of a task (default: %(default)s)")
    add("--train-shots", type=int, default=defaults.train_shots, help="images a class in meta-training tasks")
    add("--meta-batch-size", type=int, default=defaults.meta_batch_size, help="tasks of a meta-step")
    add("--meta-learning-rate", type=float, default=defaults.meta_learning_rate)
    add("--inner-learning-rate", type=float, default=defaults.inner_learning_rate)
    add("--inner-architecture-learning-rate", type=float, default=defaults.inner_architecture_learning_rate)
    add("--pair-classes", type=int, default=defaults.pair_classes, help="classes of a prototype batch")
    add("--checkpoint-minutes", type=float, default=defaults.checkpoint_minutes)
    add("--eval-tasks", type=int, default=defaults.eval_tasks, help="held-out tasks at the end")
    add("--eval-shots", type=int, default=defaults.eval_shots)
    return parser


def _config(arguments: argparse.Namespace) -> TrainingConfig:
    """The configuration that the arguments ask for."""
    if arguments.meta_epochs is not None and arguments.minutes is not None:
        raise InvalidConfigError("give --minutes or --meta-epochs, not both")
    plan = None
    if arguments.meta_epochs is not None:
        warm_up = arguments.meta_epochs if arguments.warm_up_steps is None else arguments.warm_up_steps
        search = 4 * warm_up if arguments.search_steps is None else arguments.search_steps
        if arguments.warm_up == "reptile":
            search = 0
        fall = (search + 1) // 2 if arguments.fall_steps is None else arguments.fall_steps
        plan = Plan(warm_up=warm_up, search=search, fall=fall, joint=arguments.meta_epochs)
    elif any(value is not None for value in (arguments.warm_up_steps, arguments.search_steps, arguments.fall_steps)):
        raise InvalidConfigError("--warm-up-steps, --search-steps and --fall-steps need --meta-epochs")
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise InvalidConfigError("--device cuda: torch sees no CUDA device; use --device cpu or auto")
    same = (
        "data", "threads", "seed", "warm_up", "channels", "image_size", "grey", "n_way", "train_shots",
        "meta_batch_size", "meta_learning_rate", "inner_learning_rate", "inner_architecture_learning_rate",
        "pair_classes", "checkpoint_minutes", "eval_tasks", "eval_shots",
    )  # fmt: skip
    values: dict[str, Any] = {name: getattr(arguments, name) for name in same}
    if arguments.minutes is not None:
        values["minutes"] = arguments.minutes
    return TrainingConfig(**values, plan=plan, device=device)


def _check_resume(arguments: argparse.Namespace) -> None:
    """Raise InvalidConfigError if ``--resume`` comes with settings, which could not be obeyed."""
    parser = _parser()
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(arguments).items()
        if name not in ("resume", "data_root") and value != parser.get_default(name)
    ]
    if given:
        raise InvalidConfigError(f"--resume takes all settings from the run; leave out {', '.join(given)}")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.resume is not None:
        _check_resume(arguments)
        output = arguments.resume
        config, state = load_checkpoint(output / "checkpoint.pt", _space)
        logger.info("resuming %s", output)
    else:
        config = _config(arguments)
        output = (
            arguments.output or Path("runs") / f"{config.data.replace(':', '-').replace('/', '_')}-seed{config.seed}"
        )
        if (output / "checkpoint.pt").exists():
            raise InvalidConfigError(
                f"{output} already holds a run; continue it with --resume {output}, or choose another --output"
            )
        state = new_state(config, _space(config))
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    root = arguments.data_root or data_root()
    preprocessing = _preprocessing(config)
    splits = {}
    for split in ("train", "val", "test"):
        splits[split] = load_classes(config.data, split, preprocessing=preprocessing, root=root)
        logger.info("%s: %d classes", splits[split].name, len(splits[split]))
    output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        config, state, train=splits["train"], validation=splits["val"], checkpoint=output / "checkpoint.pt"
    )
    with _stop_flag() as stopped, _Display(output) as display:
        finished = trainer.run(on_step=display.show, should_stop=lambda: bool(stopped))
    if not finished:
        logger.info("stopped; continue with: python training/meta_train.py --resume %s", output)
        return INTERRUPTED
    meta = _meta_model(config, state, preprocessing, splits["train"].name)
    save_meta(output / "meta.pt", meta)
    logger.info("wrote %s; now %d held-out tasks", output / "meta.pt", config.eval_tasks)
    scores = _evaluate(meta, splits["test"], config)
    meta = _meta_model(config, state, preprocessing, splits["train"].name, scores.to_dict())
    save_meta(output / "meta.pt", meta)
    report = {"provenance": dict(meta.provenance), "history": state.history}
    write_atomically(output / "meta.json", (json.dumps(report, indent=2) + "\n").encode())
    print(summary(scores))
    print(f"wrote {output / 'meta.pt'} and {output / 'meta.json'}")
    return 0


def _space(config: TrainingConfig) -> SearchSpace:
    preprocessing = _preprocessing(config)
    return SearchSpace(channels=config.channels, in_channels=preprocessing.channels, image_size=preprocessing.height)


def _preprocessing(config: TrainingConfig) -> Preprocessing:
    return default_preprocessing(config.data, image_size=config.image_size, grey=config.grey)


def _meta_model(
    config: TrainingConfig,
    state: State,
    preprocessing: Preprocessing,
    data: str,
    held_out: dict[str, Any] | None = None,
) -> MetaModel:
    plan = state.plan
    return to_meta_model(
        state,
        preprocessing=preprocessing,
        schedule=config.schedule(),
        provenance={
            "data": data,
            "seed": config.seed,
            "configuration": config.to_dict(),
            "plan": None if plan is None else dict(plan.phases()),
            "training_seconds": state.seconds,
            "held_out": held_out,
            "code_version": metanas.__version__,
            "torch_version": torch.__version__,
            "python_version": platform.python_version(),
        },
    )


def _evaluate(meta: MetaModel, classes: ImageClasses, config: TrainingConfig) -> Evaluation:
    with tqdm(total=config.eval_tasks, desc="held-out", unit="task") as bar:

        def show(score: TaskScore) -> None:
            bar.update()
            bar.set_postfix_str(f"inductive {100 * score.inductive:.1f} %")

        return evaluate(
            meta,
            classes,
            n_way=min(config.n_way, len(classes)),
            n_shot=min(config.eval_shots, classes.smallest - 1),
            n_query=config.eval_queries,
            tasks=config.eval_tasks,
            seed=config.seed,
            on_task=show,
        )


def summary(scores: Evaluation) -> str:
    """An evaluation in a few lines of text."""
    return "\n".join(
        (
            f"{scores.data}, {scores.n_way}-way {scores.n_shot}-shot, {scores.tasks} tasks, "
            f"chance {100 / scores.n_way:.1f} %, mean with 95 % interval:",
            f"  inductive (support statistics)   {scores.inductive}",
            f"  transductive (the paper's)       {scores.transductive}",
            f"  prototypes, no adaptation        {scores.prototype}",
            f"  lost by pruning                  {scores.pruning_loss}",
            f"  parameters of a task network     {scores.parameter_count:,.0f}",
            f"  architectures among the tasks    {scores.structures}"
            f" (the most common in {100 * scores.most_common_share:.0f} %)",
            f"  seconds of one adaptation        {scores.adapt_seconds:.1f}",
        )
    )


class _Display:
    """Progress bar and TensorBoard scalars."""

    def __init__(self, output: Path) -> None:
        self._writer = SummaryWriter(str(output / "tensorboard"))
        self._bar: tqdm[Any] | None = None
        self._tasks, self._seconds = 0, 0.0

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._writer.close()

    def show(self, outcome: StepOutcome) -> None:
        if self._bar is None:
            self._bar = tqdm(total=outcome.steps, initial=outcome.step - 1, unit="step", dynamic_ncols=True)
        self._tasks += outcome.tasks
        self._seconds += outcome.seconds
        self._bar.set_description(outcome.phase)
        self._bar.set_postfix_str(
            f"loss {outcome.loss:.3f}, accuracy {100 * outcome.accuracy:.1f} %, "
            f"{self._tasks / self._seconds:.2f} tasks/s"
        )
        self._bar.update(outcome.step - self._bar.n)
        for name, value in (
            ("loss", outcome.loss),
            ("accuracy", outcome.accuracy),
            ("images_per_second", outcome.images / outcome.seconds),
            ("validation_accuracy", outcome.validation),
        ):
            if value is not None:
                self._writer.add_scalar(f"{name}", value, outcome.step)
        if outcome.validation is not None:
            tqdm.write(
                f"step {outcome.step}/{outcome.steps} ({outcome.phase}): "
                f"{100 * outcome.validation:.1f} % on validation classes (prototypes, no adaptation)",
                file=sys.stderr,
            )


@contextmanager
def _stop_flag() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM append to; a second signal stops at once."""
    received: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        tqdm.write("stopping after this step; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
