"""What an exported task costs on each runtime of this machine, and whether it still answers as torch does.

    measure     targets, images                ->  a row for each, from a process of its own
    Benchmark   rows, and what they are judged by
    run_cli     the files of an export, task   ->  a table, ``benchmark.json``, ``.png`` and ``.svg``

A process of its own loads one runtime and no torch, so that its memory and its load time are what a
device would see (``benchmark_process``). A file that does not run here has a row that says why.

*The limit* is the time that the convolutions and the head need (``metanas.cost``) at the rate of a
float32 matrix product on as many threads, measured before and after. Int8 and float16 have their own
limits, which are not known here: their share is of the same float32 rate.

Drawing and tables are in ``benchmark_report``.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanas.cost import multiply_adds
from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export import benchmark_process
from metanas_export.pictures import as_picture
from metanas_export.product_rate import product_gflops
from metanas_export.running import in_batches
from metanas_export.runtimes import PACKAGES

Floats = NDArray[np.float32]

MAX_BATCH = 32
SECONDS = 1.0
"""Of calls at each batch size, at least."""
PRODUCTS = 5
NOT_HERE = {"triton": "a repository is run by a Triton server"}
"""Formats that this benchmark does not run, and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """One exported file."""

    name: str
    """What the table calls it, for example "onnx fp16"."""
    kind: str
    """Its format, as ``runtimes.PACKAGES`` names it."""
    path: Path
    takes_pictures: bool = False
    """Whether its preprocessing is in the graph."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Calls with one batch size."""

    batch: int
    calls: int
    p50_ms: float
    p99_ms: float
    processor_ms: float
    """Of all threads, a call: what other work on the machine changes little."""
    images_per_second: float
    """All images by the time of all calls."""
    share_of_limit: float
    """Fraction of the float32 matrix product's rate that the network's FLOP reach."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process found."""

    runtime: str
    import_seconds: float
    """Of the runtime's Python package."""
    load_seconds: float
    """From the file to a model that can be called."""
    first_answer_seconds: float
    single: Latency
    largest: Latency
    peak_mb: float
    """Largest resident memory of the process, in MB of 10^6 bytes."""
    runtime_mb: float
    """The part of it that was there before the file was opened."""
    same_class: float
    """Fraction of the images that get torch's class."""
    largest_difference: float
    """Of a score, as a fraction of torch's largest score."""


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One target: what was measured, or why it was not."""

    name: str
    kind: str
    file_bytes: int
    measured: Measured | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All rows, and what they are judged by."""

    rows: tuple[BenchmarkRow, ...]
    flop: int
    """Of one image: two for each multiply-add of convolutions and head."""
    product_gflops: float
    """The fastest float32 matrix product on ``threads`` threads, before or after."""
    threads: int
    images: int
    """That torch's classes and scores were compared on."""
    load_average: float
    """Processes that wanted a core in the minute before: with more than there are cores, times suffer."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure(
    targets: Sequence[Target],
    images: Floats,
    *,
    scores: Floats,
    flop: int,
    pictures: NDArray[np.uint8] | None = None,
    max_batch: int = MAX_BATCH,
    seconds: float = SECONDS,
    threads: int = 1,
    products: int = PRODUCTS,
) -> Benchmark:
    """Measure each target in a process of its own, one after the other.

    Args:
        images: float32 ``(images, channels, height, width)``, as ``preprocessing.scale`` makes them.
        scores: torch's of these images, float32 ``(images, classes)``.
        flop: of one image.
        pictures: the same images, uint8 ``(images, height, width, 3)``, for targets that take pictures.
        max_batch: the larger of the two batch sizes; the smaller one is 1.
        seconds: of calls at each batch size, at least.
        products: matrix products that are timed before, and after.
    """
    load_average = os.getloadavg()[0]
    rates = product_gflops(threads, products=products)
    with tempfile.TemporaryDirectory(prefix="metanas-benchmark-") as folder:
        np.save(Path(folder) / "images.npy", images)
        if pictures is not None:
            np.save(Path(folder) / "pictures.npy", pictures)
        found = [
            _ask(target, Path(folder), batches=(1, max_batch), seconds=seconds, threads=threads) for target in targets
        ]
    rates += product_gflops(threads, products=products)
    limit = 1e9 * max(rates) / flop
    rows = tuple(
        BenchmarkRow(target.name, target.kind, _file_bytes(target.path), None, problem=answer)
        if isinstance(answer, str)
        else BenchmarkRow(
            target.name, target.kind, _file_bytes(target.path), _measured(answer, scores=scores, limit=limit)
        )
        for target, answer in zip(targets, found, strict=True)
    )
    return Benchmark(
        rows=rows,
        flop=flop,
        product_gflops=max(rates),
        threads=threads,
        images=len(images),
        load_average=load_average,
    )


def _ask(
    target: Target, folder: Path, *, batches: tuple[int, int], seconds: float, threads: int
) -> dict[str, Any] | str:
    """What the target's process found, with the scores under ``scores``; or why there is nothing."""
    if target.kind not in PACKAGES:
        return NOT_HERE.get(target.kind, f"there is no runtime for {target.kind} here")
    order = {
        "kind": target.kind,
        "path": str(target.path.resolve()),
        "images": str(folder / ("pictures.npy" if target.takes_pictures else "images.npy")),
        "batches": batches,
        "seconds": seconds,
        "threads": threads,
        "scores": str(folder / "scores.npy"),
    }
    # -P: the folder of the script, where modules of ours have common names, stays out of the path.
    done = subprocess.run(
        [sys.executable, "-P", benchmark_process.__file__, json.dumps(order)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or [f"its process ended with exit code {done.returncode}"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "scores": np.load(folder / "scores.npy")}


def _measured(found: Mapping[str, Any], *, scores: Floats, limit: float) -> Measured:
    single, largest = (
        _latency(int(batch), taken, processor_seconds=found["processor_seconds"][batch], limit=limit)
        for batch, taken in found["call_seconds"].items()
    )
    other = found["scores"].astype(np.float64)
    return Measured(
        runtime=found["runtime"],
        import_seconds=found["import_seconds"],
        load_seconds=found["load_seconds"],
        first_answer_seconds=found["first_answer_seconds"],
        single=single,
        largest=largest,
        peak_mb=found["peak_bytes"] / 1e6,
        runtime_mb=found["runtime_bytes"] / 1e6,
        same_class=float((other.argmax(axis=1) == scores.argmax(axis=1)).mean()),
        largest_difference=float(np.abs(other - scores).max() / np.abs(scores).max()),
    )


def _latency(batch: int, taken: Sequence[float], *, processor_seconds: float, limit: float) -> Latency:
    """Args: processor_seconds: of a call; limit: images a second at the matrix product's rate."""
    images_per_second = batch * len(taken) / sum(taken)
    p50, p99 = 1000 * np.quantile(taken, (0.5, 0.99))
    return Latency(
        batch=batch,
        calls=len(taken),
        p50_ms=float(p50),
        p99_ms=float(p99),
        processor_ms=1000 * processor_seconds,
        images_per_second=images_per_second,
        share_of_limit=images_per_second / limit,
    )


def _file_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder; of OpenVINO's pair, both."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" else 0)


def of_task(targets: Sequence[Target], task: TaskModel, **settings: Any) -> Benchmark:
    """``measure`` on the support images of a task, against its torch network."""
    return measure(
        targets,
        scale(task.support.images, task.preprocessing).numpy(),
        scores=in_batches(lambda part: task.logits(part).numpy(), task.support.images),
        flop=2 * multiply_adds(task.space, task.genotype, n_way=len(task.class_names)),
        pictures=np.stack([as_picture(pixels, task.preprocessing) for pixels in task.support.images]),
        **settings,
    )


def run_cli(
    paths: Mapping[str, Path], task: TaskModel, *, folder: Path, takes_pictures: bool = False, **settings: Any
) -> None:
    """Measure the files of an export, print the table, and write ``benchmark.json``, ``.png`` and ``.svg``.

    Args:
        paths: the file that was written, by the format's name.
        folder: where the results go.
        takes_pictures: whether the ONNX file does.
        settings: of ``measure``; ``max_batch`` is to be one that all of the files take.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    from metanas_export import benchmark_report as report

    targets = [Target(name, name, path, takes_pictures and name == "onnx") for name, path in paths.items()]
    print(f"measuring {', '.join(paths)}, each in a process of its own ...", flush=True)
    found = of_task(targets, task, **settings)
    print(report.table(found), flush=True)
    for path in report.write(found, folder):
        print(f"wrote {path}", flush=True)
