"""What learning a support set takes of memory, beside what the server estimates before it lets one in.

    python benchmarks/support_memory.py

Each support set is learnt in a process of its own, with two gradient steps: the peak comes where the network
sees the whole set at once. Taken is private memory (``VmData``), which ``--worker-memory-mb`` bounds, looked at
every other millisecond. Prints and writes a table and JSON. Passes, with exit code 0, if no set took more than
was estimated.
"""

import argparse
import dataclasses
import multiprocessing
import os
import re
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from enduring import report
from measuring import machine
from measuring.subjects import ROOT, named_meta

from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.tasks import SupportSet
from metanas_serving.memory import BASE_BYTES, image_bytes

COUNTS = {"bundled": (200, 600), "untrained": (100, 200)}
MIB = 2**20
_CLASSES = 2
_LOOK_SECONDS = 0.002


def main() -> int:
    """Learn, print, write."""
    options = _parse()
    described = machine.describe()
    rows, values, holds = [], [], True
    for name, counts in COUNTS.items():
        few, many = (_in_a_process(name, count) for count in counts)
        estimate = image_bytes(_meta(name))
        taken = (many - few) / (counts[1] - counts[0])
        fits = all(peak <= BASE_BYTES + estimate * count for peak, count in zip((few, many), counts, strict=True))
        holds = holds and fits
        values.append({"meta": name, "images": counts, "bytes": (few, many), "estimate_bytes_an_image": estimate})
        peaks = "; ".join(
            f"{count} images {peak / MIB:,.0f} MiB" for peak, count in zip((few, many), counts, strict=True)
        )
        rows.append([name, peaks, f"{taken / MIB:.1f} MiB", f"{estimate / MIB:.1f} MiB", "yes" if fits else "**no**"])
    lines = [
        "# Memory of a support set",
        "",
        report.header(
            "python benchmarks/support_memory.py", described, load_average_at_end=round(os.getloadavg()[0], 2)
        ),
        "",
        f"Images of 28 x 28 pixels, two gradient steps, compiled engine. The estimate adds {BASE_BYTES // MIB} MiB for "
        "the process itself.",
        "",
        *report.table(["meta-model", "peak", "an image more", "estimate", "within it"], rows),
    ]
    report.write(options.output, "support_memory", lines=lines, values={"machine": described, "sets": values})
    return 0 if holds else 1


def _meta(name: str) -> MetaModel:
    meta = named_meta(name)
    return dataclasses.replace(meta, schedule=dataclasses.replace(meta.schedule, architecture_steps=1, weight_steps=1))


def _in_a_process(name: str, count: int) -> int:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak, name, count).result()


def peak(name: str, count: int) -> int:
    """The most private memory of this process while it learns ``count`` images, in bytes."""
    torch.set_num_threads(1)
    meta = _meta(name)
    adapt(meta, _support(meta, _CLASSES), seed=0)  # a server's processes have warmed up too
    seen, is_over = [_private_bytes()], threading.Event()

    def look() -> None:
        while not is_over.is_set():
            seen.append(_private_bytes())
            time.sleep(_LOOK_SECONDS)

    looking = threading.Thread(target=look)
    looking.start()
    adapt(meta, _support(meta, count), seed=0)
    is_over.set()
    looking.join()
    return max(seen)


def _support(meta: MetaModel, count: int) -> SupportSet:
    size = (meta.preprocessing.channels, meta.preprocessing.height, meta.preprocessing.width)
    images = torch.randint(256, (count, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return SupportSet(images, torch.arange(count) % _CLASSES, tuple(f"class {one}" for one in range(_CLASSES)))


def _private_bytes() -> int:
    [kibibytes] = re.findall(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return 1024 * int(kibibytes)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="of its table and JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
