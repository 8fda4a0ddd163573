"""The compiled engine that runs networks of cells on a CPU: in training mode, and those of tasks.

library    builds, finds and loads it
network    a network in training mode on it, as one autograd function
inference  a network with fixed statistics on it, as a program of steps
*.c *.h    the engine
"""

from metanas.native.library import State, get_threads, set_threads, state

__all__ = ["State", "get_threads", "set_threads", "state"]
