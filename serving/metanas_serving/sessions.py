"""Networks on ONNX Runtime: a session for each, or one for all tasks of an architecture.

    OwnSession       a network that is run as its file has it
    SharedSession    a graph whose weights are inputs
    BoundNetwork     a task's weights in it
    optimised        what the runtime makes of a graph on this processor
    without_weights  that graph, and its weights apart

A session of its own costs a task several times its weights: the graph, its kernels, their packing. So the runtime
optimises a task's graph once; what it makes of the weights is then taken out and becomes inputs of the graph that is
left.

Convolutions and poolings are calculated image by image, and the head row by row. That this holds of the runtime on
this processor is tried when an architecture is first loaded; where it does not, images are run one at a time.
"""

import logging
import threading
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from metanas.native.inference import ALIGNED_FLOATS, aligned
from metanas_serving.blocks import Floats
from metanas_serving.network import Network, images_together
from metanas_serving.processors import away
from metanas_serving.widening import FEATURES, Head

_log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"

# On another device the more, the better; it bounds the memory of one call.
_DEVICE_BATCH = 16
# Bindings of a network that are kept between calls; more are made while more threads run it at once.
_IDLE_BINDINGS = 1

# What a session of its own takes, for each byte of its file; what a bound one takes beside its weights. Both
# are estimates to evict by, a little high.
_WHOLE_TIMES = 4
_BOUND_BYTES = 64 * 1024


@cache
def _no_image() -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros((0, 1, 1, 1), dtype=np.float32))


class OwnSession(Network):
    """A session of its own."""

    def __init__(self, onnx_file: bytes, providers: list[str]) -> None:
        self._session = ort.InferenceSession(onnx_file, _options(), providers=providers)
        self._batch = 1 if providers == [CPU] else _DEVICE_BATCH
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


class SharedSession:
    """A session whose weights are inputs, and how many images it is given at a time."""

    def __init__(self, graph: bytes, image_size: tuple[int, int, int], *, large_threads: int) -> None:
        self.batch = images_together(image_size)
        self.threads = large_threads if self.batch == 1 else 1
        options = _options(threads=self.threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(graph, options, providers=[CPU])
        self._image_size = image_size
        self._trying = threading.Lock()
        self._is_tried = False

    def try_batches(self, network: "BoundNetwork") -> None:
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


class BoundNetwork(Network):
    """Weights of its own in a session that others have too."""

    def __init__(self, shared: SharedSession, weights: dict[str, Floats], head: Head) -> None:
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


def optimised(body: onnx.ModelProto) -> onnx.ModelProto:
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


def without_weights(model: onnx.ModelProto) -> tuple[bytes, dict[str, Floats]]:
    """Make inputs of the weights of a graph, and give them apart, in one piece of memory."""
    graph = model.graph
    constants = [one for one in graph.initializer if one.data_type != onnx.TensorProto.FLOAT]
    floats = [one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    values = [numpy_helper.to_array(one) for one in floats]
    places = [-(-value.size // ALIGNED_FLOATS) * ALIGNED_FLOATS for value in values]
    whole = aligned(sum(places))
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
