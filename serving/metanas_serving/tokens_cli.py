"""The command ``metanas-tokens``: the file of tokens that a server accepts.

    metanas-tokens add FILE TENANT    make a token, print it once, and keep its hash
    metanas-tokens list FILE          ids and tenants
    metanas-tokens remove FILE ID     take a token away

A running server reads the file again when it changes. Exit codes: 0 done; 1 the file cannot be used; 2 wrong arguments.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metanas_serving.errors import StartupError
from metanas_serving.tokens import new_token, read_entries, write_entries


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    path: Path = arguments.file
    try:
        if arguments.command == "add":
            token, entry = new_token(arguments.tenant)
            write_entries(path, [*(read_entries(path) if path.exists() else ()), entry])
            print(f"token {entry.id} of tenant {entry.tenant!r}; it is shown this once:", file=sys.stderr)
            print(token)
        elif arguments.command == "list":
            for entry in read_entries(path):
                print(f"{entry.id}  {entry.tenant!r}")
        else:
            entries = read_entries(path)
            kept = [entry for entry in entries if entry.id != arguments.id]
            if len(kept) == len(entries):
                raise StartupError(f"no token {arguments.id!r} in {path}; `metanas-tokens list` names them")
            write_entries(path, kept)
    except StartupError as error:
        print(f"metanas-tokens: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metanas-tokens", description="The tokens that a server accepts.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("add", "make a token"), ("list", "ids and tenants"), ("remove", "take a token away")):
        commands.add_parser(name, help=text).add_argument("file", type=Path, metavar="FILE")
    commands.choices["add"].add_argument(
        "tenant", metavar="TENANT", help="whose token it is; '' for what a server without tokens has learnt"
    )
    commands.choices["remove"].add_argument("id", metavar="ID")
    return parser


if __name__ == "__main__":
    sys.exit(main())
