"""A benchmark for people: a table, JSON, and a picture.

    table   benchmark          ->  text
    draw    benchmark          ->  a figure: latency, throughput, memory and size of each target
    write   benchmark, folder  ->  JSON, and PNG and SVG where matplotlib is there

matplotlib is imported when something is drawn; nothing here touches its global state.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metanas.artifact import write_atomically
from metanas_export.benchmark import Benchmark, BenchmarkRow, Measured

COLOUR, PALE = "#0072B2", "#A6CCE3"
WIDTH_INCHES = 7.0
ROW_INCHES = 0.24
DOTS_PER_INCH = 200
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "svg.hashsalt": "metanas",
}


def table(found: Benchmark) -> str:
    """All rows as aligned text, and what they are judged by."""
    largest = max((row.measured.largest.batch for row in found.rows if row.measured), default=0)
    upper = ["target", "file", "load", "1 image", "", "processor", "at the"]
    lower = ["", "kB", "ms", "p50 ms", "p99 ms", "ms", "limit"]
    upper += [f"{largest} images", "", "images", "at the", "peak", "same"]
    lower += ["p50 ms", "p99 ms", "a second", "limit", "MB", "class"]
    heads = [[*upper, "largest"], [*lower, "difference"]]
    rows = [_cells(row, row.measured) for row in found.rows if row.measured]
    widths = [max(len(row[column]) for row in [*heads, *rows]) for column in range(len(heads[0]))]
    lines = [_aligned(row, widths) for row in [*heads, *rows]]
    lines += [f"{row.name}: not measured: {row.problem}" for row in found.rows if not row.measured]
    lines.append(
        f"{found.flop / 1e6:.1f} MFLOP an image; the limit is a float32 matrix product's {found.product_gflops:.0f} "
        f"GFLOP/s on {found.threads} thread{'s' if found.threads > 1 else ''}; "
        f"classes and scores are compared with torch's on {found.images} images; "
        f"the load average was {found.load_average:.1f} before"
    )
    return "\n".join(lines)


def _cells(row: BenchmarkRow, measured: Measured) -> list[str]:
    single, largest = measured.single, measured.largest
    return [
        row.name,
        f"{row.file_bytes / 1e3:,.0f}",
        f"{1e3 * measured.load_seconds:.0f}",
        f"{single.p50_ms:.2f}",
        f"{single.p99_ms:.2f}",
        f"{single.processor_ms:.2f}",
        f"{single.share_of_limit:.1%}",
        f"{largest.p50_ms:.1f}",
        f"{largest.p99_ms:.1f}",
        f"{largest.images_per_second:,.0f}",
        f"{largest.share_of_limit:.1%}",
        f"{measured.peak_mb:.0f}",
        f"{measured.same_class:.1%}",
        f"{measured.largest_difference:.1e}",
    ]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells).rstrip()


def draw(found: Benchmark) -> Any:
    """Four panels side by side, a bar for each target that was measured."""
    from matplotlib.figure import Figure

    measured = [(row, row.measured) for row in found.rows if row.measured][::-1]
    figure = Figure(figsize=(WIDTH_INCHES, 0.75 + ROW_INCHES * max(len(measured), 2)), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    names = [row.name for row, _ in measured]
    largest = measured[0][1].largest.batch if measured else 0
    panels = (
        ("1 image, ms\n(p50; pale: p99)", [one.single.p50_ms for _, one in measured]),
        (f"images a second\n(batches of {largest})", [one.largest.images_per_second for _, one in measured]),
        ("peak memory, MB\n(pale: the runtime alone)", [one.peak_mb for _, one in measured]),
        ("file, kB\n", [row.file_bytes / 1e3 for row, _ in measured]),
    )
    for axis, (title, values) in zip(axes, panels, strict=True):
        axis.barh(names, values, height=0.62, color=COLOUR)
        axis.set_title(title)
        axis.tick_params(axis="y", length=0)
        axis.xaxis.get_major_locator().set_params(nbins=4)
    axes[0].barh(names, [one.single.p99_ms for _, one in measured], height=0.62, color=PALE, zorder=0)
    axes[2].barh(names, [one.runtime_mb for _, one in measured], height=0.62, color=PALE)
    return figure


def write(found: Benchmark, folder: Path, *, name: str = "benchmark") -> list[Path]:
    """Write the results under a name; returns the files.

    Without matplotlib there is no picture, and the files that come back do not name one.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    values = folder / f"{name}.json"
    write_atomically(values, (json.dumps(found.to_dict(), indent=2) + "\n").encode())
    try:
        import matplotlib
    except ImportError:
        print('no picture: matplotlib is not installed; pip install "metanas-edge[demo]" brings it', flush=True)
        return [values]
    pictures = [folder / f"{name}.png", folder / f"{name}.svg"]
    with matplotlib.rc_context(STYLE):
        figure = draw(found)
        figure.savefig(pictures[0], dpi=DOTS_PER_INCH, metadata={"Software": None})
        figure.savefig(pictures[1], metadata={"Date": None})
    return [values, *pictures]
