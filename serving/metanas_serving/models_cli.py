"""The command ``metanas-models``: what meta-models come with this package.

    metanas-models list           names, data, accuracies
    metanas-models show NAME      the whole card
    metanas-models path NAME      where its file is, for ``metanas-server --meta``

Exit codes: 0 done; 1 there is no such meta-model; 2 wrong arguments.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from metanas_serving import bundled
from metanas_serving.errors import StartupError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "list":
            cards = {card.name: card for card in bundled.cards()}
            print("\n\n".join(_text(cards[name]) if name in cards else _cardless(name) for name in bundled.names()))
        elif arguments.command == "path":
            print(bundled.path(arguments.name))
        else:
            bundled.path(arguments.name)
            values = [card.values for card in bundled.cards() if card.name == arguments.name]
            if not values:
                raise StartupError(_cardless(arguments.name))
            print(json.dumps(values[0], indent=2, ensure_ascii=False))
    except StartupError as error:
        print(f"metanas-models: {error}", file=sys.stderr)
        return 1
    return 0


def _text(card: bundled.Card) -> str:
    values = card.values
    rows = card.table()
    minutes = values["processor_minutes"]
    cost = "cost not recorded" if minutes is None else f"{minutes:.0f} processor minutes"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        (
            f"{card.name}: {values['summary']}",
            f"  trained on {values['trained_on']} (licence of the data: {values['data_licence']}), "
            f"{cost}, seed {values['seed']}",
            *(f"  {line}" for line in lines),
            *(f"  limit: {limit}" for limit in values["limits"]),
        )
    )


def _cardless(name: str) -> str:
    return f"{name}: nothing is known of it; training/model_card.py writes its card from evaluations"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metanas-models", description="The meta-models that come with this package.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, data, accuracies")
    for name, text in (("show", "the whole card as JSON"), ("path", "where the file is")):
        commands.add_parser(name, help=text).add_argument("name")
    return parser
