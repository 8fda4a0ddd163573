"""The command line of the comparison: run folders in, one Markdown table out.

Exit codes: 0 done; 1 a folder cannot be used; 2 wrong arguments.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metanas.artifact import write_atomically
from metanas.errors import MetaNASError
from metanas_training.comparison import compare, markdown, plain_rows
from metanas_training.report import csv_text
from metanas_training.run_results import read_run


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of runs from command-line arguments; the exit code comes back."""
    parser = argparse.ArgumentParser(
        prog="compare_runs.py",
        description="One table over runs of meta_train.py that meta_evaluate.py has measured, with --output in the "
        "run's folder: RUN/evaluation*/results.json. Runs that differ by their seed only share a row.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE", help="where to write the same as numbers")
    arguments = parser.parse_args(argv)
    try:
        rows = compare([read_run(folder) for folder in arguments.runs])
        if arguments.csv is not None:
            write_atomically(arguments.csv, csv_text(plain_rows(rows)).encode())
    except (MetaNASError, OSError) as error:
        print(f"compare_runs: {error}", file=sys.stderr)
        return 1
    print(markdown(rows))
    return 0
