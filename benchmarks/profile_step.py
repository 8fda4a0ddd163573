"""Where the time of one gradient step of an Adapt goes, on PyTorch's path and on the native one.

    python benchmarks/profile_step.py                       Omniglot-shaped; prints Markdown
    python benchmarks/profile_step.py --shape colour        84 x 84 x 3
    python benchmarks/profile_step.py --kinds dense --paths native --threads 1 2

Steps: *dense*, an architecture step of an untrained meta-model, where all operations run; *sparse*, one of the
bundled meta-model; *task*, a weight step of the pruned network. Three tables each: parts by the clock; candidate
operations by what a step gains without them; kernels as PyTorch's profiler names them. For docs/performance.md.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from measuring import engine
from measuring.machine import CORES, describe, probe
from measuring.step import Kind, Profile, Share, Step, profile
from measuring.subjects import ROOT

from metanas.artifact import write_json

TITLES = {
    "dense": "an architecture step, all operations run (untrained meta-model)",
    "sparse": "an architecture step from the bundled meta-model",
    "task": "a weight step of the task network (bundled meta-model)",
}


def main() -> int:
    """Take the steps apart, print, write."""
    arguments = _parse()
    machine, rates = describe(), probe()
    text = ""
    lines = [
        f"{machine['processor']}, torch {machine['torch']}; a 2048 x 2048 float32 matrix product: {rates.one:.0f} "
        f"GFLOP/s on one core, {rates.all:.0f} on {CORES}. The fastest of {arguments.repeats} steps of 20 images: "
        "`python benchmarks/profile_step.py`.",
        "",
    ]
    values: list[dict[str, Any]] = []
    for kind in arguments.kinds:
        for path in arguments.paths:
            for threads in arguments.threads:
                step = Step(kind, arguments.shape, path, threads, arguments.repeats)
                found = profile(step)
                if found.engine != path:
                    print(f"warning: asked for the {path} path, measured {found.engine}", file=sys.stderr)
                values.append({**asdict(step), **asdict(found)})
                lines += section(step, found, rate=rates.one if threads == 1 else rates.all)
                print("\n".join(lines), flush=True)
                text, lines = text + "\n".join(lines) + "\n", []
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        stem = f"profile_{arguments.shape}"
        write_json(
            arguments.output / f"{stem}.json", {"machine": machine, "matmul_gflops": rates.to_dict(), "steps": values}
        )
        (arguments.output / f"{stem}.md").write_text(text, encoding="utf-8")
    return 0


def section(step: Step, found: Profile, *, rate: float) -> list[str]:
    """The tables of one step."""
    limit = found.gflop / rate
    threads = "one thread" if step.threads == 1 else f"{step.threads} threads"
    lines = [
        f"### {found.engine}, {threads}: {TITLES[step.kind]}",
        "",
        f"{1000 * found.seconds:.1f} ms for {found.gflop:.2f} GFLOP: {found.gflop / found.seconds:.0f} GFLOP/s, "
        f"{found.seconds / limit:.1f} x the {1000 * limit:.1f} ms at the rate of the matrix product.",
        "",
    ]
    for title, shares in (("part", found.parts), ("operation", found.operations), ("kernel", found.kernels)):
        if shares:
            lines += table(title, shares)
    return lines


def table(title: str, shares: Sequence[Share]) -> list[str]:
    """A row for each share."""
    total = sum(share.seconds for share in shares)
    head = [f"| {title} | ms | share | GFLOP | GFLOP/s |", "| --- | --- | --- | --- | --- |"]
    return [*head, *(share.to_row(total) for share in shares), ""]


def _parse() -> argparse.Namespace:
    paths: list[engine.Path] = ["plain", "native"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("omniglot", "colour"), default="omniglot")
    parser.add_argument("--kinds", nargs="+", choices=get_args(Kind), default=list(get_args(Kind)))
    parser.add_argument("--paths", nargs="+", choices=paths, default=paths)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=10, help="steps; the fastest is told")
    parser.add_argument("--output", type=Path, help=f"folder for JSON and Markdown, such as {ROOT.name}/runs/profile")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
