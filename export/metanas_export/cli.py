"""The commands ``metanas-export`` and ``to_tensorrt.py``: an adapted task for a device.

    task_model.pt  ->  task_model.onnx                    onnx
                   ->  task_model.plan, .plan.json        tensorrt, tensorrt-rtx: with a sidecar
                   ->  task_model.xml, .bin               openvino
                   ->  task_model.pte                     executorch
                   ->  task_model.tflite                  litert
                   ->  triton/                            triton: a model repository

Results are told on standard output, errors on standard error. The work is in ``exporting``.

Exit codes:

    0   all that was asked for is written
    1   the file cannot be used, or the result cannot be written
    2   the command line makes no sense
    3   no TensorRT is installed; the other formats are written and checked
    4   TensorRT failed to build a plan; the other formats are written and checked
    5   a file does not answer as torch does, or ONNX Runtime is missing; that file is not written
    6   OpenVINO, ExecuTorch or LiteRT is not installed; the other formats are written and checked
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from metanas.artifact import load_task
from metanas.errors import MetaNASError
from metanas_export.builder import PRECISIONS
from metanas_export.check import LEAST_AGREEMENT
from metanas_export.errors import ExportError, UnsupportedTargetError
from metanas_export.exporting import Order, export
from metanas_export.formats import FORMATS, Format
from metanas_export.pictures import MAX_PICTURES, read_pictures
from metanas_export.plan import BuildLimits, PlanOptions, Profile
from metanas_export.targets import capability, flag

MAX_BATCH = 4096


def main(arguments: Sequence[str] | None = None, *, formats: tuple[Format, ...] = ("onnx",)) -> int:
    """Run the command; returns its exit code.

    Args:
        formats: what is written where no ``--format`` is given.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["prebuild"]:
        from metanas_export import prebuild

        return prebuild.main(arguments[1:])
    parser = _parser(formats)
    options = parser.parse_args(arguments)
    if (options.task_model is None) == (options.server is None):
        parser.error("name one of task_model.pt and --server HOST --task ID")
    if (options.server is None) != (options.task is None):
        parser.error("--server and --task go together: --server HOST:PORT --task ID")
    try:
        failures = _run(options, formats=tuple(options.formats or formats))
    except MetaNASError as error:
        failures = [error]
    except OSError as error:
        print(f"error: {error.filename or options.task_model}: {error.strerror or error}", file=sys.stderr)
        return 1
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    codes = [error.exit_code if isinstance(error, ExportError) else 1 for error in failures]
    return codes[0] if codes else 0


def _run(options: argparse.Namespace, *, formats: tuple[Format, ...]) -> list[MetaNASError]:
    path: Path = options.task_model
    with TemporaryDirectory() as folder:
        if options.server is not None:
            from metanas_export.fetch import fetch_task

            path = fetch_task(options.server, options.task, folder=Path(folder))
        task = load_task(path)
    _say(f"{path.name}: {len(task.class_names)} classes, {task.report.parameter_count:,} parameters")
    order = Order(
        formats=formats,
        folder=options.output or (Path() if options.server is not None else path.parent),
        name=path.stem,
        precision=options.precision,
        profile=options.profile or Profile(max_batch=options.max_batch),
        targets=options.target,
        takes_pictures=options.preprocess,
        gives_probabilities=options.softmax,
        min_agreement=options.min_agreement,
        plan_options=PlanOptions(
            version_compatible=options.version_compatible, hardware_compatible=options.hardware_compatible
        ),
        limits=BuildLimits(
            seconds=options.max_build_seconds,
            memory_bytes=None if options.max_build_mb is None else int(1e6 * options.max_build_mb),
        ),
        benchmark=options.benchmark,
    )
    pictures = None if options.verify is None else read_pictures(options.verify, task)
    return export(task, order, pictures=pictures, say=_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr if text.startswith("warning:") else sys.stdout, flush=True)


class _Formats(argparse.Action):
    """``--format a,b --format c``: each once, in the order given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: object = None
    ) -> None:
        asked = str(values).split(",")
        for one in asked:
            if one not in FORMATS:
                parser.error(f"there is no format {one!r}; choose from {', '.join(FORMATS)}")
        namespace.formats = list(dict.fromkeys([*(namespace.formats or []), *asked]))


def _batch(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_BATCH:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_BATCH}, got {text!r}")
    return value


def _profile(text: str) -> Profile:
    try:
        smallest, best, largest = (int(part) for part in text.split(","))
        profile = Profile(smallest, best, largest)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be batch sizes MIN,OPT,MAX that do not fall, such as 1,1,32, got {text!r}"
        ) from error
    if profile.max_batch > MAX_BATCH:
        raise argparse.ArgumentTypeError(f"must end at {MAX_BATCH} or below, got {text!r}")
    return profile


def _targets(text: str) -> tuple[str, ...]:
    try:
        return tuple(flag(capability(one)) for one in text.split(","))
    except UnsupportedTargetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be a percentage from 0 to 100, got {text!r}")
    return value / 100


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _parser(formats: tuple[Format, ...]) -> argparse.ArgumentParser:
    epilog = (__doc__ or "")[(__doc__ or "").index("Exit codes:") :]
    parser = argparse.ArgumentParser(
        description="Turn an adapted task into files for a device, each checked against torch where it can run here.",
        epilog=f"{epilog}\nmetanas-export prebuild --help: plans for a whole meta-model beforehand.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task_model", type=Path, nargs="?", metavar="task_model.pt", help="what Adapt or ExportTask gave")
    add("--server", metavar="HOST:PORT", help="fetch the task from a running server instead")
    add("--task", metavar="ID", help="of the task at the server")
    add(
        "--format",
        action=_Formats,
        dest="formats",
        metavar="FORMAT,...",
        help=f"of {', '.join(FORMATS)}; may be repeated; default: {','.join(formats)}",
    )
    add("--output", type=Path, metavar="DIR", help="where to write; default: beside the task model")
    add("--precision", choices=PRECISIONS, default="fp32", help="of weights and activations; default: fp32")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--max-batch",
        type=_batch,
        default=Profile().max_batch,
        metavar="N",
        help="largest batch of formats that fix one (TensorRT, ExecuTorch, Triton); default: %(default)s",
    )
    sizes.add_argument("--profile", type=_profile, metavar="MIN,OPT,MAX", help="all three batch sizes of a plan")
    add("--target", type=_targets, metavar="sm_80,...", help="GPUs that TensorRT-RTX builds for; default: all it can")
    add("--version-compatible", action="store_true", help="plan: later versions of TensorRT run it too")
    add("--hardware-compatible", action="store_true", help="plan: of TensorRT, for all GPUs from Ampere on")
    add("--max-build-seconds", type=_above_zero, metavar="S", help="stop the build of a plan that takes longer")
    add("--max-build-mb", type=_above_zero, metavar="MB", help="stop it when the process takes more memory")
    add("--preprocess", action="store_true", help="ONNX file: take uint8 RGB pictures (batch, height, width, 3)")
    add("--softmax", action="store_true", help="ONNX file: give probabilities too, at the task's own temperature")
    add(
        "--verify",
        type=Path,
        metavar="FOLDER",
        help=f"check on up to {MAX_PICTURES} more pictures, in a folder for each class, called as the class",
    )
    limits = {least: [one for one in PRECISIONS if LEAST_AGREEMENT[one] == least] for least in LEAST_AGREEMENT.values()}
    add(
        "--min-agreement",
        type=_percent,
        metavar="PERCENT",
        help="of images that must get torch's class; default: "
        + ", ".join(f"{100 * least:g} for {'/'.join(names)}" for least, names in limits.items()),
    )
    add("--benchmark", action="store_true", help="measure what was written: load time, latency, memory")
    return parser
