"""The agreements of all tasks as one Markdown table, a row for each format and precision.

Limit      what a precision must reach
summarise  agreements of one format and precision  ->  a row's numbers
markdown   all of them                             ->  the table
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporting.agreeing import Agreement
from metanas_export.builder import Precision


@dataclass(frozen=True, slots=True)
class Limit:
    """What all tasks together must reach."""

    same_class: float
    """Fraction of all held-out images."""
    difference: float | None
    """Of any score, as a fraction of torch's largest; None: not judged."""


LIMITS: dict[Precision, Limit] = {
    "fp32": Limit(1.0, 1e-4),
    "fp16": Limit(0.995, None),
    "bf16": Limit(0.995, None),
    "int8": Limit(0.98, None),
}


def summarise(found: Sequence[Agreement]) -> dict[str, Any]:
    """Over the tasks of one format and precision."""
    images = sum(one.images for one in found)
    same = sum(one.same_class * one.images for one in found) / images
    limit = LIMITS[found[0].precision]
    largest = max(one.largest_difference for one in found)
    return {
        "format": found[0].form,
        "precision": found[0].precision,
        "tasks": len(found),
        "images": images,
        "same_class": same,
        "same_class_median": statistics.median(one.same_class for one in found),
        "same_class_least": min(one.same_class for one in found),
        "same_class_of_support_least": min(one.same_class_of_support for one in found),
        "difference_median": statistics.median(one.largest_difference for one in found),
        "difference_largest": largest,
        "accuracy": statistics.mean(one.accuracy for one in found),
        "torch_accuracy": statistics.mean(one.torch_accuracy for one in found),
        "reached": same >= limit.same_class and (limit.difference is None or largest <= limit.difference),
    }


def markdown(
    rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str], *, kinds: Mapping[str, int], about: Mapping[str, Any]
) -> str:
    """The table, what it was measured on, and what is not in it."""
    tasks = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    lines = [
        f"Measured by `{about['command']}` on {about['processor']}: {sum(kinds.values())} tasks adapted by the bundled "
        f"meta-models {', '.join(about['metas'])} with their own schedules ({tasks}); {about['versions']}.",
        "",
        "Each file is compared with torch on held-out images of the task's classes. *Same class*: the largest score is "
        "torch's; of all images, then of the median and of the worst task. *Difference*: the largest of a score, as a "
        "fraction of torch's largest. *Accuracy*: mean over the row's tasks, and torch's on the same.",
        "",
        "| format | precision | tasks | images | same class | median | least | must | difference: median | largest "
        "| must | accuracy | torch's | reached |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        limit = LIMITS[row["precision"]]
        must = "" if limit.difference is None else f"{limit.difference:.0e}"
        lines.append(
            f"| {row['format']} | {row['precision']} | {row['tasks']} | {row['images']} | {row['same_class']:.3%} | "
            f"{row['same_class_median']:.2%} | {row['same_class_least']:.2%} | {limit.same_class:.1%} | "
            f"{row['difference_median']:.1e} | {row['difference_largest']:.1e} | {must} | {row['accuracy']:.2%} | "
            f"{row['torch_accuracy']:.2%} | "
            f"{'yes' if row['reached'] else '**no**'} |"
        )
    if missing:
        lines += ["", "Not in the table:", "", *(f"- {what}: {why}" for what, why in missing.items())]
    return "\n".join(lines) + "\n"
