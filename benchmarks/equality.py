"""Is what the native engine learns what PyTorch learns? Omniglot 20-way 1-shot, the whole Adapt.

    python benchmarks/equality.py                  from the bundled meta-model
    python benchmarks/equality.py --untrained      from one where nothing is pruned
    python benchmarks/equality.py --rounding       and PyTorch on two threads against PyTorch on one

Each task is adapted to by the native engine and with METANAS_NATIVE=0, in processes of their own. Compared
are the logits of the query images, largest difference against largest value, and the genotypes. Where they
differ, ``--rounding`` tells whether PyTorch agrees with itself: on two threads it adds the same numbers in
another order. Without moments Adam's first steps are the sign of each gradient, so where a gradient is
nothing but rounding the step is too; ``--meta untrained_with_moments`` leaves that out.

The margin is how far the nearest weight was from the threshold of pruning when it decided (the logarithm of
their ratio): near 0 rounding decides what survives.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measuring.adaptation import Order, Result, run
from measuring.subjects import ROOT

from metanas.artifact import write_json
from metanas.space import Genotype

TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results of one task."""

    task: int
    pair: str
    difference: float
    """Largest |a - b| of all logits over the largest |b|; b is PyTorch on one thread."""
    same_genotype: bool
    """The same operations on the same inputs."""
    answers_changed: int
    """Query images whose most probable class is another."""
    queries: int
    margin: float
    seconds: float
    plain_seconds: float

    @property
    def equal(self) -> bool:
        """Within the tolerance, with the same genotype."""
        return self.same_genotype and self.difference <= TOLERANCE


def main() -> int:
    """Adapt, compare, print, write; 1 if a task differs, 2 if there is no native engine."""
    arguments = _parse()
    meta: str = "untrained" if arguments.untrained else arguments.meta
    steps = {"architecture_steps": arguments.steps, "weight_steps": arguments.steps}
    base = Order(meta=meta, n_query=arguments.queries, **steps)
    variants = {"native": {"path": "native"}, "plain": {"path": "plain"}}
    if arguments.rounding:
        variants["plain, two threads"] = {"path": "plain", "threads": 2}  # type: ignore[dict-item]
    jobs = {
        (name, task): Order(**{**asdict(base), **changes, "first_task": task})
        for task in range(arguments.first, arguments.first + arguments.seeds)
        for name, changes in variants.items()
    }
    comparisons: list[Comparison] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {key: pool.submit(run, order) for key, order in jobs.items()}
        for (name, task), future in futures.items():
            if name != "plain":
                continue
            plain = future.result()[0]
            for other in variants:
                if other != "plain":
                    comparisons.append(compare(task, other, futures[other, task].result()[0], plain))
                    print(line(comparisons[-1]), flush=True)
            if futures["native", task].result()[0].engine == "plain":
                print("equality: there is no native engine here, so there is nothing to compare", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                return 2
    text = table(meta, arguments.steps, comparisons)
    print("\n" + text)
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    stem = f"equality_{Path(meta).stem}"
    values = {"meta": meta, "steps": arguments.steps, "tolerance": TOLERANCE, "tasks": [asdict(c) for c in comparisons]}
    write_json(output / f"{stem}.json", values)
    (output / f"{stem}.md").write_text(text, encoding="utf-8")
    return 0 if all(one.equal for one in comparisons if one.pair.startswith("native")) else 1


def compare(task: int, name: str, one: Result, plain: Result) -> Comparison:
    """A result against PyTorch's on one thread."""
    a, b = np.array(one.logits), np.array(plain.logits)
    return Comparison(
        task=task,
        pair=f"{name} ({one.engine}) against plain",
        difference=float(np.abs(a - b).max() / np.abs(b).max()),
        same_genotype=Genotype.from_dict(one.genotype).structure() == Genotype.from_dict(plain.genotype).structure(),
        answers_changed=int((a.argmax(axis=1) != b.argmax(axis=1)).sum()),
        queries=len(a),
        margin=plain.pruning_margin,
        seconds=one.seconds,
        plain_seconds=plain.seconds,
    )


def line(one: Comparison) -> str:
    """A row of the table."""
    return (
        f"| {one.task} | {one.pair} | {one.difference:.1e} | {'yes' if one.same_genotype else 'no'} | "
        f"{one.answers_changed} of {one.queries} | {one.margin:.2f} | {one.seconds:.1f} / {one.plain_seconds:.1f} |"
    )


def table(meta: str, steps: int, comparisons: Sequence[Comparison]) -> str:
    """All rows, then what they come to."""
    name = Path(meta).name.replace("_", " ")
    lines = [
        f"Omniglot 20-way 1-shot, {steps} + {steps} steps, {name} meta-model: `python benchmarks/equality.py`.",
        "",
        "| task | compared | largest difference | same genotype | answers changed | margin of pruning | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *map(line, comparisons),
        "",
    ]
    for pair in dict.fromkeys(one.pair for one in comparisons):
        of_pair = [one for one in comparisons if one.pair == pair]
        differences = [one.difference for one in of_pair]
        lines.append(
            f"{pair}: largest difference {max(differences):.1e}, median {np.median(differences):.1e}; "
            f"the same genotype in {sum(one.same_genotype for one in of_pair)} of {len(of_pair)}; "
            f"within {TOLERANCE:g} with the same genotype {sum(one.equal for one in of_pair)} of {len(of_pair)}."
        )
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="tasks")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--steps", type=int, default=50, help="of each of the two phases")
    parser.add_argument("--queries", type=int, default=5, help="images a class to answer")
    parser.add_argument("--jobs", type=int, default=2, help="adaptations at a time")
    parser.add_argument("--untrained", action="store_true", help="from random weights and an equal architecture")
    parser.add_argument("--meta", default="bundled", help="bundled, untrained, untrained_with_moments, or a meta.pt")
    parser.add_argument("--rounding", action="store_true", help="also PyTorch on two threads")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
