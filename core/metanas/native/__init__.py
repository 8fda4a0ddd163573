"""The compiled engine that runs networks of cells in training mode on a CPU.

library   builds, finds and loads it
network   a network on it, as one autograd function
*.c *.h   the engine
"""

from metanas.native.library import State, get_threads, set_threads, state

__all__ = ["State", "get_threads", "set_threads", "state"]
