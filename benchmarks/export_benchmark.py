"""One task in every format and precision that runs here: size, load time, latency, throughput, memory, agreement.

    python benchmarks/export_benchmark.py

The task is adapted by the default bundled meta-model, or taken from where ``export_agreement.py`` keeps it; what is
measured, and how, is in ``metanas_export.benchmark``.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from exporting.agreeing import FORMATS
from exporting.tasks import load_task, metas
from measuring import machine
from measuring.subjects import ROOT

from metanas_export import benchmark, benchmark_report
from metanas_export.benchmark import Target
from metanas_export.builder import PRECISIONS, Precision
from metanas_export.errors import FormatError
from metanas_export.formats import Format, convert
from metanas_export.model import build_onnx

TASK = 2
"""Of ``exporting.tasks``: 20-way 1-shot."""


def main() -> int:
    """Export, measure, print, write."""
    options = _parse()
    torch.set_num_threads(1)
    subject = load_task(TASK)
    targets = []
    with TemporaryDirectory() as folder:
        for precision in options.precision:
            model = build_onnx(subject.task, precision=precision)
            for form in options.format:
                try:
                    if form == "onnx":
                        contents = {".onnx": model.SerializeToString()}
                    else:
                        contents = convert(
                            form, subject.task, model=model, precision=precision, max_batch=benchmark.MAX_BATCH
                        )
                except FormatError as error:
                    print(f"{form} {precision}: {error}", file=sys.stderr)
                    continue
                targets.append(_written(contents, Path(folder), form=form, precision=precision))
        found = benchmark.of_task(sorted(targets, key=lambda one: FORMATS.index(one.kind)), subject.task)
    text = benchmark_report.table(found)
    print(text)
    about = machine.describe()
    head = (
        f"Measured by `python benchmarks/export_benchmark.py` on {about['processor']}, {about['cores']} cores: "
        f"{subject.kind}, {metas()[0]}."
    )
    (options.output / "export_benchmark.md").write_text(f"{head}\n\n```\n{text}\n```\n", encoding="utf-8")
    for path in benchmark_report.write(found, options.output, name="export_benchmark"):
        print(f"wrote {path}")
    return 0


def _written(contents: dict[str, bytes], folder: Path, *, form: Format, precision: Precision) -> Target:
    paths = [folder / f"{form}_{precision}{suffix}" for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return Target(f"{form} {precision}", form, paths[0])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
