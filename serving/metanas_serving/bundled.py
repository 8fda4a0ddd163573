"""The meta-models that come with this package, and what is known of each.

    Card     one meta-model: data, protocol, accuracies, cost, limits
    names    of all that are there, the default one first
    cards    what is known of them
    path     a name  ->  its file

A card is a JSON file beside the weights, written by ``training/model_card.py`` from evaluations. Needs no torch.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from metanas_serving.errors import StartupError

DEFAULT = "omniglot"
SUFFIX = ".card.json"


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of one meta-model."""

    name: str
    values: dict[str, Any]
    """As ``training/model_card.py`` writes them."""

    def table(self) -> list[tuple[str, ...]]:
        """Header and a row for each evaluation, as text."""
        rows: list[tuple[str, ...]] = [
            ("data", "task", "tasks", "inductive", "transductive", "prototypes, no step", "parameters")
        ]
        for one in self.values["evaluations"]:
            rows.append(
                (
                    one["data"],
                    f"{one['n_way']}-way {one['n_shot']}-shot",
                    str(one["tasks"]),
                    *(_percent(one[key]) for key in ("inductive", "transductive", "prototype")),
                    f"{one['parameter_count']:,.0f}",
                )
            )
        return rows


def names() -> list[str]:
    """The names of all bundled meta-models, the default one first; each has a file, and should have a card."""
    found = [entry.name.removesuffix(".pt") for entry in _folder().iterdir() if entry.name.endswith(".pt")]
    return sorted(found, key=lambda name: (name != DEFAULT, name))


def cards() -> list[Card]:
    """The cards of all bundled meta-models, the default one first."""
    found = [
        Card(entry.name.removesuffix(SUFFIX), json.loads(entry.read_text(encoding="utf-8")))
        for entry in _folder().iterdir()
        if entry.name.endswith(SUFFIX)
    ]
    return sorted(found, key=lambda card: (card.name != DEFAULT, card.name))


def path(name: str) -> Traversable:
    """The file of a bundled meta-model.

    Raises:
        StartupError: there is none of that name.
    """
    file = _folder() / f"{name}.pt"
    if not name.isidentifier() or not file.is_file():
        raise StartupError(f"no bundled meta-model is called {name!r}; there are: {', '.join(names()) or 'none'}")
    return file


def _folder() -> Traversable:
    return files("metanas_serving") / "models"


def _percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['mean']:.2f} ± {100 * estimate['half_width']:.2f} %"
