"""The core of MetaNAS Edge: search space, networks, soft and real pruning, adaptation, files.

Torch, no network, and no file system except in ``artifact``.
Source: Elsken et al., "Meta-Learning of Neural Architectures for Few-Shot Learning", CVPR 2020.
"""

__version__ = "0.1.0"
