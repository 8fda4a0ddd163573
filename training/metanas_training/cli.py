"""The command line of meta-training: arguments in, a run folder out (``run_folder``).

Under torchrun several processes share the run; a run that torchrun has started again goes on
from its last checkpoint by itself.

Exit codes: 0 done; 1 the data or the checkpoint cannot be used, a loss is not finite, or another
process was lost; 2 wrong arguments; 130 stopped by Ctrl-C or SIGTERM after the step it was in,
checkpoint written; a second signal stops at once, at the last checkpoint.
"""

import argparse
import logging
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import metanas
from metanas import native
from metanas.allocator import keep_freed_memory
from metanas.artifact import load_meta, save_meta, write_json
from metanas.backbone import build_backbone
from metanas.errors import InvalidConfigError, MetaNASError
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas_training.arguments import check_resume, default_output, parse, read_arguments
from metanas_training.config import TrainingConfig
from metanas_training.datasets import ROTATIONS, ImageClasses, data_root, default_preprocessing, load_classes
from metanas_training.evaluate import evaluate
from metanas_training.fitting import fitted_prior, honest_scale, known_similarity, measured_variation
from metanas_training.group import Group, join_group
from metanas_training.loop import Trainer
from metanas_training.maml import spread
from metanas_training.progress import StepOutcome, progress_bar
from metanas_training.report import summary
from metanas_training.run_folder import RunFolder, claim
from metanas_training.scores import Evaluation, TaskScore
from metanas_training.state import State, checkpoint_config, load_checkpoint, new_state, start_from, to_meta_model
from metanas_training.stopping import stop_flag

logger = logging.getLogger("metanas_training")

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run meta-training from command-line arguments; the exit code comes back."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return _run(arguments, sys.argv[1:] if argv is None else argv)
    except InvalidConfigError as error:
        print(f"meta_train: {error}", file=sys.stderr)
        return 2
    except (MetaNASError, OSError) as error:
        print(f"meta_train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside of the steps, or the second one
        print("meta_train: stopped", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    state: State | None = None
    if arguments.resume is not None:
        check_resume(arguments)
        output = arguments.resume
        config = checkpoint_config(output / "checkpoint.pt")
    else:
        config = read_arguments(arguments)
        output = arguments.output or default_output(arguments, config)
    checkpoint = output / "checkpoint.pt"
    group = join_group(config.device)
    try:
        if not group.leads:
            logger.setLevel(logging.WARNING)
        if arguments.resume is not None or (group.restarts and checkpoint.exists()):
            config, state = load_checkpoint(checkpoint)
            logger.info("resuming %s after %d steps", output, _steps_done(state))
        return _train(config, state, output=output, root=arguments.data_root, group=group, command=command)
    finally:
        group.leave()


def _train(
    config: TrainingConfig,
    state: State | None,
    *,
    output: Path,
    root: Path | None,
    group: Group,
    command: Sequence[str],
) -> int:
    torch.set_num_threads(config.threads)
    native.set_threads(config.threads)
    # The same sizes come at every step: cuDNN finds its fastest kernels for them once.
    torch.backends.cudnn.benchmark = config.device == "cuda"
    keep_freed_memory()
    preprocessing = default_preprocessing(config.data, image_size=config.image_size, grey=config.grey)
    # What can be wrong without looking at the data is found before they are read.
    space, genotype = config.network.space(preprocessing), config.network.fixed_genotype()
    with torch.device("meta"):
        build_backbone(space, genotype)
    if group.leads:
        claim(output, config, fresh=state is None and not group.restarts)
    splits = {}
    for split in ("train", "val", "test"):
        splits[split] = load_classes(config.data, split, preprocessing=preprocessing, root=root or data_root())
        if split == "train":
            given = splits[split]
            splits[split] = replace(
                given,
                mirrored=config.mirrored_classes,
                rotations=ROTATIONS if config.rotated_classes else given.rotations,
            )
        logger.info("%s: %d classes", splits[split].name, len(splits[split]))
    if state is None:
        state = new_state(
            config,
            space=space,
            genotype=genotype,
            classes=len(splits["train"]) if config.warm_up == "supervised" else None,
        )
        if config.start:
            start_from(state, load_meta(Path(config.start)), name=config.start)
    trainer = Trainer(
        config,
        state,
        train=splits["train"],
        validation=splits["val"],
        checkpoint=output / "checkpoint.pt",
        group=group,
    )
    folder = RunFolder(output, done=_steps_done(state), command=command) if group.leads else None
    with stop_flag() as stopped, _Display(folder) as display:
        finished = trainer.run(on_step=display.show, should_stop=lambda: bool(stopped))
    if not finished:
        logger.info("stopped; continue with: python training/meta_train.py --resume %s", output)
        return INTERRUPTED
    group.leave()
    if group.leads:
        _finish(config, state, output=output, preprocessing=preprocessing, splits=splits)
    return 0


def _steps_done(state: State) -> int:
    """Of all phases."""
    phases = state.plan.phases() if state.plan is not None else ()
    return sum(count for _, count in phases[: state.phase]) + state.step


def _finish(
    config: TrainingConfig,
    state: State,
    *,
    output: Path,
    preprocessing: Preprocessing,
    splits: dict[str, ImageClasses],
) -> None:
    """Write the meta-model, judge it on held-out classes, write both."""
    meta = _meta_model(config, state, preprocessing, splits["train"].name)
    save_meta(output / "meta.pt", meta)
    logger.info("wrote %s; now %d validation and held-out tasks", output / "meta.pt", config.eval_tasks)
    n_way = min(config.n_way, len(splits["val"]))
    if config.fit_statistics:
        prior = fitted_prior(meta, splits["train"], splits["val"], tasks=config.validation_tasks, seed=config.seed)
        logger.info("statistics of training images count as %s", "none" if prior is None else f"{prior.images:g}")
        meta = replace(meta, prior=prior)
    if config.fit_scale:
        fitted = honest_scale(
            meta,
            splits["val"],
            n_way=n_way,
            n_shot=min(config.eval_shots, splits["val"].smallest - 1),
            tasks=config.validation_tasks,
            seed=config.seed,
        )
        logger.info("scale of the head: %.2f as learned, %.2f by validation tasks", meta.head_scale, fitted)
        meta = replace(meta, head_scale=fitted)
    if config.variation_strength > 0:
        variation = measured_variation(
            meta,
            splits["train"],
            n_way=min(config.n_way, len(splits["train"])),
            n_shot=min(config.eval_shots, splits["train"].smallest - 1),
            seed=config.seed,
            strength=config.variation_strength,
            softening=config.variation_softening,
            head_rate=config.variation_head_rate,
        )
        meta = replace(meta, variation=variation)
    known = known_similarity(meta, splits["val"], n_way=n_way, tasks=config.eval_tasks, seed=config.seed)
    meta = replace(meta, known_similarity=known)
    scores = _evaluate(meta, splits["test"], config)
    meta = replace(meta, provenance={**meta.provenance, "held_out": scores.to_dict()})
    save_meta(output / "meta.pt", meta)
    write_json(output / "meta.json", {"provenance": dict(meta.provenance), "history": state.history})
    print(summary(scores))
    print(f"wrote {output / 'meta.pt'} and {output / 'meta.json'}")


def _meta_model(
    config: TrainingConfig,
    state: State,
    preprocessing: Preprocessing,
    data: str,
) -> MetaModel:
    meta = to_meta_model(
        state,
        preprocessing=preprocessing,
        schedule=config.serving_schedule,
        provenance={
            "data": data,
            "seed": config.seed,
            "configuration": config.to_dict(),
            "plan": None if state.plan is None else dict(state.plan.phases()),
            "training_seconds": state.seconds,
            "training_cpu_seconds": state.cpu_seconds,
            "code_version": metanas.__version__,
            "torch_version": torch.__version__,
            "python_version": platform.python_version(),
        },
    )
    return replace(meta, step_rates=spread(meta.step_rates, steps=config.task.steps)) if config.spread_rates else meta


def _evaluate(meta: MetaModel, classes: ImageClasses, config: TrainingConfig) -> Evaluation:
    with progress_bar(total=config.eval_tasks, description="held-out", unit="task") as bar:

        def show(score: TaskScore) -> None:
            bar.update()
            bar.set_postfix_str(f"inductive {100 * score.inductive:.1f} %", refresh=False)

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


class _Display:
    """Progress bar and run folder; silent in the processes that do not lead."""

    def __init__(self, folder: RunFolder | None) -> None:
        self._folder = folder
        self._bar: tqdm[Any] | None = None
        self._tasks, self._seconds = 0, 0.0

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._folder is not None:
            self._folder.close()

    def show(self, outcome: StepOutcome) -> None:
        if self._folder is None:
            return
        self._folder.write(outcome)
        if self._bar is None:
            self._bar = progress_bar(total=outcome.steps, initial=outcome.step - 1, unit="step")
        self._tasks += outcome.tasks
        self._seconds += outcome.seconds
        self._bar.set_description(outcome.phase, refresh=False)
        self._bar.set_postfix_str(
            f"loss {outcome.loss:.3f}, accuracy {100 * outcome.accuracy:.1f} %, "
            f"{self._tasks / self._seconds:.2f} tasks/s",
            refresh=False,
        )
        self._bar.update(outcome.step - self._bar.n)
        if outcome.validation is not None:
            tqdm.write(
                f"step {outcome.step}/{outcome.steps} ({outcome.phase}): "
                f"{100 * outcome.validation:.1f} % on validation classes (prototypes, no adaptation)",
                file=sys.stderr,
            )
