"""Networks that share what is alike: tasks of one architecture have one program, or one ONNX Runtime session.

    Networks.load    an ONNX file  ->  Network, its own weights and a program or session that others may have too

On a CPU the compiled engine runs a task's network (``compiling``, ``programs``), where it is there. Otherwise, and
where it does not know the graph, ONNX Runtime does, with a graph that is made for it (``widening``, ``sessions``). What
neither knows, and every graph for CUDA, is run as it is. What is shared goes with the last task that has it.
"""

import hashlib
import logging
import threading
import weakref
from collections.abc import Sequence

import onnx

from metanas import native
from metanas.native.inference import Program
from metanas_serving.compiling import compiled
from metanas_serving.network import Network, images_together
from metanas_serving.planning import Compiled
from metanas_serving.processors import PROCESSORS
from metanas_serving.programs import Programmed, Rooms
from metanas_serving.sessions import CPU, BoundNetwork, OwnSession, SharedSession, optimised, without_weights
from metanas_serving.task_graph import UnknownGraphError, image_size
from metanas_serving.widening import widened

_log = logging.getLogger(__name__)

LARGE_THREADS = min(PROCESSORS, 4)
"""For an image that is too large to be run together with others: beyond four they mostly wait."""

# Sessions that have threads of their own, which sleep while it does not compute; further ones compute in one thread.
_MOST_THREADED = 32


class Networks:
    """Loads networks, and knows the sessions that are in use; safe to share between threads."""

    def __init__(self, providers: Sequence[str]) -> None:
        self._providers = list(providers)
        self._lock = threading.Lock()
        self._shared: weakref.WeakValueDictionary[bytes, SharedSession] = weakref.WeakValueDictionary()
        self._programs: weakref.WeakValueDictionary[bytes, Program] = weakref.WeakValueDictionary()
        self._rooms = Rooms()

    @property
    def sessions(self) -> int:
        """How many sessions and programs the networks share that are loaded now."""
        return len(self._shared) + len(self._programs)

    @property
    def threaded_sessions(self) -> int:
        """How many of them have several threads."""
        return sum(shared.threads > 1 for shared in list(self._shared.values()))

    def load(self, onnx_file: bytes) -> Network:
        """Make a network of the content of an ONNX file."""
        if self._providers != [CPU]:
            return OwnSession(onnx_file, self._providers)
        model = onnx.load_model_from_string(onnx_file)
        if native.state().used:
            try:
                return self._compiled(compiled(model), image_size(model))
            except UnknownGraphError as error:
                _log.info("a network is left to ONNX Runtime, for %s, which the engine does not know", error)
        try:
            parts = widened(model)
        except UnknownGraphError as error:
            _log.warning("a network is run as it is, for %s, which has no rule here", error)
            return OwnSession(onnx_file, self._providers)
        graph, weights = without_weights(optimised(parts.body))
        key = hashlib.sha256(graph).digest()
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                threads = 1 if self.threaded_sessions >= _MOST_THREADED else LARGE_THREADS
                shared = self._shared[key] = SharedSession(graph, image_size(model), large_threads=threads)
        network = BoundNetwork(shared, weights, parts.head)
        shared.try_batches(network)
        return network

    def _compiled(self, task: Compiled, size: tuple[int, int, int]) -> Network:
        batch = images_together(size)
        with self._lock:
            program = self._programs.get(task.tables.key)
            if program is None:
                threads = LARGE_THREADS if batch == 1 else 1
                program = Program(task.tables, threads=threads, images=max(1, PROCESSORS // threads))
                self._programs[task.tables.key] = program
        return Programmed(program, task.weights, batch=batch, rooms=self._rooms)
