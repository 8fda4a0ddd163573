"""Answers with the tasks that were asked last.

    Answerer   one task's network: prepared pixels -> Answers
    Engine     makes answerers, and keeps as many as its memory takes: the least recently asked goes first, pinned
               ones never

All of them compute behind one ``batching`` line. Knows ``network``; nothing of the store or the contract.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from metanas.preprocessing import Preprocessing
from metanas.trust import Trust
from metanas_serving.batching import Batcher, Computed
from metanas_serving.config import DEFAULT_MAX_BATCH, Device
from metanas_serving.errors import StartupError
from metanas_serving.network import Network
from metanas_serving.networks import Networks
from metanas_serving.processors import untied
from metanas_serving.programs import ENGINE

_log = logging.getLogger(__name__)

_WHITE = np.float32(255)
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@cache
def _moments(preprocessing: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation, each ``(channels, 1, 1)``."""
    mean, deviation = (np.array(one, dtype=np.float32) for one in (preprocessing.mean, preprocessing.deviation))
    return mean.reshape(-1, 1, 1), deviation.reshape(-1, 1, 1)


def network_input(images: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What ``scale`` makes of prepared pixels, to the bit, without a tensor."""
    mean, deviation = _moments(preprocessing)
    inputs = np.empty(images.shape, dtype=np.float32)
    inputs[...] = images
    inputs /= _WHITE
    inputs -= mean
    inputs /= deviation
    return inputs


@dataclass(frozen=True, slots=True)
class Answers:
    """What a task says of some images."""

    probabilities: NDArray[np.float32]
    """``(images, classes)``, rows sum to 1, in the order of the task's class names."""
    similarities: NDArray[np.float32] | None
    """``(images,)``, to the class that each resembles most; None: the task cannot tell."""
    none_of_these: NDArray[np.bool_] | None
    """``(images,)``, whether that is too little for any class; None: the task has no threshold."""
    computed: Computed
    """The logits that they come from, and how these came about."""


class Answerer:
    """A task, ready to answer; safe to share between threads."""

    def __init__(self, network: Network, preprocessing: Preprocessing, trust: Trust, *, batcher: Batcher) -> None:
        self._network = network
        self._batcher = batcher
        self._preprocessing = preprocessing
        self._trust = trust

    @property
    def providers(self) -> list[str]:
        """What ONNX Runtime really uses, first to last."""
        return self._network.providers

    @property
    def memory_bytes(self) -> int:
        """What it takes that goes when it goes."""
        return self._network.memory_bytes

    def answer(self, images: NDArray[np.uint8], *, check: Callable[[], None] = lambda: None) -> Answers:
        """Classify prepared pixels.

        Args:
            images: uint8 ``(batch, channels, height, width)``.
            check: called between computations; raises if the answer is not wanted any more.
        """
        trust = self._trust
        computed = self._batcher.run(self._network, network_input(images, self._preprocessing), check=check)
        logits = computed.logits.astype(np.float64)
        largest = np.maximum.reduce(logits, axis=1)
        logits -= largest[:, None]
        logits /= trust.temperature
        probabilities = np.exp(logits, out=logits)
        probabilities /= np.add.reduce(probabilities, axis=1, keepdims=True)
        # Rows of a head may differ in length, by which a cosine of nearly 1 may come out above it.
        cosines = None if trust.head_scale is None else largest / trust.head_scale
        similarities = None if cosines is None else np.maximum(np.minimum(cosines, 1.0), -1.0)
        unknown = None
        if similarities is not None and trust.least_similarity is not None:
            unknown = similarities < trust.least_similarity
        return Answers(
            probabilities.astype(np.float32),
            None if similarities is None else similarities.astype(np.float32),
            unknown,
            computed,
        )


class Engine:
    """The answerers that are loaded."""

    def __init__(
        self,
        *,
        device: Device,
        max_loaded: int,
        max_bytes: int | None = None,
        max_batch: int = DEFAULT_MAX_BATCH,
    ) -> None:
        """Choose what computes.

        Args:
            max_loaded: answerers that are kept.
            max_bytes: that they take together; None: no limit. The last one is kept whatever it takes.
            max_batch: images of concurrent calls that are run together.
        """
        self._device = device
        self._providers = choose_providers(device, available=ort.get_available_providers())
        self._networks = Networks(self._providers)
        self._batcher = Batcher(max_batch=max_batch)
        self._max_loaded, self._max_bytes = max_loaded, max_bytes
        self._bytes = 0
        self._pinned: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, Answerer] = OrderedDict()

    def warm_up(self, onnx: bytes, preprocessing: Preprocessing) -> None:
        """Answer once with a task, and log what answers.

        Raises:
            StartupError: CUDA was asked for and does not start.
        """
        answerer = self.build(onnx, preprocessing, Trust())
        size = (preprocessing.channels, preprocessing.height, preprocessing.width)
        answerer.answer(np.zeros((1, *size), dtype=np.uint8))
        if answerer.providers == [ENGINE]:
            _log.info("networks are run by the compiled engine")
        else:
            _log.info("ONNX Runtime %s answers with %s", ort.__version__, ", ".join(answerer.providers))
        if self._providers[0] == _CUDA and answerer.providers[0] != _CUDA:
            if self._device == "cuda":
                raise StartupError("--device cuda, but CUDA does not start on this machine; use --device cpu")
            _log.warning("ONNX Runtime lists CUDA, but it does not start on this machine; the CPU answers instead")

    def build(self, onnx: bytes, preprocessing: Preprocessing, trust: Trust) -> Answerer:
        """Make an answerer; it is not kept."""
        with untied():  # threads that a session starts are not tied either
            network = self._networks.load(onnx)
        return Answerer(network, preprocessing, trust, batcher=self._batcher)

    def get(self, task_id: str) -> Answerer | None:
        """The answerer of a task if it is loaded."""
        with self._lock:
            answerer = self._loaded.get(task_id)
            if answerer is not None:
                self._loaded.move_to_end(task_id)
            return answerer

    def keep(self, task_id: str, answerer: Answerer) -> None:
        """Keep an answerer for later, perhaps in place of another task's."""
        with self._lock:
            self._remove(task_id)
            self._loaded[task_id] = answerer
            self._bytes += answerer.memory_bytes
            self._evict(but=task_id)

    def drop(self, task_id: str) -> None:
        """Forget a task; its memory goes when the calls that still use it are over."""
        with self._lock:
            self._remove(task_id)

    def pin(self, task_ids: frozenset[str]) -> None:
        """From now on these tasks and no others stay once they are loaded."""
        with self._lock:
            self._pinned = task_ids
            self._evict(but=None)

    @property
    def missing(self) -> list[str]:
        """Ids of pinned tasks that are not loaded."""
        with self._lock:
            return sorted(self._pinned - self._loaded.keys())

    @property
    def loaded_bytes(self) -> int:
        """What the loaded tasks take."""
        with self._lock:
            return self._bytes

    @property
    def loaded(self) -> list[str]:
        """Ids of the loaded tasks, the least recently asked first."""
        with self._lock:
            return list(self._loaded)

    def _remove(self, task_id: str) -> None:
        answerer = self._loaded.pop(task_id, None)
        if answerer is not None:
            self._bytes -= answerer.memory_bytes

    def _evict(self, *, but: str | None) -> None:
        for task_id in list(self._loaded):
            fits = self._max_bytes is None or self._bytes <= self._max_bytes
            if len(self._loaded) <= self._max_loaded and fits:
                return
            if task_id != but and task_id not in self._pinned:
                self._remove(task_id)


def choose_providers(device: Device, *, available: list[str]) -> list[str]:
    """What ONNX Runtime is to use, first to last.

    Raises:
        StartupError: ``cuda`` was asked for, and this ONNX Runtime has no CUDA.
    """
    if device == "cuda" and _CUDA not in available:
        raise StartupError(
            f"--device cuda, but this ONNX Runtime has only {', '.join(available)}; "
            "install onnxruntime-gpu in its place (the extra [gpu]), or use --device cpu"
        )
    return [_CUDA, _CPU] if device != "cpu" and _CUDA in available else [_CPU]
