"""The command ``metanas-export prebuild --meta meta.pt``: builds before the first task asks for one.

    main    the arguments after ``prebuild``  ->  exit code

Builds plans of architectures that hold every layer of the search space (``covering``). With TensorRT
each one fills the timing cache, so that a task's own build finds its layers timed. TensorRT-RTX times
nothing; there the command shows that everything in the search space can be built for the targets. On a
machine with a GPU the plans are kept, refittable, so a task of the same architecture needs no build.

Exit codes:

    0   everything was built
    1   the meta-model cannot be used
    2   the command line makes no sense
    3   no TensorRT is installed
    4   TensorRT failed to build a plan
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from metanas.artifact import load_meta
from metanas.errors import MetaNASError
from metanas.model import MetaModel
from metanas_export import engine, timing_cache
from metanas_export.builder import PRECISIONS, Precision
from metanas_export.covering import architectures, example_task
from metanas_export.device import find_device
from metanas_export.errors import ExportError
from metanas_export.model import onnx_bytes
from metanas_export.obtaining import obtain
from metanas_export.plan import BuildLimits, Profile
from metanas_export.plan_cache import PlanCache


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        _prebuild(
            load_meta(options.meta),
            ways=options.ways,
            precision=options.precision,
            profile=options.profile,
            targets=options.target,
            limits=BuildLimits(seconds=options.max_seconds),
        )
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except MetaNASError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or options.meta}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _prebuild(
    meta: MetaModel,
    *,
    ways: tuple[int, ...],
    precision: Precision,
    profile: Profile,
    targets: tuple[str, ...] | None,
    limits: BuildLimits,
) -> None:
    trt = engine.find_tensorrt()
    genotypes = architectures(meta)
    jobs = [(number, genotype, n_way) for n_way in ways for number, genotype in enumerate(genotypes)]
    print(f"{engine.describe(trt)}: {len(jobs)} plans in {precision}, batches {profile}", flush=True)
    started, cache = time.perf_counter(), PlanCache()
    for done, (number, genotype, n_way) in enumerate(jobs, start=1):
        task = example_task(meta, genotype, n_way=n_way)
        found = obtain(
            trt,
            task,
            onnx_model=onnx_bytes(task, precision=precision),
            precision=precision,
            profile=profile,
            cache=cache,
            targets=targets,
            limits=limits,
        )
        what = "preferred" if number == 0 else f"covering {number}"
        took = f"{found.plan.layers} layers, {found.way} in {found.seconds:.1f} s"
        print(f"[{done}/{len(jobs)}] {n_way}-way, {what}: {took}", flush=True)
        for reason in found.tried:
            print(f"    {reason}", flush=True)
    print(f"{len(jobs)} plans in {time.perf_counter() - started:.1f} s; {_timings(trt)}", flush=True)


def _timings(trt: ModuleType) -> str:
    if not timing_cache.used_by(trt):
        return "no timing cache: TensorRT-RTX times no kernels"
    path = timing_cache.location(trt, find_device())
    return f"timing cache: {path} ({path.stat().st_size:,} bytes)"


def _ways(text: str) -> tuple[int, ...]:
    try:
        ways = tuple(int(part) for part in text.split(","))
    except ValueError:
        ways = ()
    if not ways or not all(2 <= n_way <= 1000 for n_way in ways):
        raise argparse.ArgumentTypeError(f"must be numbers of classes from 2 to 1000 such as 5,20, got {text!r}")
    return ways


def _profile(text: str) -> Profile:
    try:
        smallest, best, largest = (int(part) for part in text.split(","))
        return Profile(smallest, best, largest)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be batch sizes min,opt,max such as 1,1,32, got {text!r}") from error


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be seconds above 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    text = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="metanas-export prebuild",
        description="Build plans of every layer in a meta-model's search space before the first task asks for one.",
        epilog=text[text.index("Exit codes:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--meta", type=Path, required=True, metavar="meta.pt", help="the meta-model")
    parser.add_argument("--ways", type=_ways, default=(5,), metavar="N,...", help="numbers of classes; default: 5")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    parser.add_argument(
        "--profile", type=_profile, default=Profile(), metavar="MIN,OPT,MAX", help="batch sizes; default: 1,1,32"
    )
    parser.add_argument(
        "--target",
        type=lambda text: tuple(text.split(",")),
        metavar="sm_86,...",
        help="GPUs to build for, with TensorRT-RTX; default: all",
    )
    parser.add_argument("--max-seconds", type=_seconds, metavar="S", help="limit of one build; default: none")
    return parser
