"""`make bench`: how fast everything is on this machine, beside how fast it could be.

    python benchmarks/speed.py                     all parts; benchmarks/results/speed.json and speed.md
    python benchmarks/speed.py --only classify     some parts; prints, and writes where --output says
    python benchmarks/speed.py --quick             few steps and calls: does it work

The parts, in order:

    untrained    Adapt from a meta-model where nothing is pruned, on one thread and on all
    bundled      Adapt from the bundled one, in one process and through a server
    large        Adapt at 84 x 84 x 3
    pair         two Adapts at once
    classify     one image a call
    jpeg         one 84 x 84 JPEG a call
    throughput   32 callers, against ONNX Runtime alone
    busy         Classify while two Adapts run
    training     meta-training, search phase
    start        of a server
    memory       of a task in a server

Before and after each part the rate of a matrix product is measured, for its limit. METANAS_NATIVE=0
measures PyTorch's path. An Adapt that would take more than some minutes is measured with fewer steps
and scaled, and its row says so. Exit codes: 0 all was measured; 1 a part could not be; 2 wrong arguments.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import adapt_rows, classify_rows, engine, server_rows, training_rows
from measuring.machine import Rates, describe, fastest, probe
from measuring.row import Row
from measuring.settings import Settings
from measuring.subjects import ROOT, omniglot_classes
from measuring.table import dense_gflop, markdown, row_values

from metanas.artifact import write_json

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure, and what the table says of it."""

    measure: Callable[[Settings], Any]
    rows: Callable[[Any, Rates], list[Row]]


PARTS = {
    "untrained": Part(adapt_rows.measure_untrained, adapt_rows.untrained_rows),
    "bundled": Part(adapt_rows.measure_bundled, adapt_rows.bundled_rows),
    "large": Part(adapt_rows.measure_colour, adapt_rows.colour_rows),
    "pair": Part(adapt_rows.measure_pair, adapt_rows.pair_rows),
    "classify": Part(classify_rows.measure_classify, classify_rows.classify_rows),
    "jpeg": Part(classify_rows.measure_jpeg, classify_rows.jpeg_rows),
    "throughput": Part(classify_rows.measure_throughput, classify_rows.throughput_rows),
    "busy": Part(classify_rows.measure_busy, classify_rows.busy_rows),
    "training": Part(training_rows.measure_training, training_rows.training_rows),
    "start": Part(server_rows.measure_start, server_rows.start_rows),
    "memory": Part(server_rows.measure_memory, server_rows.memory_rows),
}


def main() -> int:
    """Measure, print the table, write JSON and Markdown."""
    arguments = _parse()
    # Also when it is told to end, it ends the servers and processes that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = arguments.only or list(PARTS)
    whole = names == list(PARTS) and not arguments.quick
    output: Path | None = arguments.output or (RESULTS if whole else None)
    torch.set_num_threads(1)
    machine = {**describe(), "data": omniglot_classes().name, "engine": engine.name()}
    began = time.perf_counter()
    probes = [probe()]
    rows: list[Row] = []
    parts: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(folder=Path(folder), quick=arguments.quick)
        for name in names:
            started = time.perf_counter()
            print(f"{name} ...", end="", flush=True, file=sys.stderr)
            try:
                found = PARTS[name].measure(settings)
            except Exception as error:  # the other parts are still worth measuring
                failed[name] = f"{type(error).__name__}: {error}"
                print(f" FAILED: {failed[name]}", file=sys.stderr)
                rows.append(Row(what=name, measured=f"could not be measured: {failed[name]}"))
                continue
            seconds = time.perf_counter() - started
            probes.append(probe())
            rates = fastest(*probes[-2:])
            of_part = PARTS[name].rows(found, rates)
            rows += of_part
            parts[name] = {
                "seconds_to_measure": seconds,
                "matmul_gflops": rates.to_dict(),
                "rows": [row_values(row) for row in of_part],
            }
            print(f" {seconds:.0f} s; {'; '.join(row.measured for row in of_part)}", file=sys.stderr)
    rates = fastest(*probes)
    text = markdown(machine, rates, rows, quick=arguments.quick)
    print(text)
    if output is not None:
        results = {
            "machine": machine,
            "quick": arguments.quick,
            "seconds_to_measure": time.perf_counter() - began,
            "matmul_gflops": {"size": 2048, **rates.to_dict(), "probes": [one.to_dict() for one in probes]},
            "dense_gflop_per_image_forward_and_backward": dense_gflop(),
            "parts": parts,
            "failed": failed,
        }
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "speed.json", results)
        (output / "speed.md").write_text(text, encoding="utf-8")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help="these parts")
    parser.add_argument("--quick", action="store_true", help="few steps and calls")
    parser.add_argument("--output", type=Path, help="folder of speed.json and speed.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
