"""The machine: what it is, and how fast a matrix product is on it right now.

    describe    what the results were measured on
    probe       matrix-product rates on one core and on all, measured now
    fastest     the rates that hold for a part, from the probes before and after it

A shared machine is not the same from one minute to the next, so each part has probes of its own,
before and after it. *The limit* of a part takes the fastest product of them: the rate that the
machine can have given the part, and so the strictest judge. The median tells how disturbed it was.
"""

import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from metanas_export.product_rate import product_gflops

PRODUCTS = 7
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Rates:
    """GFLOP/s of a 2048 x 2048 float32 matrix product."""

    one: float
    """On one core, the fastest of its products."""
    all: float
    """On all cores, the fastest of its products."""
    one_median: float
    all_median: float

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


def probe(products: int = PRODUCTS) -> Rates:
    """Measure both rates now; about two seconds."""
    one, every = product_gflops(1, products=products), product_gflops(CORES, products=products)
    return Rates(one=max(one), all=max(every), one_median=statistics.median(one), all_median=statistics.median(every))


def fastest(*probes: Rates) -> Rates:
    """The fastest product of several probes, and the median of their medians."""
    return Rates(
        one=max(rates.one for rates in probes),
        all=max(rates.all for rates in probes),
        one_median=statistics.median(rates.one_median for rates in probes),
        all_median=statistics.median(rates.all_median for rates in probes),
    )


def describe() -> dict[str, Any]:
    """Processor, memory, versions, and how busy the machine was before we began."""
    return {
        "processor": _processor(),
        "vector_extensions": _vector_extensions(),
        "cores": CORES,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _vector_extensions() -> str:
    known = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
    there = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return " ".join(name for name in known if name in there)


def _cpuinfo(field: str) -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith(field):
                return line.split(":", 1)[1].strip()
    return None
