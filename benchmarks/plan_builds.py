"""How long TensorRT-RTX takes to build plans here, without a GPU: first, again, and found in the cache.

    python benchmarks/plan_builds.py --tasks 30

The tasks are those of ``export_agreement.py``, adapted by the bundled meta-models and kept in ``--work``. Every
one is built in each precision for two GPUs, and asked of ``PlanCache`` afterwards (``found``). The first
``--again-tasks`` are built twice more: ``again`` as they are, ``timing cache`` with the timing cache that TensorRT-RTX
still has calls for and this package leaves out. On a busy machine the processor time of the first build says more
than its seconds.
Writes ``plan_builds.json`` and ``plan_builds.md``.

Exit code 1: a plan could not be built.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from exporting.tasks import WORK, load_task, metas
from measuring import machine
from measuring.subjects import ROOT

from metanas.artifact import write_json
from metanas_export import engine, timing_cache
from metanas_export.builder import Precision
from metanas_export.errors import TensorRTBuildError
from metanas_export.model import onnx_bytes
from metanas_export.monitoring import resident_bytes
from metanas_export.obtaining import obtain
from metanas_export.plan import Profile
from metanas_export.plan_cache import PlanCache

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TARGETS = ("sm_86", "sm_120")
PROFILE = Profile(1, 1, 32)
COLUMNS = ("first", "processor", "again", "timing cache", "found")


def main() -> int:
    """Build, print, write."""
    options = _parse()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # of the timing cache, which is what is asked
    trt, before = engine.find_tensorrt("tensorrt_rtx"), resident_bytes() or 0
    times: dict[str, dict[str, list[float]]] = {}
    sizes: dict[str, list[int]] = {}
    failures: list[str] = []
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        cache, timings = PlanCache(Path(folder) / "plans"), Path(folder) / "timing.bin"
        for number in range(options.tasks):
            subject = load_task(number, folder=options.work)
            for precision in PRECISIONS:
                model = onnx_bytes(subject.task, precision=precision)
                ask = {"precision": precision, "profile": PROFILE, "targets": TARGETS}
                try:
                    processor = time.process_time()
                    first = obtain(trt, subject.task, onnx_model=model, cache=cache, **ask)
                    processor = time.process_time() - processor
                    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                    again = []
                    if number < options.again_tasks:
                        again.append(engine.build_plan(trt, model, profile=PROFILE, targets=TARGETS).seconds)
                        again.append(_with_timing_cache(trt, model, timings))
                    found = obtain(trt, subject.task, onnx_model=model, cache=cache, **ask)
                except TensorRTBuildError as error:
                    failures.append(f"{subject.name} {precision}: {error}")
                    continue
                if (first.way, found.way, found.plan.data) != ("built", "found", first.plan.data):
                    raise SystemExit(f"{subject.name} {precision}: {first.way}, then {found.way}: the cache is broken")
                row = times.setdefault(precision, {name: [] for name in COLUMNS})
                row["first"].append(first.plan.seconds)
                row["processor"].append(processor)
                for name, seconds in zip(("again", "timing cache"), again, strict=False):
                    row[name].append(seconds)
                row["found"].append(found.seconds)
                sizes.setdefault(precision, []).append(len(first.plan.data))
            print(f"{subject.name}: built", file=sys.stderr, flush=True)
    values: dict[str, Any] = {
        "machine": machine.describe(),
        "command": f"python benchmarks/plan_builds.py --tasks {options.tasks} --again-tasks {options.again_tasks}",
        "metas": metas(),
        "tensorrt": engine.describe(trt),
        "targets": TARGETS,
        "profile": PROFILE.to_dict(),
        "seconds": times,
        "plan_bytes": sizes,
        "failures": failures,
        "memory_bytes": {"before_the_first_build": before, "peak_of_the_first_build": peak},
    }
    text = markdown(values)
    print(text)
    write_json(options.output / "plan_builds.json", values)
    (options.output / "plan_builds.md").write_text(text, encoding="utf-8")
    return 1 if failures else 0


def _with_timing_cache(trt: Any, model: bytes, path: Path) -> float:
    """Seconds of a build that is given the timing cache which TensorRT-RTX is otherwise not given."""
    used_by = timing_cache.used_by
    timing_cache.used_by = lambda _: True
    started = time.perf_counter()
    try:
        engine.build_plan(trt, model, profile=PROFILE, targets=TARGETS, timing_cache=path)
    finally:
        timing_cache.used_by = used_by
    return time.perf_counter() - started


def markdown(values: dict[str, Any]) -> str:
    """The table, with the machine above it."""
    about, memory = values["machine"], values["memory_bytes"]
    lines = [
        f"`{values['command']}` on {about['processor']}, {about['cores']} cores, load average "
        f"{about['load_average_at_start']:g} before it began, no GPU; {values['tensorrt']}, targets "
        f"{', '.join(values['targets'])}, batches 1 to {values['profile']['max_batch']}; tasks of the bundled "
        f"meta-models {', '.join(values['metas'])}.",
        "",
        "| precision | plans | build, median (slowest) | processor time | again | with timing cache | found | size |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for precision, row in values["seconds"].items():
        middle = {name: statistics.median(seconds) for name, seconds in row.items() if seconds}
        again, with_timings = (f"{middle[name]:.2f} s" if name in middle else "" for name in ("again", "timing cache"))
        lines.append(
            f"| {precision} | {len(row['first'])} | {middle['first']:.2f} s ({max(row['first']):.2f} s) | "
            f"{middle['processor']:.2f} s | "
            f"{again} | {with_timings} | {1000 * middle['found']:.0f} ms | "
            f"{statistics.median(values['plan_bytes'][precision]) / 1e6:.2f} MB |"
        )
    lines += [
        "",
        f"Memory of the process, torch and ONNX Runtime in it: {memory['before_the_first_build'] / 2**20:.0f} MiB "
        f"before the first build, at most {memory['peak_of_the_first_build'] / 2**20:.0f} MiB in it.",
        *(f"\nNot built: {failure}" for failure in values["failures"]),
    ]
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--again-tasks", type=int, default=8, metavar="N", help="built twice more (%(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="for adapted tasks")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
