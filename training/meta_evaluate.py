"""Measure a meta-model on held-out classes: ``python training/meta_evaluate.py --help``."""

import sys

from metanas_training.evaluate_cli import main

if __name__ == "__main__":
    sys.exit(main())
