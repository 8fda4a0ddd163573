"""One export, from a task model to the files that were asked for: make, check, write.

    Order     what is asked for
    export    task, order, pictures  ->  the failures, first to last

Every file that can run here is run on the support images, and on pictures where there are some, and
compared with torch. All comparisons are told in one table before anything is written; a
file that disagrees is not. What fails in one format does not keep the others from being written. A file
is written whole or not at all.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from metanas.artifact import write_atomically
from metanas.errors import MetaNASError
from metanas.model import TaskModel
from metanas_export import casting, check, ends, plans
from metanas_export.builder import Precision
from metanas_export.check import Agreement, ImageSet
from metanas_export.errors import FormatError
from metanas_export.formats import CONVERTED, Format, convert
from metanas_export.model import build_onnx
from metanas_export.pictures import Pictures, as_picture
from metanas_export.plan import BuildLimits, PlanOptions, Profile
from metanas_export.running import Run, session

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    formats: tuple[Format, ...]
    folder: Path
    """Where the files go; made if it is not there."""
    name: str
    """Of the files, without their endings."""
    precision: Precision = "fp32"
    profile: Profile = field(default_factory=Profile)
    """Batch sizes, where a format fixes them."""
    targets: tuple[str, ...] | None = None
    """GPUs to build for; None: all that TensorRT-RTX builds for, or this machine's."""
    takes_pictures: bool = False
    """Whether the ONNX file holds the preprocessing."""
    gives_probabilities: bool = False
    """Whether the ONNX file has probabilities as a second output."""
    min_agreement: float | None = None
    """Fraction of images that must get torch's class; None: ``check.LEAST_AGREEMENT``."""
    plan_options: PlanOptions = field(default_factory=PlanOptions)
    """Which other GPUs and versions of TensorRT run the plan."""
    limits: BuildLimits = field(default_factory=BuildLimits)
    """Of the time and memory of a plan's build."""
    benchmark: bool = False


@dataclass(frozen=True, slots=True)
class _Made:
    """A format's files before they are written, and how they answered."""

    kind: Format
    contents: Mapping[str, bytes]
    """By suffix; the first is the one that a runtime opens."""
    agreements: tuple[Agreement, ...]


def export(task: TaskModel, order: Order, *, pictures: Pictures | None = None, say: Say = print) -> list[MetaNASError]:
    """Make, check and write.

    Args:
        pictures: more images to check on.
        say: told what happens, line by line.

    Returns:
        What went wrong in single formats; empty: nothing did.

    Raises:
        MetaNASError: the ONNX graph itself cannot be made or disagrees, and nothing is written.
        OSError: the folder cannot be written.
    """
    started = time.perf_counter()
    model = build_onnx(task, precision=order.precision)
    milliseconds = 1000 * (time.perf_counter() - started)
    sets = [check.support_set(task)]
    if pictures is not None:
        sets.append(check.picture_set(task, pictures))
    made, failures = [_onnx(task, model, order=order, sets=sets, pictures=pictures)], list[MetaNASError]()
    for kind in (one for one in order.formats if one in CONVERTED):
        if kind == "executorch":
            say("lowering the network for ExecuTorch; takes about half a minute ...")
        try:
            made.append(_converted(kind, task, model=model, order=order, sets=sets))
        except MetaNASError as error:
            failures.append(error)
    say(f"\n{check.table([row for one in made for row in one.agreements], title='check against torch')}\n")
    if order.precision == "bf16":
        say("ONNX Runtime has no bfloat16 here: its row is the file's graph in float32, rounded as bfloat16 is.")
    if order.precision != "fp32":
        say(f"kept in float32: {', '.join(plans.kept_parts(model)) or 'the head only'}")
    _require(made[0].agreements, order=order)
    order.folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    for one in made:
        if one.kind not in order.formats:
            continue
        try:
            _require(one.agreements, order=order)
        except MetaNASError as error:
            failures.append(error)
            continue
        written[one.kind] = _write(one.contents, order=order, say=say)
    say(f"built in {milliseconds:.0f} ms, made, checked and written in {time.perf_counter() - started:.2f} s")
    content = model.SerializeToString(deterministic=True)
    failures += plans.write(task, content, order=order, written=written, say=say)
    plans.warn_of_stale(order.folder / f"{order.name}.plan", content, say=say)
    if order.benchmark:
        from metanas_export import benchmark

        benchmark.run_cli(
            written,
            task,
            folder=order.folder,
            takes_pictures=order.takes_pictures,
            max_batch=order.profile.max_batch,
        )
    return failures


def _onnx(
    task: TaskModel, model: onnx.ModelProto, *, order: Order, sets: Iterable[ImageSet], pictures: Pictures | None
) -> _Made:
    """The ONNX file, with its ends if it is to have any."""
    written = _with_ends(task, model, order=order)
    run = _opened(model if order.takes_pictures else written, order=order)
    name = f"{'rounded graph' if order.precision == 'bf16' else 'ONNX Runtime'} {order.precision}"
    support, *others = sets
    rows = [_judged(run, support, what=name), check.batch_of_one(run, support, what=name)]
    rows += [_judged(run, one, what=name) for one in others]
    if order.takes_pictures:
        run = _opened(written, order=order)
        originals = [as_picture(pixels, task.preprocessing) for pixels in task.support.images]
        rows.append(_on_pictures(run, originals, support, what=f"{name}, support images"))
        if pictures is not None:
            rows.append(_on_pictures(run, pictures.originals, others[0], what=f"{name}, verify images"))
    return _Made("onnx", {".onnx": written.SerializeToString(deterministic=True)}, tuple(rows))


def _opened(model: onnx.ModelProto, *, order: Order) -> Run:
    """In ONNX Runtime; of bfloat16, which that lacks, the same roundings in float32."""
    if order.precision == "bf16":
        return session(casting.emulate(model).SerializeToString(), as_written=True)
    return session(model.SerializeToString())


def _with_ends(task: TaskModel, model: onnx.ModelProto, *, order: Order) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if order.takes_pictures:
        ends.take_pictures(result, task.preprocessing)
    if order.gives_probabilities:
        ends.give_probabilities(result, temperature=task.trust.temperature)
    return result


def _on_pictures(run: Run, originals: Iterable[NDArray[np.uint8]], images: ImageSet, *, what: str) -> Agreement:
    scores = np.concatenate([run(original[None]) for original in originals])
    return check.agreement(images.reference, scores, what=f"torch / {what} as pictures", labels=images.labels)


def _converted(
    kind: Format, task: TaskModel, *, model: onnx.ModelProto, order: Order, sets: Iterable[ImageSet]
) -> _Made:
    """Files of another runtime, run by it."""
    from metanas_export.runtimes import open_model

    max_batch = order.profile.max_batch
    contents = convert(kind, task, model=model, precision=order.precision, max_batch=max_batch)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"model{suffix}" for suffix in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content)
        try:
            run = open_model(kind, paths[0])
            rows = [_judged(run, one, what=f"{kind} {order.precision}", max_batch=max_batch) for one in sets]
        except RuntimeError as error:
            raise FormatError(f"{kind} does not run its own file: {error}; use the ONNX file") from error
    return _Made(kind, contents, tuple(rows))


def _judged(run: Run, images: ImageSet, *, what: str, max_batch: int | None = None) -> Agreement:
    return check.judge(run, images, what=f"{what}, {images.name}", max_batch=max_batch)


def _require(agreements: Iterable[Agreement], *, order: Order) -> None:
    for found in agreements:
        check.require(found, precision=order.precision, least=order.min_agreement)


def _write(contents: Mapping[str, bytes], *, order: Order, say: Say) -> Path:
    """Write a format's files, the one that is opened last; returns that."""
    paths = [order.folder / f"{order.name}{suffix}" for suffix in contents]
    for path, content in reversed(list(zip(paths, contents.values(), strict=True))):
        write_atomically(path, content)
        say(f"wrote {path} ({len(content):,} bytes, {order.precision})")
    return paths[0]
