"""The standard tasks that a meta-model is judged by, and the table of what it reached on them.

    TaskKind        data set, ways, shots
    standard_tasks  the kinds of task for what a meta-model was made for
    table           evaluations  ->  a Markdown table

The columns are those of the paper's Table 1 and what a user of the server asks: the inductive accuracy, what
the steps of the adaptation gain over the prototypes that they start from, and what pruning loses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from metanas.preprocessing import Preprocessing
from metanas_training.scores import Estimate, Evaluation


@dataclass(frozen=True, slots=True)
class TaskKind:
    """Tasks of one kind."""

    data: str
    n_way: int
    n_shot: int

    def __str__(self) -> str:
        return f"{self.data}, {self.n_way}-way {self.n_shot}-shot"

    @property
    def folder(self) -> str:
        """A name for files of this kind."""
        return f"{self.data}_{self.n_way}way_{self.n_shot}shot"


DRAWINGS = (
    TaskKind("omniglot", 20, 1),
    TaskKind("omniglot", 20, 5),
    TaskKind("omniglot", 5, 1),
    TaskKind("omniglot", 5, 5),
    TaskKind("glyphs", 5, 5),
)
PHOTOGRAPHS = (TaskKind("miniimagenet", 5, 1), TaskKind("miniimagenet", 5, 5))

PAPER = {
    DRAWINGS[0]: "94.40",
    DRAWINGS[1]: "98.83",
    PHOTOGRAPHS[0]: "54.86",
    PHOTOGRAPHS[1]: "71.07",
}
"""MetaNAS in Table 1, in percent, transductive."""


def standard_tasks(preprocessing: Preprocessing) -> tuple[TaskKind, ...]:
    """Drawings for a meta-model of one channel, photographs for one of three."""
    return DRAWINGS if preprocessing.channels == 1 else PHOTOGRAPHS


def table(rows: Sequence[tuple[TaskKind, Evaluation]]) -> str:
    """Accuracies in percent, means with 95 % intervals over tasks."""
    heads = (
        "tasks", "how many", "inductive", "transductive", "prototypes, no step", "gain of the steps", "lost by pruning",
        "architectures: other than the most common", "parameters", "AUROC of other classes", "the paper, transductive",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for kind, found in rows:
        cells = (
            str(kind),
            str(found.tasks),
            _percent(found.inductive),
            _percent(found.transductive),
            _percent(found.prototype),
            _percent(found.gain, sign="+"),
            _percent(found.pruning_loss),
            f"{found.structures}: {100 * (1 - found.most_common_share):.1f} %",
            f"{found.parameter_count:,.0f}",
            _percent(found.auroc),
            PAPER.get(kind, ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: Estimate | None, *, sign: str = "") -> str:
    return "" if value is None else f"{100 * value.mean:{sign}.2f} ± {100 * value.half_width:.2f}"
