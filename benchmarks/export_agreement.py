"""Do exported files answer as torch does? Every format and precision, on tasks that were really learned.

    python benchmarks/export_agreement.py --tasks 30

Tasks of unseen classes, 5- and 20-way, 1- and 5-shot, are adapted by all bundled meta-models in turn
(``exporting.tasks``) and kept in ``--work``: interrupted, it goes on from there. Each is exported to each format
that runs on this machine and compared with torch on held-out images of its classes.

ExecuTorch's converter takes 26 s of a core for a file, so only ``--executorch-tasks`` go through it; the table
says on how many tasks each row stands.

Exit code 1: a precision does not reach its limit.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import torch
from exporting import table
from exporting.agreeing import FORMATS, Agreement, Missing, Reference, agree
from exporting.tasks import WORK, kinds, load_task, metas
from measuring import machine
from measuring.subjects import ROOT

from metanas.artifact import write_json
from metanas_export.builder import PRECISIONS, Precision
from metanas_export.formats import Format
from metanas_export.model import build_onnx
from metanas_export.runtimes import PACKAGES


def main() -> int:
    """Adapt, export, compare, print, write."""
    options = _parse()
    found: dict[tuple[Format, Precision], list[Agreement]] = {}
    missing: dict[str, str] = {}
    job = partial(
        compare,
        folder=options.work,
        formats=options.format,
        precisions=options.precision,
        executorch_tasks=options.executorch_tasks,
    )
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for ones in pool.map(job, range(options.tasks)):
            for one in ones:
                if isinstance(one, Missing):
                    missing[f"{one.form} {one.precision}"] = one.reason
                else:
                    found.setdefault((one.form, one.precision), []).append(one)
    order = [(form, precision) for form in options.format for precision in options.precision]
    rows = [table.summarise(found[place]) for place in order if place in found]
    counts = Counter(map(str, kinds(options.tasks)))
    about = {
        **machine.describe(),
        "command": " ".join(["python benchmarks/export_agreement.py", *sys.argv[1:]]),
        "metas": metas(),
        "versions": ", ".join(f"{PACKAGES[form]} {metadata.version(PACKAGES[form])}" for form in options.format),
    }
    text = table.markdown(rows, missing, kinds=counts, about=about)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    agreements = [asdict(one) for several in found.values() for one in several]
    values = {"machine": about, "kinds": dict(counts), "rows": rows, "not_measured": missing, "tasks": agreements}
    write_json(options.output / "export_agreement.json", values)
    (options.output / "export_agreement.md").write_text(text, encoding="utf-8")
    return 0 if all(row["reached"] for row in rows) else 1


def compare(
    number: int, *, folder: Path, formats: Sequence[Format], precisions: Sequence[Precision], executorch_tasks: int
) -> list[Agreement | Missing]:
    """One task in all formats and precisions, in the process that calls."""
    formats = [form for form in formats if form != "executorch" or number < executorch_tasks]
    torch.set_num_threads(1)
    subject = load_task(number, folder=folder)
    started = time.perf_counter()
    reference = Reference.of(subject)
    found = []
    for precision in precisions:
        model = build_onnx(subject.task, precision=precision)
        found += [agree(subject, reference, model=model, form=form, precision=precision) for form in formats]
    seconds = time.perf_counter() - started
    print(f"{subject.name}: torch {reference.accuracy:.1%}, compared in {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--format", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--executorch-tasks",
        type=int,
        default=4,
        metavar="N",
        help="convert only the first N tasks to ExecuTorch; default: %(default)s",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes; default: %(default)s")
    parser.add_argument("--work", type=Path, default=WORK, help="for adapted tasks")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
