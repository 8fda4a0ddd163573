"""One target, measured in a process of its own: run by ``benchmark`` with an order on its command line.

    {"kind", "path", "images", "batches", "seconds", "threads", "scores"}
        ->  one line of JSON on stdout, and the scores of all images in the file ``scores``

The process loads numpy and the runtime, nothing else: its peak of memory is theirs. Started as a file,
so that the package, which imports torch, stays out of it; ``runtimes`` is loaded by its path.
"""

import importlib.util
import json
import resource
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

LEAST_CALLS = 20
WARM_UP_CALLS = 3


def main() -> None:
    """Measure what the order says."""
    order = json.loads(sys.argv[1])
    runtimes = _sibling("runtimes")
    images = np.load(order["images"])
    before = time.perf_counter()
    runtime = runtimes.load_runtime(order["kind"])
    started, runtime_bytes = time.perf_counter(), _peak_bytes()
    run = runtimes.open_model(order["kind"], Path(order["path"]), threads=order["threads"])
    opened = time.perf_counter()
    run(images[:1])
    answered = time.perf_counter()
    timings, processor = {}, {}
    for size in order["batches"]:
        batch = np.resize(images, (size, *images.shape[1:]))
        before_calls = time.process_time()
        timings[size] = _seconds(run, batch, limit=order["seconds"])
        processor[size] = (time.process_time() - before_calls) / (len(timings[size]) + WARM_UP_CALLS)
    np.save(order["scores"], np.concatenate([run(one[None]) for one in images]))
    print(
        json.dumps(
            {
                "runtime": runtime,
                "import_seconds": started - before,
                "load_seconds": opened - started,
                "first_answer_seconds": answered - opened,
                "call_seconds": timings,
                "processor_seconds": processor,
                "peak_bytes": _peak_bytes(),
                "runtime_bytes": runtime_bytes,
            }
        )
    )


def _seconds(run: Any, batch: Any, *, limit: float) -> list[float]:
    """Times of single calls, one after the other, for ``limit`` seconds and at least ``LEAST_CALLS`` calls."""
    for _ in range(WARM_UP_CALLS):
        run(batch)
    taken: list[float] = []
    end = time.perf_counter() + limit
    while len(taken) < LEAST_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        run(batch)
        taken.append(time.perf_counter() - started)
    return taken


def _peak_bytes() -> int:
    """The largest resident memory of this program so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: what it counts on Linux begins with the memory of the process that started this one.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _sibling(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # whatever a runtime raises is what the table tells; the last line of stderr is read
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
