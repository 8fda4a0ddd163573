"""What the export can show on a GPU only: plans that run, are refitted, agree with torch, and how fast.

    benchmarks/gpu_export.sh --output benchmarks/results

Two tasks of glyphs are adapted by the bundled meta-model. For each TensorRT that is installed, in each
precision: the first is built without and with the timing cache, the second is refitted into its plan; both are
compared with torch on held-out images, and the first is timed. With TensorRT the first is also built version-compatible
and hardware-compatible. The tests marked ``gpu`` run before. Writes ``gpu_export.json`` and ``gpu_export.md``.

Exit code 1: a test or a part failed, or too few answers are torch's; 2: this machine lacks something, nothing was run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from exporting.tasks import QUERIES
from measuring import machine
from measuring.subjects import BUNDLED, ROOT

from metanas.artifact import load_meta, write_json
from metanas.learner import adapt
from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export import check, engine
from metanas_export.builder import PRECISIONS, Precision
from metanas_export.device import find_device
from metanas_export.errors import ExportError, TensorRTMissingError
from metanas_export.flavour import is_rtx
from metanas_export.model import onnx_bytes
from metanas_export.obtaining import obtain
from metanas_export.plan import Plan, PlanOptions, Profile
from metanas_export.plan_cache import PlanCache
from metanas_export.plan_loading import open_plan
from metanas_export.plan_running import PlanRunner
from metanas_training.datasets import data_root, load_classes
from metanas_training.episodes import Episode, generator_for, sample_episode

PLACE = 9
"""Of these episodes among the generators of a seed."""
CALLS = 500
PROFILE = Profile(1, 1, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """One precision of one TensorRT."""

    tensorrt: str
    precision: Precision
    build_seconds: float
    build_with_timings_seconds: float
    timing_cache: str
    second_task: str
    """"refitted", or "built" where refitting failed."""
    second_task_seconds: float
    tried: tuple[str, ...]
    agreement: float
    """Of both tasks' answers with torch's, on held-out images."""
    accuracy: float
    torch_accuracy: float
    largest_difference: float
    """Of a logit."""
    latency_ms: dict[str, float]
    """"batch p50" and "batch p99", from images on the GPU to scores on the GPU."""


def missing() -> list[str]:
    """What this machine lacks."""
    seen = []
    if find_device() is None:
        seen.append("an NVIDIA GPU that its driver shows (nvidia-smi)")
    if not torch.cuda.is_available():
        seen.append(
            f"a CUDA build of torch that sees it; here is torch {torch.__version__} "
            "(pip install torch --index-url https://download.pytorch.org/whl/cu130)"
        )
    if not _tensorrts():
        try:
            engine.find_tensorrt()
        except TensorRTMissingError as error:
            seen.append(str(error))
    return seen


def _tensorrts() -> list[ModuleType]:
    found = []
    for flavour in engine.FLAVOURS:
        try:
            found.append(engine.find_tensorrt(flavour))
        except TensorRTMissingError:
            continue
    return found


def main() -> int:
    """Test, measure, print, write."""
    options = _parse()
    device, lacks = find_device(), missing()
    if device is None or lacks:
        print("this machine lacks, so nothing was run:", file=sys.stderr)
        for one in lacks:
            print(f"  missing: {one}", file=sys.stderr)
        return 2
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/export", "tests/clients", "tests/training"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(tests.stdout, flush=True)
    meta = load_meta(BUNDLED)
    classes = load_classes("glyphs", "test", preprocessing=meta.preprocessing, root=data_root())
    episodes = [
        sample_episode(classes, n_way=5, n_shot=5, n_query=QUERIES, generator=generator_for(0, PLACE, number))
        for number in range(2)
    ]
    subjects = [(adapt(meta, episode.support), episode) for episode in episodes]
    rows, compatible, failures = [], dict[str, float](), []
    for trt in _tensorrts():
        for option in () if is_rtx(trt) else ("version_compatible", "hardware_compatible"):
            what = f"{engine.describe(trt)} fp32, {option}"
            try:
                compatible[what] = agreement_of(trt, *subjects[0], options=PlanOptions(**{option: True}))
                if compatible[what] < check.LEAST_AGREEMENT["fp32"]:
                    failures.append(f"{what}: {compatible[what]:.1%} of torch's answers")
            except ExportError as error:
                failures.append(f"{what}: {error}")
        for precision in PRECISIONS:
            try:
                rows.append(measure(trt, subjects, precision=precision))
                print(line(rows[-1]), flush=True)
                if rows[-1].agreement < check.LEAST_AGREEMENT[precision]:
                    failures.append(f"{engine.describe(trt)} {precision}: {rows[-1].agreement:.1%} of torch's answers")
            except ExportError as error:
                failures.append(f"{engine.describe(trt)} {precision}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
    values = {
        "command": "benchmarks/gpu_export.sh",
        "machine": machine.describe(),
        "device": asdict(device),
        "tests": {"exit_code": tests.returncode, "summary": tests.stdout.strip().splitlines()[-1:]},
        "rows": [asdict(row) for row in rows],
        "compatible": compatible,
        "failures": failures,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "gpu_export.json", values)
    (options.output / "gpu_export.md").write_text(markdown(values, rows), encoding="utf-8")
    return 1 if failures or not rows or tests.returncode != 0 else 0


def measure(trt: ModuleType, subjects: list[tuple[TaskModel, Episode]], *, precision: Precision) -> Row:
    """One precision.

    Raises:
        ExportError: a plan cannot be built, or is not used as it answers wrongly.
    """
    models = [onnx_bytes(task, precision=precision) for task, _ in subjects]
    with tempfile.TemporaryDirectory() as folder:
        timings, cache = Path(folder) / "timing.bin", PlanCache(Path(folder) / "plans")
        cold = engine.build_plan(trt, models[0], profile=PROFILE, timing_cache=timings)
        warm = engine.build_plan(trt, models[0], profile=PROFILE, timing_cache=timings)
        first, second = (
            obtain(
                trt,
                task,
                onnx_model=model,
                precision=precision,
                profile=PROFILE,
                cache=cache,
                timing_cache=timings,
            )
            for (task, _), model in zip(subjects, models, strict=True)
        )
    answers = [
        compare(trt, got.plan, task, episode) for got, (task, episode) in zip((first, second), subjects, strict=True)
    ]
    images = sum(found.images for found, _, _ in answers)
    return Row(
        tensorrt=engine.describe(trt),
        precision=precision,
        build_seconds=cold.seconds,
        build_with_timings_seconds=warm.seconds,
        timing_cache=warm.timing_cache,
        second_task=second.way,
        second_task_seconds=second.seconds,
        tried=(*first.tried, *second.tried),
        agreement=sum(found.same_class for found, _, _ in answers) / images,
        accuracy=sum(right for _, right, _ in answers) / images,
        torch_accuracy=sum(right for _, _, right in answers) / images,
        largest_difference=max(found.largest_difference for found, _, _ in answers),
        latency_ms=latencies(PlanRunner(trt, open_plan(trt, first.plan.data)), subjects[0][0]),
    )


def agreement_of(trt: ModuleType, task: TaskModel, episode: Episode, *, options: PlanOptions) -> float:
    """Fraction of the query images that get torch's class from a plan that is built with these options.

    Raises:
        ExportError: it cannot be built or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        timings = Path(folder) / "timing.bin"
        plan = engine.build_plan(trt, onnx_bytes(task), profile=PROFILE, options=options, timing_cache=timings)
    found, _, _ = compare(trt, plan, task, episode)
    return found.same_class / found.images


def compare(trt: ModuleType, plan: Plan, task: TaskModel, episode: Episode) -> tuple[check.Agreement, int, int]:
    """Agreement of a plan with torch on the query images, and how many each gets right."""
    expected = task.logits(episode.query_images).numpy()
    runner = PlanRunner(trt, open_plan(trt, plan.data, allow_code=plan.options.version_compatible))
    scores = runner(scale(episode.query_images, task.preprocessing).numpy())
    labels = episode.query_labels.numpy()
    found = check.agreement(expected, scores, what="torch / plan")
    return found, int((scores.argmax(1) == labels).sum()), int((expected.argmax(1) == labels).sum())


def latencies(runner: PlanRunner, task: TaskModel) -> dict[str, float]:
    """Milliseconds of single calls, after a warm-up."""
    found = {}
    for batch in (1, PROFILE.max_batch):
        shape = (batch, *task.support.images.shape[1:])
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).cuda()
        scores, times = runner.output_for(images), []
        for call in range(CALLS + 50):
            started = time.perf_counter()
            runner.enqueue(images, scores)
            runner.wait()
            if call >= 50:
                times.append(1000 * (time.perf_counter() - started))
        found[f"{batch} p50"], found[f"{batch} p99"] = (float(np.percentile(times, part)) for part in (50, 99))
    return found


def line(row: Row) -> str:
    """A row of the table."""
    latency = " / ".join(f"{value:.3f}" for value in row.latency_ms.values())
    return (
        f"| {row.tensorrt} {row.precision} | {row.build_seconds:.2f} s | {row.build_with_timings_seconds:.2f} s | "
        f"{row.second_task} in {row.second_task_seconds:.2f} s | {row.agreement:.1%} | {row.accuracy:.1%} "
        f"({row.torch_accuracy:.1%}) | {row.largest_difference:.2g} | {latency} |"
    )


def markdown(values: dict[str, Any], rows: list[Row]) -> str:
    """The report."""
    device = values["device"]
    lines = [
        f"`{values['command']}` on {device['name']} (compute capability {device['compute_capability']}), torch "
        f"{torch.__version__}. Tests marked gpu: {' '.join(values['tests']['summary'])}.",
        "",
        "| TensorRT, precision | build | with timings | second task | same answer as torch | right (torch) | "
        f"largest difference | ms, batch 1 p50 / p99, batch {PROFILE.max_batch} p50 / p99 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line(row) for row in rows),
        *(f"\n{what}: {same:.1%} of torch's answers." for what, same in values["compatible"].items()),
        *(f"\nRefitting {row.tensorrt} {row.precision}: {reason}" for row in rows for reason in row.tried),
        *(f"\nFailed: {failure}" for failure in values["failures"]),
    ]
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
