"""Networks that share what is alike: tasks of one architecture have one program, or one ONNX Runtime session.

    Networks.load    an ONNX file  ->  Network, its own weights and a program or session that others may have too
    Network.run      network inputs  ->  logits

On a CPU the compiled engine runs a task's network (``compiling``), where it is there. Otherwise, and where
it does not know the graph, ONNX Runtime does.

A session of its own costs a task several times its weights: the graph, its kernels, their packing. Here
the runtime optimises a task's graph once; what it makes of the weights is then taken out and becomes inputs
of the graph that is left. Graphs that are left equal are one session, however many tasks have it, and it
goes with the last of them.

**An image scores the same alone, in any batch and in any order**, to the bit: convolutions and poolings
are calculated image by image, and the head row by row. That this holds of the runtime on this processor is
tried when an architecture is first loaded; where it does not, images are run one at a time.

Knows ONNX Runtime, ``compiling`` and ``widening``. What neither knows, and every graph for CUDA, is run as it is.
"""

import hashlib
import logging
import mmap
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from metanas import native
from metanas.native.inference import Program, aligned
from metanas_serving.blocks import Floats
from metanas_serving.compiling import compiled
from metanas_serving.planning import Compiled
from metanas_serving.processors import PROCESSORS, away
from metanas_serving.widening import FEATURES, Head, UnknownGraphError, widened

_log = logging.getLogger(__name__)

LARGE_THREADS = min(PROCESSORS, 4)
"""For an image that is too large to be run together with others: beyond four they mostly wait."""

ENGINE = "MetaNASEngine"
"""The compiled engine, among ONNX Runtime's execution providers."""

_CPU = "CPUExecutionProvider"

# Values of the images that are run together. Larger batches leave the caches, and gain nothing an image.
_RUN_VALUES = 8 * 28 * 28
# Sessions that have threads of their own, which sleep while it does not compute; further ones compute in one thread.
_MOST_THREADED = 32
# On another device the more, the better; it bounds the memory of one call.
_DEVICE_BATCH = 16
# Bindings of a network that are kept between calls; more are made while more threads run it at once.
_IDLE_BINDINGS = 1

# What a session of its own takes, for each byte of its file; what a bound one takes beside its weights. Both
# are estimates to evict by, a little high.
_WHOLE_TIMES = 4
_BOUND_BYTES = 64 * 1024
# What a task of the engine takes beside its weights, a program that it has for itself included.
_PROGRAM_BYTES = 32 * 1024

# Weights begin where a line of the cache begins, as the kernels like them.
_LINE_VALUES = 16


@cache
def _no_image() -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros((0, 1, 1, 1), dtype=np.float32))


class Network(ABC):
    """A task's network; safe to share between threads."""

    @property
    @abstractmethod
    def providers(self) -> list[str]:
        """What really computes, first to last, as ONNX Runtime calls it; the compiled engine is ``ENGINE``."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """What it takes for itself; what it shares with others is not counted."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images that it is best to run together."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Processors that a run takes."""

    @abstractmethod
    def run(self, inputs: Floats, *, is_away: bool = False) -> Floats:
        """Score images.

        Args:
            inputs: ``(batch, channels, height, width)``, as ``preprocessing.scale`` makes them.
            is_away: whether to compute on another processor, if this thread is tied to one.

        Returns:
            Logits, ``(batch, classes)``.
        """


class Networks:
    """Loads networks, and knows the sessions that are in use; safe to share between threads."""

    def __init__(self, providers: Sequence[str]) -> None:
        self._providers = list(providers)
        self._lock = threading.Lock()
        self._shared: weakref.WeakValueDictionary[bytes, _Shared] = weakref.WeakValueDictionary()
        self._programs: weakref.WeakValueDictionary[bytes, Program] = weakref.WeakValueDictionary()
        self._rooms = _Rooms()

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
        if self._providers != [_CPU]:
            return _Whole(onnx_file, self._providers)
        model = onnx.load_model_from_string(onnx_file)
        if native.state().used:
            try:
                return self._compiled(compiled(model), _image_size(model))
            except UnknownGraphError as error:
                _log.info("a network is left to ONNX Runtime, for %s, which the engine does not know", error)
        try:
            parts = widened(model)
        except UnknownGraphError as error:
            _log.warning("a network is run as it is, for %s, which has no rule here", error)
            return _Whole(onnx_file, self._providers)
        graph, weights = _without_weights(_optimised(parts.body))
        key = hashlib.sha256(graph).digest()
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                threads = 1 if self.threaded_sessions >= _MOST_THREADED else LARGE_THREADS
                shared = self._shared[key] = _Shared(graph, _image_size(model), large_threads=threads)
        network = _Bound(shared, weights, parts.head)
        shared.try_batches(network)
        return network

    def _compiled(self, task: Compiled, image_size: tuple[int, ...]) -> Network:
        batch = _batch(image_size)
        with self._lock:
            program = self._programs.get(task.tables.key)
            if program is None:
                threads = LARGE_THREADS if batch == 1 else 1
                program = Program(task.tables, threads=threads, images=max(1, PROCESSORS // threads))
                self._programs[task.tables.key] = program
        return _Programmed(program, task.weights, batch=batch, rooms=self._rooms)


class _Programmed(Network):
    """Weights of its own for a program that others have too."""

    def __init__(self, program: Program, weights: Floats, *, batch: int, rooms: "_Rooms") -> None:
        self._program, self._weights, self._batch, self._rooms = program, weights, batch, rooms

    @property
    def providers(self) -> list[str]:
        return [ENGINE]

    @property
    def memory_bytes(self) -> int:
        return self._weights.nbytes + _PROGRAM_BYTES

    @property
    def batch(self) -> int:
        return self._batch

    @property
    def threads(self) -> int:
        return self._program.threads

    def run(self, inputs: Floats, *, is_away: bool = False) -> Floats:
        room = self._rooms.take(self._program.work_floats)
        logits = np.empty((len(inputs), self._program.classes), dtype=np.float32)
        if is_away:
            away(self._program.run, self._weights, room, inputs, logits)
        else:
            self._program.run(self._weights, room, inputs, logits)
        self._rooms.give_back(room)
        return logits


class _Rooms:
    """Memory that programs work in: as much as run at a time, whatever their number; safe to share between threads."""

    def __init__(self) -> None:
        self._idle: list[Floats] = []

    def take(self, floats: int) -> Floats:
        """At least so many."""
        try:
            room = self._idle.pop()
        except IndexError:
            return aligned(floats)
        return room if len(room) >= floats else aligned(floats)

    def give_back(self, room: Floats) -> None:
        """Keep it for the next."""
        if len(self._idle) < PROCESSORS:
            self._idle.append(room)


class _Whole(Network):
    """A session of its own."""

    def __init__(self, onnx_file: bytes, providers: list[str]) -> None:
        self._session = ort.InferenceSession(onnx_file, _options(), providers=providers)
        self._batch = 1 if providers == [_CPU] else _DEVICE_BATCH
        self._memory_bytes = _WHOLE_TIMES * len(onnx_file)

    @property
    def batch(self) -> int:
        return self._batch

    @property
    def threads(self) -> int:
        return 1

    @property
    def providers(self) -> list[str]:
        return list(self._session.get_providers())

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    def run(self, inputs: Floats, *, is_away: bool = False) -> Floats:
        parts = [inputs[first : first + self._batch] for first in range(0, len(inputs), self._batch)]
        return np.concatenate([self._session.run(["logits"], {"images": part})[0] for part in parts])


class _Shared:
    """A session whose weights are inputs, and how many images it is given at a time."""

    def __init__(self, graph: bytes, image_size: tuple[int, ...], *, large_threads: int) -> None:
        self.batch = _batch(image_size)
        self.threads = large_threads if self.batch == 1 else 1
        options = _options(threads=self.threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(graph, options, providers=[_CPU])
        self._image_size = image_size
        self._trying = threading.Lock()
        self._is_tried = False

    def try_batches(self, network: "_Bound") -> None:
        """See that images score the same to the bit alone and together, or have them run alone."""
        with self._trying:
            if not self._is_tried and self.batch > 1:
                noise = np.random.default_rng(0).random((self.batch, *self._image_size), dtype=np.float32)
                alone = b"".join(network.features(noise[index : index + 1]).tobytes() for index in range(len(noise)))
                if any(
                    network.features(noise[:count]).tobytes() != alone[: count * len(alone) // len(noise)]
                    for count in (2, 3, len(noise))
                    if count <= len(noise)
                ):
                    self.batch = 1
                    _log.info("this processor rounds differently in batches; images are run one at a time")
            self._is_tried = True


class _Bound(Network):
    """Weights of its own in a session that others have too."""

    def __init__(self, shared: _Shared, weights: dict[str, Floats], head: Head) -> None:
        self._shared = shared
        self._head = head
        self._arrays = list(weights.values())
        self._weights = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()}
        self._idle: list[ort.IOBinding] = []

    @property
    def providers(self) -> list[str]:
        return list(self._shared.session.get_providers())

    @property
    def memory_bytes(self) -> int:
        return sum(value.nbytes for value in self._arrays) + _BOUND_BYTES

    @property
    def batch(self) -> int:
        return self._shared.batch

    @property
    def threads(self) -> int:
        return self._shared.threads

    def run(self, inputs: Floats, *, is_away: bool = False) -> Floats:
        size = self._shared.batch
        if len(inputs) <= size:
            return self._head.logits(self.features(inputs, is_away=is_away))
        parts = [self.features(inputs[first : first + size], is_away=is_away) for first in range(0, len(inputs), size)]
        return self._head.logits(np.concatenate(parts))

    def features(self, inputs: Floats, *, is_away: bool = False) -> Floats:
        """What the head scores: ``(batch, features)``; all images in one run."""
        binding = self._take()
        binding.bind_cpu_input("images", inputs)
        binding.bind_output(FEATURES)
        run = self._shared.session.run_with_iobinding
        if is_away:
            away(run, binding)
        else:
            run(binding)
        features: Floats = binding.copy_outputs_to_cpu()[0].reshape(len(inputs), -1)
        # Nothing of this call is to stay in memory.
        binding.bind_ortvalue_input("images", _no_image())
        binding.clear_binding_outputs()
        if len(self._idle) < _IDLE_BINDINGS:
            self._idle.append(binding)
        return features

    def _take(self) -> ort.IOBinding:
        try:
            return self._idle.pop()
        except IndexError:
            binding = self._shared.session.io_binding()
            for name, value in self._weights.items():
                binding.bind_ortvalue_input(name, value)
            return binding


@cache
def _share_one_arena() -> None:
    # ONNX Runtime holds it for the process and takes it once.
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def _options(*, threads: int = 1) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads wait for each other awake while they compute, and sleep as soon as they are done.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.inter_op_num_threads = 1
    # One arena for all: an arena each, or none, keeps the peak of every session (18 to 80 MB).
    _share_one_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 3
    return options


def _image_size(model: onnx.ModelProto) -> tuple[int, ...]:
    """Channels, height, width."""
    return tuple(size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[1:])


def _batch(image_size: tuple[int, ...]) -> int:
    """Images of a size that are run together."""
    return max(1, _RUN_VALUES // int(np.prod(image_size[1:])))


def _optimised(body: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime makes of a graph on this processor; weights are laid out as its kernels read them."""
    compiler = ort.ModelCompiler(
        _options(),
        body.SerializeToString(),
        graph_optimization_level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    )
    # Not ``compile_to_bytes``: in ONNX Runtime 1.32 each call of it loses the memory of what it gives.
    pieces: list[bytes] = []
    compiler.compile_to_stream(lambda piece: pieces.append(bytes(piece)))
    return onnx.load_model_from_string(b"".join(pieces))


def _without_weights(model: onnx.ModelProto) -> tuple[bytes, dict[str, Floats]]:
    """Make inputs of the weights of a graph, and give them apart, in one piece of memory."""
    graph = model.graph
    constants = [one for one in graph.initializer if one.data_type != onnx.TensorProto.FLOAT]
    floats = [one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    values = [numpy_helper.to_array(one) for one in floats]
    places = [-(-value.size // _LINE_VALUES) * _LINE_VALUES for value in values]
    # Not from the heap, which keeps what is freed between other things.
    whole = np.frombuffer(mmap.mmap(-1, 4 * max(1, sum(places))), dtype=np.float32)
    weights: dict[str, Floats] = {}
    first = 0
    for one, value, place in zip(floats, values, places, strict=True):
        piece: NDArray[np.float32] = whole[first : first + value.size].reshape(value.shape)
        piece[...] = value
        weights[one.name] = piece
        first += place
    del graph.initializer[:]
    graph.initializer.extend(constants)
    graph.input.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape) for name, value in weights.items()
    )
    return model.SerializeToString(deterministic=True), weights
