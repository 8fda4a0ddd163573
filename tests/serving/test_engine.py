"""The engine: which tasks stay loaded, what they cost, which device answers."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from metanas.artifact import load_meta
from metanas.learner import adapt
from metanas.preprocessing import Preprocessing, scale
from metanas.tasks import SupportSet
from metanas_export import onnx_bytes
from metanas_serving.engine import Engine, choose_providers, network_input
from metanas_serving.errors import StartupError


@pytest.fixture(scope="module")
def task(tiny_meta):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return adapt(load_meta(tiny_meta), SupportSet(images, torch.tensor([0, 1]), ("a", "b")))


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_the_least_recently_asked_task_goes_first(task):
    engine = Engine(device="cpu", max_loaded=2)
    onnx = onnx_bytes(task)
    for name in ("one", "two"):
        engine.keep(name, engine.build(onnx, task.preprocessing, task.trust))
    assert engine.get("one") is not None
    engine.keep("three", engine.build(onnx, task.preprocessing, task.trust))
    assert engine.loaded == ["one", "three"]
    assert engine.get("two") is None
    engine.drop("one")
    assert engine.loaded == ["three"]


def test_memory_bounds_what_is_loaded_and_a_pinned_task_stays(task):
    onnx = onnx_bytes(task)
    size = Engine(device="cpu", max_loaded=1).build(onnx, task.preprocessing, task.trust).memory_bytes
    weights = sum(value.numel() * 4 for value in task.network.parameters())
    assert weights < size < 2 * weights + 200_000
    engine = Engine(device="cpu", max_loaded=100, max_bytes=3 * size)

    def keep(*names):
        for name in names:
            engine.keep(name, engine.build(onnx, task.preprocessing, task.trust))

    engine.pin(frozenset({"one", "elsewhere"}))
    assert engine.missing == ["elsewhere", "one"]
    keep("one", "two", "three", "four", "four", "five")
    assert engine.loaded == ["one", "four", "five"]
    assert engine.loaded_bytes == 3 * size
    assert engine.missing == ["elsewhere"]
    engine.pin(frozenset())
    keep("six")
    assert engine.loaded == ["four", "five", "six"]
    for name in ("four", "five", "six"):
        engine.drop(name)
    assert engine.loaded_bytes == 0
    small = Engine(device="cpu", max_loaded=100, max_bytes=1)
    small.keep("one", small.build(onnx, task.preprocessing, task.trust))
    assert small.loaded == ["one"]  # the last is kept whatever it takes


def test_a_hundred_loaded_tasks_cost_little_and_give_it_back(task):
    engine = Engine(device="cpu", max_loaded=1000)
    onnx = onnx_bytes(task)
    images = np.zeros((64, 1, 28, 28), dtype=np.uint8)

    def load(count):
        for number in range(count):
            answerer = engine.build(onnx, task.preprocessing, task.trust)
            answerer.answer(images)
            engine.keep(str(number), answerer)

    load(5)
    before = resident_mb()
    load(100)
    assert resident_mb() - before < 100 * 0.5
    for number in range(100):
        engine.drop(str(number))
    gc.collect()
    dropped = resident_mb()
    load(100)
    assert resident_mb() - dropped < 100 * 0.5, "the memory of dropped tasks was not used again"


def test_a_batch_and_each_of_its_images_alone_answer_the_same_to_the_bit(task):
    answerer = Engine(device="cpu", max_loaded=1).build(onnx_bytes(task), task.preprocessing, task.trust)
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 28, 28), dtype=np.uint8)
    alone = np.concatenate([answerer.answer(image[None]).probabilities for image in images])
    assert answerer.answer(images).probabilities.tobytes() == alone.tobytes()


def test_pixels_are_scaled_as_in_training_to_the_bit():
    colour = Preprocessing(channels=3, mean=(0.47, 0.45, 0.4), deviation=(0.28, 0.27, 0.29))
    for preprocessing in (Preprocessing(), colour):
        size = (4, preprocessing.channels, 28, 28)
        images = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        expected = scale(torch.from_numpy(images), preprocessing).numpy()
        assert network_input(images, preprocessing).tobytes() == expected.tobytes()


def test_cuda_is_used_where_it_is_and_refused_where_it_is_asked_for_and_missing():
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    assert choose_providers("auto", available=[cuda, cpu]) == [cuda, cpu]
    assert choose_providers("auto", available=[cpu]) == choose_providers("cpu", available=[cuda, cpu]) == [cpu]
    with pytest.raises(StartupError, match=r"has only CPUExecutionProvider; install onnxruntime-gpu"):
        choose_providers("cuda", available=[cpu])
