"""Write the card of a meta-model from its evaluations: ``python training/model_card.py --help``."""

import sys

from metanas_training.model_card import main

if __name__ == "__main__":
    sys.exit(main())
