"""The client side of the demo: teaches a server two tasks, asks it, exports one of them.

The tasks are drawn from the test alphabets of `glyphs`, which the bundled meta-model, trained
on Omniglot, has never seen.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_picture import draw
from numpy.typing import NDArray

from metanas.artifact import load_task
from metanas_client import FewShotClient, Prediction, Task
from metanas_export import onnx_bytes
from metanas_export.check import compare
from metanas_training.datasets.glyphs import GlyphClass, draw_glyph, glyph_classes

ROOT = Path(__file__).resolve().parents[1]
QUERIES = 100
SEED = 7
FIRST_QUERY_DRAWING = 10
"""Support sets use the drawings before this one."""


@dataclass(frozen=True)
class Outcome:
    """One task of the demo, for the table and the picture."""

    title: str
    task: Task
    support: dict[str, list[NDArray[np.uint8]]]
    queries: list[tuple[NDArray[np.uint8], str]]
    predictions: list[Prediction]
    classify_milliseconds: float
    """Median of one image a call, end to end."""
    agreement: str
    """Of torch and ONNX Runtime, on the support images of the exported task."""

    @property
    def accuracy(self) -> float:
        """Fraction of queries answered right."""
        hits = [answer.class_name == name for answer, (_, name) in zip(self.predictions, self.queries, strict=True)]
        return sum(hits) / len(hits)


def main() -> int:
    """Run the client side; 0 when everything worked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    output: Path = arguments.output
    with FewShotClient(arguments.server, timeout_seconds=600) as client:
        client.wait_until_ready(timeout_seconds=60)
        outcomes = [
            learn(client, n_way=5, n_shot=5, model=output / "task_5_way.pt"),
            learn(client, n_way=20, n_shot=1, model=output / "task_20_way.pt"),
        ]
    print(f"==> exporting one: python export/to_tensorrt.py {output.name}/task_20_way.pt", flush=True)
    export = subprocess.run([sys.executable, ROOT / "export/to_tensorrt.py", output / "task_20_way.pt"], check=False)
    print(table(outcomes))
    draw(outcomes, output / "demo.png")
    print(f"wrote {output.name}/demo.png: support sets, answers, and the cells that were found")
    return export.returncode


def learn(client: FewShotClient, *, n_way: int, n_shot: int, model: Path) -> Outcome:
    """Teach the server one task, ask it about ``QUERIES`` other drawings, and fetch its file."""
    chosen = np.random.default_rng([SEED, n_way]).permutation(len(glyph_classes("test")))[:n_way]
    glyphs: list[GlyphClass] = [glyph_classes("test")[index] for index in chosen]
    support = {glyph.name: [draw_glyph(glyph, drawing) for drawing in range(n_shot)] for glyph in glyphs}
    queries = [
        (draw_glyph(glyphs[index % n_way], FIRST_QUERY_DRAWING + index // n_way), glyphs[index % n_way].name)
        for index in range(QUERIES)
    ]
    title = f"{n_way}-way {n_shot}-shot"
    print(f"==> {title}: Adapt with {n_way * n_shot} drawings of {n_way} unseen classes ...", flush=True)
    task = client.adapt(support)
    print(f"    learnt in {task.adapt_seconds:.1f} s; classifying {QUERIES} others, one a call", flush=True)
    task.classify([queries[0][0]])
    predictions, seconds = [], []
    for image, _ in queries:
        started = time.perf_counter()
        predictions += task.classify([image])
        seconds.append(time.perf_counter() - started)
    task.export(model, format="task_model")
    return Outcome(title, task, support, queries, predictions, 1000 * float(np.median(seconds)), agreement(model))


def table(outcomes: list[Outcome]) -> str:
    """What was measured, a row a task."""
    header = ("task", "accuracy", "adapt", "classify", "one-shot network", "task network", "torch = ONNX")
    rows = [
        (
            one.title,
            f"{100 * one.accuracy:.0f} % of {len(one.queries)}",
            f"{one.task.adapt_seconds:.1f} s",
            f"{one.classify_milliseconds:.1f} ms",
            f"{one.task.one_shot_parameter_count:,} parameters",
            f"{one.task.parameter_count:,} parameters",
            one.agreement,
        )
        for one in outcomes
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(["", lines[0], "-" * len(lines[0]), *lines[1:], ""])


def agreement(model: Path) -> str:
    """How many support images torch and ONNX Runtime answer alike, and how far a logit differs at most."""
    task = load_task(model)
    together = compare(task, onnx_bytes(task))[0]
    return f"{together.same_class}/{together.images} ({together.largest_difference:.0e})"


if __name__ == "__main__":
    sys.exit(main())
