"""Networks that share sessions: the same function as the file's, the same bits whoever is in the batch."""

import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from metanas import native
from metanas.genotypes import named_genotype
from metanas.learner import adapt
from metanas.schedule import Schedule
from metanas.space import DEFAULT_OPERATIONS, NO_CELLS, ConvBlocks, EdgeOperation, Genotype, SearchSpace
from metanas.tasks import SupportSet
from metanas_export import onnx_bytes
from metanas_serving import network as network_module
from metanas_serving import networks as networks_module
from metanas_serving.compiling import compiled
from metanas_serving.networks import Networks
from metanas_serving.programs import ENGINE
from metanas_serving.task_graph import UnknownGraphError
from metanas_serving.widening import widened

CPU = ["CPUExecutionProvider"]


def every_operation():
    """Two nodes that both read all operations, from both inputs in turn."""
    weights = itertools.cycle((0.9, 0.35, 0.6))
    cell = tuple(
        tuple(
            EdgeOperation((index + node) % 2, operation, next(weights))
            for index, operation in enumerate(DEFAULT_OPERATIONS)
        )
        for node in range(2)
    )
    return Genotype(normal=cell, reduction=cell)


def with_poolings():
    """A node that adds a pooling to a convolution, and one that adds two poolings."""
    cell = (
        (EdgeOperation(0, "conv_1x5_5x1", 0.7), EdgeOperation(1, "max_pool_3x3", 0.4)),
        (EdgeOperation(0, "avg_pool_3x3", 0.8), EdgeOperation(2, "max_pool_3x3", 0.3)),
    )
    return Genotype(normal=cell, reduction=cell)


SPACES = {
    "every operation, halved at both ends": (
        SearchSpace(channels=6, cells=3, reduction_cells=(0, 2), nodes=2, inputs_per_node=7),
        every_operation(),
    ),
    "with a scale and a shift": (
        SearchSpace(channels=4, cells=2, reduction_cells=(1,), nodes=5, affine=True),
        named_genotype("autometa"),
    ),
    "channels that fill their blocks": (
        SearchSpace(channels=16, cells=2, reduction_cells=(1,), nodes=2, inputs_per_node=7),
        every_operation(),
    ),
    "halves of channels that fill blocks, an odd size halved": (
        SearchSpace(channels=21, cells=4, reduction_cells=(0, 1, 2), nodes=2, inputs_per_node=7),
        every_operation(),
    ),
    "a convolution and a pooling, two poolings": (
        SearchSpace(channels=5, cells=2, reduction_cells=(0,), nodes=2),
        with_poolings(),
    ),
    "more channels than two registers hold": (
        SearchSpace(channels=34, cells=2, reduction_cells=(1,), nodes=2, inputs_per_node=7),
        every_operation(),
    ),
    "an odd number of more channels than two registers hold": (
        SearchSpace(channels=33, cells=1, reduction_cells=(), nodes=1, inputs_per_node=7),
        Genotype(normal=every_operation().normal[:1], reduction=every_operation().normal[:1]),
    ),
    "plain blocks": (ConvBlocks(filters=8), NO_CELLS),
    "plain blocks that end in 7 x 7": (ConvBlocks(filters=5, blocks=2), NO_CELLS),
}


@pytest.fixture(scope="module")
def learn(build_meta):
    """The ONNX file of a task of a space."""

    def learnt(name, *, seed=0, n_way=3):
        space, genotype = SPACES[name]
        images = torch.randint(
            0, 256, (n_way, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        support = SupportSet(images, torch.arange(n_way), tuple(map(str, range(n_way))))
        meta = build_meta(space, Schedule(architecture_steps=1, weight_steps=2), genotype=genotype)
        return onnx_bytes(adapt(meta, support))

    return learnt


BOTH = pytest.mark.parametrize("runs_on", ["engine", "runtime"], indirect=True)
RUNTIME = pytest.mark.parametrize("runs_on", ["runtime"], indirect=True)


@pytest.fixture
def runs_on(request, monkeypatch):
    """What runs networks: the compiled engine, which has to be there, or ONNX Runtime."""
    assert native.state().used, native.state().reason
    if request.param == "runtime":
        monkeypatch.setattr(native, "state", lambda: native.State(False, "switched off by a test"))
    return request.param


@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_processors_with_narrower_registers_score_as_the_file_does(learn, flag, tmp_path):
    name = "halves of channels that fill blocks, an odd size halved"
    (tmp_path / "task.onnx").write_bytes(learn(name))
    np.save(tmp_path / "inputs.npy", noise(5))
    program = (
        "import sys, numpy as np; from metanas_serving.networks import Networks; from pathlib import Path\n"
        "folder = Path(sys.argv[1]); file = (folder / 'task.onnx').read_bytes()\n"
        "network = Networks(['CPUExecutionProvider']).load(file)\n"
        "print(*network.providers); np.save(folder / 'scores.npy', network.run(np.load(folder / 'inputs.npy')))"
    )
    environment = {**os.environ, "CC": f"{os.environ.get('CC', 'cc')} {flag}", "METANAS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [ENGINE], done.stderr
    expected = as_it_is(learn(name), noise(5))
    np.testing.assert_allclose(
        np.load(tmp_path / "scores.npy"), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


def test_inputs_of_another_size_or_type_are_refused(learn):
    network = Networks(CPU).load(learn("with a scale and a shift"))
    for inputs in (noise(2)[:, :, :20, :20].copy(), noise(2).astype(np.float64), noise(2)[..., ::-1]):
        with pytest.raises(ValueError, match="the network takes contiguous float32 of \\('images', 1, 28, 28\\)"):
            network.run(inputs)


@pytest.mark.parametrize("change", ["one gain for all channels", "a pooling without padding"])
def test_a_graph_that_the_engine_has_no_rule_for_is_not_compiled(learn, change):
    model = onnx.load_model_from_string(learn("a convolution and a pooling, two poolings"))
    if change == "one gain for all channels":
        gain = next(node.input[1] for node in model.graph.node if node.op_type == "Mul")
        constant = next(one for one in model.graph.initializer if one.name == gain)
        constant.CopyFrom(numpy_helper.from_array(np.full((1, 1, 1), 0.5, dtype=np.float32), gain))
        said = "has no number for each of 5 channels"
    else:
        pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
        del pool.attribute[[one.name for one in pool.attribute].index("pads")]
        said = "is a pooling of"
    with pytest.raises(UnknownGraphError, match=said):
        compiled(model)


def as_it_is(file, inputs):
    return ort.InferenceSession(file, providers=CPU).run(["logits"], {"images": inputs})[0]


def noise(count, seed=0):
    return np.random.default_rng(seed).random((count, 1, 28, 28), dtype=np.float32)


@BOTH
@pytest.mark.parametrize("name", SPACES)
def test_a_network_scores_as_the_file_does(learn, name, runs_on):
    file = learn(name)
    widened(onnx.load_model_from_string(file))  # so it is not simply run as it is
    expected = as_it_is(file, noise(11))
    network = Networks(CPU).load(file)
    assert (network.providers == [ENGINE]) == (runs_on == "engine" and not name.startswith("plain blocks"))
    found = network.run(noise(11))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@BOTH
@pytest.mark.parametrize("gain", [-1.0, 0.0, 1e-6, 1e6])
def test_gains_that_a_sum_cannot_be_divided_by_are_multiplied_with(learn, gain, runs_on):
    model = onnx.load_model_from_string(learn("every operation, halved at both ends"))
    changed = {node.input[1] for node in model.graph.node if node.op_type == "Mul"}
    assert len(changed) > 10
    for constant in model.graph.initializer:
        if constant.name in changed:
            value = numpy_helper.to_array(constant).copy()
            value[:, ::2] *= gain
            constant.CopyFrom(numpy_helper.from_array(value, constant.name))
    file = model.SerializeToString()
    expected = as_it_is(file, noise(5))
    networks = Networks(CPU)
    network = networks.load(file)
    assert networks.sessions == 1  # not run as it is
    np.testing.assert_allclose(network.run(noise(5)), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_pooling_that_is_added_to_something_takes_no_pass_of_its_own(learn):
    model = onnx.load_model_from_string(learn("a convolution and a pooling, two poolings"))
    assert [node.op_type for node in model.graph.node].count("Mul") == 6  # three for each of the cells
    body = widened(model).body
    gains = [node for node in body.graph.node if node.op_type == "Conv" and _is_gain(node)]
    assert len(gains) == 2  # the second pooling of two


def _is_gain(conv):
    attributes = {one.name: helper.get_attribute_value(one) for one in conv.attribute}
    return attributes["kernel_shape"] == [1, 1] and attributes.get("group", 1) > 1


def test_a_factorized_reduction_multiplies_the_pixels_that_it_reads_and_no_zeros(learn):
    model = onnx.load_model_from_string(learn("halves of channels that fill blocks, an odd size halved"))
    given = [node.name for node in model.graph.node if node.name.endswith("/input0/reduction")]
    assert len(given) == 3  # of the first input of every cell behind one that reduces
    body = widened(model).body
    weights = {one.name: numpy_helper.to_array(one) for one in body.graph.initializer}
    for name in given:
        convs = [node for node in body.graph.node if node.op_type == "Conv" and node.name.startswith(f"{name}/")]
        shapes = [weights[conv.input[1]].shape for conv in convs]
        source = shapes[0][1]
        assert shapes == [(16, source, 1, 1), (source, 1, 2, 2), (16, source, 1, 1)]


@BOTH
@pytest.mark.parametrize("pixel", [(0, 0), (1, 1)])
def test_a_convolution_whose_halves_read_the_same_pixel_is_run_as_it_is(learn, pixel, runs_on):
    model = onnx.load_model_from_string(learn("halves of channels that fill blocks, an odd size halved"))
    for node in model.graph.node:
        if node.name.endswith("/input0/reduction"):
            constant = next(one for one in model.graph.initializer if one.name == node.input[1])
            weight = numpy_helper.to_array(constant)
            changed = np.zeros_like(weight)
            changed[:, :, *pixel] = weight.sum(axis=(2, 3))
            constant.CopyFrom(numpy_helper.from_array(changed, constant.name))
    file, networks = model.SerializeToString(), Networks(CPU)
    expected, network = as_it_is(file, noise(3)), networks.load(file)
    assert networks.sessions == 1
    np.testing.assert_allclose(network.run(noise(3)), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_concatenation_is_rectified_part_by_part(learn):
    model = onnx.load_model_from_string(learn("a convolution and a pooling, two poolings"))
    body = widened(model).body
    concats = [node for node in body.graph.node if node.op_type == "Concat"]
    rectified = {node.output[0] for node in body.graph.node if node.op_type == "Relu"}
    read_by_relu = {node.input[0] for node in body.graph.node if node.op_type == "Relu"}
    assert [set(concat.input) <= rectified for concat in concats] == [True, False]  # features are not rectified
    assert not read_by_relu & {concat.output[0] for concat in concats}


@BOTH
@pytest.mark.parametrize("name", SPACES)
def test_an_image_scores_the_same_to_the_bit_alone_in_any_batch_and_in_any_order(learn, name, runs_on):
    network, images = Networks(CPU).load(learn(name)), noise(24)
    alone = np.concatenate([network.run(image[None]) for image in images])
    for count in (2, 3, 7, 8, 24):
        assert network.run(images[:count]).tobytes() == alone[:count].tobytes(), count
    order = np.random.default_rng(1).permutation(len(images))
    assert network.run(images[order]).tobytes() == alone[order].tobytes()


@RUNTIME
def test_a_large_image_has_several_threads_and_scores_the_same_to_the_bit_without(learn, monkeypatch, runs_on):
    monkeypatch.setattr(network_module, "_RUN_VALUES", 28 * 28)  # so an image of 28 x 28 pixels is a large one
    monkeypatch.setattr(networks_module, "LARGE_THREADS", 3)
    file, networks = learn("every operation, halved at both ends"), Networks(CPU)
    several = networks.load(file)
    assert (several.threads, several.batch, networks.threaded_sessions) == (3, 1, 1)
    monkeypatch.setattr(networks_module, "_MOST_THREADED", 0)
    one = Networks(CPU).load(file)
    assert one.threads == 1
    assert several.run(noise(5)).tobytes() == one.run(noise(5)).tobytes()


@BOTH
def test_a_large_image_has_several_threads_and_scores_the_same_to_the_bit_with_one(learn, monkeypatch, runs_on):
    monkeypatch.setattr(network_module, "_RUN_VALUES", 28 * 28)  # so an image of 28 x 28 pixels is a large one
    file, expected = learn("halves of channels that fill blocks, an odd size halved"), None
    for threads in (1, 2, 3, 4):
        monkeypatch.setattr(networks_module, "LARGE_THREADS", threads)
        network = Networks(CPU).load(file)
        assert (network.threads, network.batch) == (threads, 1)
        for _ in range(20):
            scores = network.run(noise(5)).tobytes()
            assert scores == (expected := expected or scores)


def test_several_networks_of_several_threads_at_the_same_time_score_as_each_alone(learn, monkeypatch):
    monkeypatch.setattr(network_module, "_RUN_VALUES", 28 * 28)
    monkeypatch.setattr(networks_module, "LARGE_THREADS", 3)
    names = [name for name in SPACES if not name.startswith("plain blocks")]
    loaded = [Networks(CPU).load(learn(name)) for name in names]
    assert all(network.providers == [ENGINE] and network.threads == 3 for network in loaded)
    expected = [network.run(noise(3)).tobytes() for network in loaded]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: loaded[number % len(names)].run(noise(3)).tobytes(), range(400)))
    assert found == [expected[number % len(names)] for number in range(400)]


def _of_a_child(network, inputs, sent):
    sent.put(network.run(inputs).tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_process_runs_networks_without_the_helpers_of_its_parent(learn, monkeypatch):
    monkeypatch.setattr(network_module, "_RUN_VALUES", 28 * 28)
    monkeypatch.setattr(networks_module, "LARGE_THREADS", 3)
    network = Networks(CPU).load(learn("with a scale and a shift"))
    expected, context = network.run(noise(3)).tobytes(), multiprocessing.get_context("fork")
    sent = context.SimpleQueue()
    child = context.Process(target=_of_a_child, args=(network, noise(3), sent))
    child.start()
    assert sent.get() == expected
    child.join(30)
    assert child.exitcode == 0


@BOTH
def test_tasks_of_one_architecture_have_one_session_which_goes_with_the_last_of_them(learn, runs_on):
    networks = Networks(CPU)
    loaded = [networks.load(learn("with a scale and a shift", seed=seed)) for seed in range(3)]
    assert networks.sessions == 1
    other = networks.load(learn("every operation, halved at both ends", n_way=4))
    assert networks.sessions == 2
    assert [network.run(noise(1)).shape for network in loaded] == [(1, 3)] * 3
    loaded.clear()
    gc.collect()
    assert networks.sessions == 1
    assert other.run(noise(1)).shape == (1, 4)


@BOTH
def test_tasks_that_share_a_session_never_mix_at_the_same_time(learn, runs_on):
    networks = Networks(CPU)
    loaded = [networks.load(learn("every operation, halved at both ends", seed=seed)) for seed in range(3)]
    expected = [network.run(noise(5)).tobytes() for network in loaded]
    assert len(set(expected)) == 3
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: loaded[number % 3].run(noise(5)).tobytes(), range(120)))
    assert found == [expected[number % 3] for number in range(120)]


def test_a_processor_that_rounds_differently_in_batches_gets_one_image_at_a_time(learn):
    network = Networks(CPU).load(learn("plain blocks"))
    shared = network._shared
    shared.batch, shared._is_tried, features = 8, False, network.features
    network.features = lambda inputs, is_away=False: features(inputs) * np.float32(1 + 1e-6 * len(inputs))
    shared.try_batches(network)
    assert shared.batch == 1
    alone = np.concatenate([network.run(image[None]) for image in noise(4)])
    assert network.run(noise(4)).tobytes() == alone.tobytes()


def test_a_graph_of_another_kind_is_run_as_it_is(learn, caplog):
    model = onnx.load_model_from_string(learn("plain blocks"))
    model.graph.node[0].output[0] = "before"
    model.graph.node.insert(1, helper.make_node("Tanh", ["before"], [model.graph.node[0].name], name="bend"))
    with pytest.raises(UnknownGraphError, match="bend is a Tanh"):
        widened(model)
    file = model.SerializeToString()
    networks = Networks(CPU)
    network = networks.load(file)
    assert networks.sessions == 0
    assert "run as it is, for bend is a Tanh" in caplog.text
    np.testing.assert_array_equal(network.run(noise(1)), as_it_is(file, noise(1)))
    alone = np.concatenate([network.run(image[None]) for image in noise(5)])
    assert network.run(noise(5)).tobytes() == alone.tobytes()
