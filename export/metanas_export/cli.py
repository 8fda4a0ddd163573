"""The command ``to_tensorrt.py task_model.pt``: an adapted task for a device.

    task_model.pt  ->  task_model.onnx         checked against torch on the task's own images
                   ->  task_model.plan         where a TensorRT is installed
                   ->  task_model.plan.json    names, preprocessing, versions: the plan's sidecar

Results are told on standard output, errors on standard error. Each file is written whole or
not at all. The calculations are in ``graph``, ``check`` and ``engine``.

Exit codes:

    0   all that was asked for is written
    1   the file cannot be used, or the result cannot be written
    2   the command line makes no sense
    3   the ONNX file is written and checked; no TensorRT is installed
    4   the ONNX file is written and checked; TensorRT failed to build a plan
    5   the ONNX graph does not answer as torch does, or ONNX Runtime is missing; nothing written
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from metanas.artifact import load_task, write_atomically
from metanas.errors import MetaNASError
from metanas.model import TaskModel
from metanas_export import check, engine
from metanas_export.builder import Precision
from metanas_export.errors import ExportError, TensorRTMissingError
from metanas_export.graph import onnx_bytes

MAX_BATCH = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        _export(
            options.task_model,
            folder=options.output or options.task_model.parent,
            precision=options.precision,
            profile=None if options.onnx_only else engine.Profile(max_batch=options.max_batch),
        )
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except MetaNASError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or options.task_model}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _export(path: Path, *, folder: Path, precision: Precision, profile: engine.Profile | None) -> None:
    """Write the files of one task; ``profile`` None stops after the ONNX file.

    Raises:
        MetaNASError, OSError: with what was wrong; what had been written before stays.
    """
    task = load_task(path)
    _say(f"{path}: {len(task.class_names)} classes, {task.report.parameter_count:,} parameters")
    started = time.perf_counter()
    model = onnx_bytes(task, precision=precision)
    milliseconds = 1000 * (time.perf_counter() - started)
    agreements = check.compare(task, model, precision=precision)
    _say(f"\n{check.table(agreements)}\n")
    for found in agreements:
        check.require(found, precision=precision)

    folder.mkdir(parents=True, exist_ok=True)
    onnx_path = folder / f"{path.stem}.onnx"
    write_atomically(onnx_path, model)
    _say(f"wrote {onnx_path} ({len(model):,} bytes, {precision}, built in {milliseconds:.0f} ms)")
    plan_path = folder / f"{path.stem}.plan"
    try:
        if profile is not None:
            _write_plan(plan_path, task, model=model, precision=precision, profile=profile)
            return
    except TensorRTMissingError as error:
        raise TensorRTMissingError(f"{error}. {onnx_path} is complete without it") from error
    finally:
        _warn_of_stale_plan(plan_path, model)


def _write_plan(path: Path, task: TaskModel, *, model: bytes, precision: Precision, profile: engine.Profile) -> None:
    trt = engine.find_tensorrt()
    patience = "seconds" if trt.__name__ == "tensorrt_rtx" else "up to minutes on a small device"
    _say(f"building a plan with {engine.describe(trt)} for batches of 1 to {profile.max_batch}; takes {patience} ...")
    started = time.perf_counter()
    plan = engine.build_plan(trt, model, profile=profile)
    seconds = time.perf_counter() - started
    content = json.dumps(engine.sidecar(plan, task, precision=precision), indent=2, ensure_ascii=False)
    # The sidecar first: it names the plan's hash, so a plan without its own sidecar is found out.
    write_atomically(_sidecar_path(path), content.encode() + b"\n")
    write_atomically(path, plan.data)
    targets = ", ".join(plan.compute_capabilities) if plan.compute_capabilities else "of this machine's GPU"
    _say(f"wrote {path} ({len(plan.data):,} bytes, built in {seconds:.1f} s, compute capability {targets})")
    _say(f"wrote {_sidecar_path(path)}")
    _say("The plan was built, not run: what is checked above is the ONNX graph it was built from.")


def _warn_of_stale_plan(plan_path: Path, model: bytes) -> None:
    """Say so if the plan that lies beside the new ONNX file was built from another one."""
    if not plan_path.exists():
        return
    try:
        built_from = json.loads(_sidecar_path(plan_path).read_bytes())["onnx_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        built_from = None
    if built_from != engine.sha256(model):
        print(f"warning: {plan_path} is from an earlier export, not of this ONNX file; delete it", file=sys.stderr)


def _sidecar_path(plan_path: Path) -> Path:
    return plan_path.with_name(f"{plan_path.name}.json")


def _say(text: str) -> None:
    print(text, flush=True)


def _batch(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_BATCH:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_BATCH}, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="to_tensorrt.py",
        description="Turn an adapted task into an ONNX file, checked against torch, and a TensorRT plan.",
        epilog=(__doc__ or "")[(__doc__ or "").index("Exit codes:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task_model", type=Path, metavar="task_model.pt", help="what Adapt or ExportTask gave")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write; default: beside the task model")
    parser.add_argument("--onnx-only", action="store_true", help="stop after the ONNX file; needs no TensorRT")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="of weights and activations; input and output are float32 either way; default: fp32",
    )
    parser.add_argument(
        "--max-batch",
        type=_batch,
        default=engine.Profile().max_batch,
        metavar="N",
        help="largest batch that the plan takes; the ONNX file takes any; default: %(default)s",
    )
    return parser
