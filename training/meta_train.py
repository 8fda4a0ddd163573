"""Meta-learn weights and architecture: ``python training/meta_train.py --help``."""

import sys

from metanas_training.cli import main

if __name__ == "__main__":
    sys.exit(main())
