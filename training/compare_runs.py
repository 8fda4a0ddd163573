"""One table over runs: ``python training/compare_runs.py --help``."""

import sys

from metanas_training.compare_cli import main

if __name__ == "__main__":
    sys.exit(main())
