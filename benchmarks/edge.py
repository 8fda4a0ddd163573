"""What an answer on the device costs: from the start of a process to its first answer, and its memory.

    python benchmarks/edge.py

A 20-way task is adapted by the default bundled meta-model (or taken from where ``export_agreement.py`` keeps it) and
exported as ONNX; each way to answer (``exporting.first_answer``) is started anew for each measurement, on one
thread, in turn. Files lie in the page cache: a device that was just switched on also waits for its disk.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from exporting import first_answer
from exporting.tasks import load_task, metas
from measuring import machine
from measuring.subjects import ROOT, picture
from PIL import Image

from metanas.artifact import save_task, write_json
from metanas_export import onnx_bytes

WAYS = {
    "floor": "numpy, Pillow and ONNX Runtime alone",
    "runner": "TaskRunner, an ONNX file",
    "torch": "torch, the task model",
}
TASK = 2
"""Of ``exporting.tasks``: 20-way 1-shot."""


@dataclass(frozen=True, slots=True)
class Start:
    """One process."""

    seconds: float
    """From before it was started to its answer."""
    processor_seconds: float
    """Of all its threads, from start to end: what a busy machine changes little."""
    peak_bytes: int
    answer: str


def main() -> int:
    """Measure each way, print a table, write it."""
    options = _parse()
    subject = load_task(TASK)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {way: folder / ("task_model.pt" if way == "torch" else "task_model.onnx") for way in WAYS}
        save_task(models["torch"], subject.task)
        models["runner"].write_bytes(onnx_bytes(subject.task))
        Image.fromarray(picture(subject.query_images[0], subject.task.preprocessing)).save(folder / "image.png")
        found: dict[str, list[Start]] = {way: [] for way in WAYS}
        for number in range(options.starts + 1):
            for way, model in models.items():
                start = measure(way, model, folder / "image.png")
                if number > 0:  # the first one fills the page cache
                    found[way].append(start)
        file_bytes = {way: model.stat().st_size for way, model in models.items()}
    if {start.answer for start in found["runner"]} != {start.answer for start in found["torch"]}:
        raise SystemExit("torch and TaskRunner gave different answers; see benchmarks/export_agreement.py")
    about = {**machine.describe(), "meta": metas()[0]}
    text = table(found, file_bytes, about)
    print(text)
    values = {way: [asdict(start) for start in starts] for way, starts in found.items()}
    write_json(options.output / "export_edge.json", {"machine": about, "file_bytes": file_bytes, "starts": values})
    (options.output / "export_edge.md").write_text(text, encoding="utf-8")
    return 0


def measure(way: str, model: Path, image: Path) -> Start:
    """Start a process and wait for its answer."""
    command = [sys.executable, "-P", first_answer.__file__, way, str(model), str(image)]
    before = _processor_seconds()
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        seconds = time.perf_counter() - started
    if child.returncode != 0:
        raise SystemExit(f"{way} failed with exit code {child.returncode}; its error is above")
    answer, peak = line.strip().split("\t")
    return Start(seconds, _processor_seconds() - before, peak_bytes=int(peak), answer=answer)


def _processor_seconds() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(found: dict[str, list[Start]], file_bytes: dict[str, int], about: dict[str, object]) -> str:
    """A row for each way."""
    count = len(found["runner"])
    lines = [
        f"Measured by `python benchmarks/edge.py --starts {count}` on {about['processor']}, {about['cores']} cores, "
        f"load average {about['load_average_at_start']} when it ended; Python {about['python']}, ONNX Runtime "
        f"{about['onnxruntime']}, torch {about['torch']}; {count} starts each, files in the page cache; "
        f"meta-model {about['meta']}.",
        "",
        "| a 20-way task on | start to first answer: median | fastest | slowest | processor time: median "
        "| peak memory: median | file |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, starts in found.items():
        seconds = [start.seconds for start in starts]
        processor = statistics.median(start.processor_seconds for start in starts)
        peak = statistics.median(start.peak_bytes for start in starts)
        lines.append(
            f"| {WAYS[way]} | {statistics.median(seconds):.2f} s | {min(seconds):.2f} s | {max(seconds):.2f} s | "
            f"{processor:.2f} s | {peak / 1e6:.0f} MB | {file_bytes[way] / 1e3:.0f} kB |"
        )
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10, help="of each way; default: %(default)s")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
