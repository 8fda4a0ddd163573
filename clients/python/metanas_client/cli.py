"""`metanas-client`: the client on the command line.

    adapt FOLDER               learn a task from a folder of class folders of PNG and JPEG files
    jobs                       list the jobs that the server remembers
    cancel JOB_ID              end a job
    classify TASK_ID IMAGE...  classify files
    tasks                      list the server's tasks, page by page
    alias NAME TASK_ID         give a task a name, or move the name to it
    aliases                    list names with their tasks
    delete TASK_ID             forget a task
    export TASK_ID FILE        write the task's file
    run MODEL IMAGE...         classify files by an exported model, without a server

    exit status   0  done
                  1  the server, the way to it, or the runtime of an exported model failed
                  2  the command line or its input is wrong: nothing to gain from trying again

Results go to standard output, as text or with `--json` as one JSON value; all else to standard
error. It knows the public client and nothing below it; what speaks gRPC is imported by the commands
that ask a server, so that ``run`` does without.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

from metanas_client.defaults import DEFAULT_TIMEOUT_SECONDS
from metanas_client.errors import (
    InvalidRequestError,
    JobNotFoundError,
    KeyTakenError,
    MetaNASClientError,
    ModelFileError,
    PreconditionError,
    ServerUnavailableError,
    TaskNotFoundError,
    UnsupportedImageError,
)
from metanas_client.local import TaskRunner
from metanas_client.messages import ExportFormat, Prediction, TaskInfo
from metanas_client.progress import job_line, print_progress

if TYPE_CHECKING:
    from metanas_client.adapt_request import AdaptOptions
    from metanas_client.client import FewShotClient

Outcome: TypeAlias = tuple[object, str]
"""What a command found: as a JSON value, and as text."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_CALLERS_FAULTS = (
    InvalidRequestError,
    UnsupportedImageError,
    TaskNotFoundError,
    JobNotFoundError,
    KeyTakenError,
    PreconditionError,
    ModelFileError,
)


def read_support_folder(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Find the images of each class folder.

    Returns:
        The PNG and JPEG files by class name, both sorted; and everything that is none of these.
        Hidden files and folders are in neither.

    Raises:
        InvalidRequestError: no such folder, or no class folder in it.
    """
    if not folder.is_dir():
        raise InvalidRequestError(
            f"{folder} is not a folder; pass a folder that holds a folder of images for each class"
        )
    classes: dict[str, list[Path]] = {}
    others: list[Path] = []
    for entry in _visible(folder):
        if not entry.is_dir():
            others.append(entry)
            continue
        files = _visible(entry)
        classes[entry.name] = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        others.extend(file for file in files if file not in classes[entry.name])
    if not classes:
        raise InvalidRequestError(
            f"{folder} holds no class folders; put the images of each class in a folder of its name"
        )
    return classes, others


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        result, text = options.run(options)
        print(json.dumps(result, indent=2, ensure_ascii=False) if options.json else text, flush=True)
    except MetaNASClientError as error:
        print(f"metanas-client: {error}", file=sys.stderr)
        return 2 if isinstance(error, _CALLERS_FAULTS) else 1
    except BrokenPipeError:  # whoever reads the answer has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for Python, which writes out what is left at the end
        return 1
    except OSError as error:  # a file of the user's; what the transport raises was caught above
        print(f"metanas-client: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("metanas-client: stopped", file=sys.stderr)
        return 1
    return 0


def _at_server(command: Callable[["FewShotClient", argparse.Namespace], Outcome]) -> Callable[..., Outcome]:
    """The command with a client of the server that the options name."""

    def run(options: argparse.Namespace) -> Outcome:
        from metanas_client.client import FewShotClient

        with FewShotClient(
            options.server,
            timeout_seconds=options.timeout_seconds,
            tls=options.tls,
            root_certificate=options.root_certificate,
            client_certificate=options.client_certificate,
            client_key=options.client_key,
            token=None if options.token_file is None else options.token_file.read_text().strip(),
            insecure=options.insecure,
        ) as client:
            return command(client, options)

    return run


def _adapt(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    support, others = read_support_folder(options.folder)
    for other in others:
        print(f"skipped {other}: no PNG or JPEG file in a class folder", file=sys.stderr)
    image_count = sum(map(len, support.values()))
    print(f"adapting to {len(support)} classes, {image_count} images, at {client.address} ...", file=sys.stderr)
    # A job, not the call that waits: for that, a support set may be too large.
    job = client.start_adapt(
        support, seed=options.seed, options=_chosen(options), idempotency_key=options.idempotency_key
    )
    try:
        if options.progress:
            print_progress(job.watch())
        info = job.result().info
    except BaseException as error:  # Ctrl-C too
        if not isinstance(error, ServerUnavailableError):
            job.cancel()
        raise
    return asdict(info), _task_text(info)


def _chosen(options: argparse.Namespace) -> "AdaptOptions":
    from metanas_client.adapt_request import AdaptOptions

    return AdaptOptions(**{field.name: getattr(options, field.name) for field in fields(AdaptOptions)})


def _jobs(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    statuses = client.jobs()
    return [asdict(status) for status in statuses], "\n".join(map(job_line, statuses)) or "no jobs"


def _cancel(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    status = client.job(options.job_id).cancel()
    return asdict(status), job_line(status)


def _classify(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    return _answers(options.images, client.task(options.task_id).classify(options.images))


def _run(options: argparse.Namespace) -> Outcome:
    with TaskRunner(options.model, allow_code=options.allow_code) as runner:
        return _answers(options.images, runner.classify(options.images))


def _answers(images: list[Path], answers: list[Prediction]) -> Outcome:
    pairs = list(zip(images, answers, strict=True))
    return (
        [{"image": str(image), **asdict(answer)} for image, answer in pairs],
        "\n".join(_prediction_text(image, answer=answer) for image, answer in pairs),
    )


def _tasks(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    infos = [task.info for task in itertools.islice(client.iterate_tasks(), options.limit)]
    return [asdict(info) for info in infos], "\n".join(map(_task_line, infos)) or "no tasks"


def _alias(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    client.set_alias(options.alias, options.task_id, pinned=options.pin)
    task_id = client.aliases()[options.alias]
    return {"alias": options.alias, "task_id": task_id, "pinned": options.pin}, f"{options.alias} is task {task_id}"


def _aliases(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    aliases = client.aliases()
    return aliases, "\n".join(f"{alias}  {task_id}" for alias, task_id in aliases.items()) or "no aliases"


def _delete(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    client.task(options.task_id).delete()
    return {"deleted": options.task_id}, f"deleted {options.task_id}"


def _export(client: "FewShotClient", options: argparse.Namespace) -> Outcome:
    path = client.task(options.task_id).export(options.file, format=options.format)
    byte_count = path.stat().st_size
    return {"path": str(path), "bytes": byte_count}, f"wrote {path} ({byte_count / 1e6:.2f} MB)"


def _shown(*names: str) -> str:
    """Names for a terminal: what would move its cursor or colour it is escaped."""
    return ", ".join("".join(one if one.isprintable() else repr(one)[1:-1] for one in name) for name in names)


def _task_text(info: TaskInfo) -> str:
    left_out = info.trust.leave_one_out_accuracy
    lines = [
        f"task              {info.task_id}",
        f"classes           {_shown(*info.class_names)}",
        f"support           {info.support_image_count} images, {info.support_accuracy:.1%} classified right"
        + ("" if left_out is None else f", {left_out:.1%} by the others alone"),
        f"parameters        {info.parameter_count:,} of {info.one_shot_parameter_count:,}",
        f"adaptation        {info.adapt_seconds:.1f} s, {info.architecture_steps} + {info.weight_steps} steps",
    ]
    return "\n".join(lines + [f"warning           {warning}" for warning in info.warnings])


def _task_line(info: TaskInfo) -> str:
    created = datetime.fromtimestamp(info.created_unix_seconds).astimezone().isoformat(sep=" ", timespec="seconds")
    return f"{info.task_id}  {created}  {info.parameter_count:>9,} parameters  {_shown(*info.class_names)}"


def _prediction_text(image: Path, *, answer: Prediction) -> str:
    others = list(answer.probabilities.items())[1:3]
    runners_up = ", ".join(f"{_shown(name)} {probability:.1%}" for name, probability in others)
    first = f"{image}  {_shown(answer.class_name)} {answer.probability:.1%}"
    answered = f"{first}  ({runners_up})" if runners_up else first
    return f"{answered}  none of these?" if answer.none_of_these else answered


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _parser() -> argparse.ArgumentParser:
    printed = argparse.ArgumentParser(add_help=False)
    printed.add_argument("--json", action="store_true", help="print one JSON value")
    shared = argparse.ArgumentParser(add_help=False, parents=[printed])
    shared.add_argument("--server", default="localhost:50051", metavar="HOST:PORT", help="default: %(default)s")
    for name, text in (
        ("root-certificate", "of the authority of the server's certificate, PEM; METANAS_ROOT_CERTIFICATE"),
        ("client-certificate", "that this client shows, PEM; METANAS_CLIENT_CERTIFICATE"),
        ("client-key", "its key, PEM; METANAS_CLIENT_KEY"),
        ("token-file", "holds the token that this client shows; or the token in METANAS_TOKEN"),
    ):
        shared.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)
    shared.add_argument("--tls", action="store_true", default=None, help="speak TLS; METANAS_TLS=1")
    shared.add_argument(
        "--insecure", action="store_true", default=None, help="send the token in plain text; METANAS_INSECURE=1"
    )
    shared.add_argument(
        "--timeout-seconds", type=float, default=DEFAULT_TIMEOUT_SECONDS, help="of each call; default: %(default)g"
    )
    parser = argparse.ArgumentParser(prog="metanas-client", description="Learn and use image tasks at a server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    adapt = commands.add_parser("adapt", parents=[shared], help="learn a task from a folder of class folders")
    adapt.add_argument("folder", type=Path, metavar="FOLDER")
    adapt.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    adapt.add_argument("--progress", action="store_true", help="tell on standard error how far it has got")
    adapt.add_argument("--idempotency-key", default="", metavar="KEY", help="sent again, it finds the same task")
    as_meta, at_server = "as the meta-model says", "as the server says"
    for name, kind, text, default in (
        ("architecture-steps", int, "gradient steps on weights and architecture", as_meta),
        ("weight-steps", int, "gradient steps on the weights of the pruned network", as_meta),
        ("learning-rate", float, "of the weights; the head has another where the meta-model has a variation", as_meta),
        ("architecture-learning-rate", float, "of the architecture", as_meta),
        ("max-parameters", int, "of the task network", f"{as_meta}, which seldom has a limit"),
        ("max-multiply-adds", int, "of the task network, for one image", f"{as_meta}, which seldom has a limit"),
        ("ttl-seconds", float, "how long the task is kept unless it has an alias then, 0 for good", at_server),
        ("threshold", float, "operations and inputs of a smaller weight are pruned", as_meta),
    ):
        adapt.add_argument(f"--{name}", type=kind, metavar="X", help=f"{text}; default: {default}")
    adapt.set_defaults(run=_at_server(_adapt))

    jobs = commands.add_parser("jobs", parents=[shared], help="list the jobs that the server remembers")
    jobs.set_defaults(run=_at_server(_jobs))

    cancel = commands.add_parser("cancel", parents=[shared], help="end a job")
    cancel.add_argument("job_id", metavar="JOB_ID")
    cancel.set_defaults(run=_at_server(_cancel))

    classify = commands.add_parser("classify", parents=[shared], help="classify PNG or JPEG files")
    classify.add_argument("task_id", metavar="TASK_ID")
    classify.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    classify.set_defaults(run=_at_server(_classify))

    tasks = commands.add_parser("tasks", parents=[shared], help="list the server's tasks, oldest first")
    tasks.add_argument("--limit", type=int, metavar="N", help="at most so many; default: all")
    tasks.set_defaults(run=_at_server(_tasks))

    alias = commands.add_parser("alias", parents=[shared], help="give a task a name, or move the name to it")
    alias.add_argument("alias", metavar="NAME")
    alias.add_argument("task_id", metavar="TASK_ID")
    alias.add_argument("--pin", action="store_true", help="keep the task in memory, however many others are asked")
    alias.set_defaults(run=_at_server(_alias))

    aliases = commands.add_parser("aliases", parents=[shared], help="list names with their tasks")
    aliases.set_defaults(run=_at_server(_aliases))

    delete = commands.add_parser("delete", parents=[shared], help="forget a task")
    delete.add_argument("task_id", metavar="TASK_ID")
    delete.set_defaults(run=_at_server(_delete))

    export = commands.add_parser("export", parents=[shared], help="write a task's file")
    export.add_argument("task_id", metavar="TASK_ID")
    export.add_argument("file", type=Path, metavar="FILE")
    export.add_argument(
        "--format", choices=get_args(ExportFormat), help="default: onnx where FILE ends in .onnx, else task_model"
    )
    export.set_defaults(run=_at_server(_export))

    run = commands.add_parser("run", parents=[printed], help="classify PNG or JPEG files by an exported model")
    run.add_argument("model", type=Path, metavar="MODEL", help="task_model.onnx, or task_model.plan with its sidecar")
    run.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    run.add_argument("--allow-code", action="store_true", help="let a version-compatible plan run the code it brings")
    run.set_defaults(run=_run)
    return parser
