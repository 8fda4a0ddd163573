"""The results as JSON values and as one Markdown table."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from measuring.flops import Counter
from measuring.machine import Rates
from measuring.row import Row
from measuring.subjects import large_space
from metanas.space import SearchSpace

VERDICTS = {"aim": "aim", "bar": "bar", "missed": "**no**", "": ""}


def row_values(row: Row) -> dict[str, Any]:
    """A row for JSON."""
    return {**asdict(row), "verdict": row.verdict}


def dense_gflop() -> dict[str, float]:
    """Forward and backward of one image in the dense one-shot network."""
    return {
        "28x28x1": Counter(SearchSpace()).learning() / 1e9,
        "84x84x3": Counter(large_space()).learning() / 1e9,
    }


def markdown(machine: Mapping[str, Any], rates: Rates, rows: list[Row], *, quick: bool) -> str:
    """The machine, then the table."""
    cores = machine["cores"]
    dense = dense_gflop()
    lines = [
        *(["**A quick look: few steps and calls. These are not results.**", ""] if quick else []),
        f"Measured by `make bench` on {machine['processor']} ({machine['vector_extensions']}), {cores} cores, "
        f"{machine['memory_gb']:g} GB, {machine['system']}; Python {machine['python']}, torch {machine['torch']}, "
        f"ONNX Runtime {machine['onnxruntime']}; {machine['data']}; {machine['started']}, load average "
        f"{machine['load_average_at_start']:g} before it began.",
        "",
        f"A 2048 x 2048 float32 matrix product: {rates.all:.0f} GFLOP/s on {cores} cores (median "
        f"{rates.all_median:.0f}), {rates.one:.0f} on one (median {rates.one_median:.0f}): the fastest of all that "
        "were timed between the parts. *The limit* of a row is the FLOP of the convolutions and linear layers that it "
        f"ran, at the fastest product on {cores} cores timed right before and after that row.",
        f"The dense one-shot network needs {dense['28x28x1']:.3f} GFLOP an image at 28 x 28 x 1, forward and backward, "
        f"and {dense['84x84x3']:.2f} at 84 x 84 x 3.",
        "",
        "| what | bar | aim | measured | the limit | times the limit | reaches |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        limit = "" if row.limit_seconds is None else _duration(row.limit_seconds)
        times = "" if row.times_limit is None else f"{row.times_limit:.1f} x"
        cells = (row.what, row.bar, row.aim, row.measured, limit, times, VERDICTS[row.verdict])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.2f} ms"
