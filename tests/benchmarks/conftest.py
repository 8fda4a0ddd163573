"""``benchmarks`` is a folder of scripts: its package ``measuring`` is found from there, as the scripts find it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
