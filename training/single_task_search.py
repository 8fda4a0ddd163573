"""Search on one task, CIFAR-10, and compare sparsifications: ``python training/single_task_search.py --help``."""

import sys

from metanas_training.single_task_cli import main

if __name__ == "__main__":
    sys.exit(main())
