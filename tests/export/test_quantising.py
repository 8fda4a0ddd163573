"""Int8: Q/DQ pairs as TensorRT takes them, calibrated on the task's own images."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from metanas.preprocessing import scale
from metanas_export import build_onnx, quantising
from metanas_export.graph import build_graph
from metanas_export.running import session


def test_every_convolution_reads_int8_and_nothing_holds_int32(adapted_task) -> None:
    graph = build_graph(adapted_task)
    model = quantising.quantise(graph, quantising.calibrate(graph, quantising.calibration_images(adapted_task)[:16]))
    onnx.checker.check_model(model, full_check=True)
    makers = {node.output[0]: node for node in model.graph.node}
    constants = {value.name: value for value in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        for name in node.input[:2]:
            assert makers[name].op_type == "DequantizeLinear"
            assert constants[makers[name].input[2]].data_type == TensorProto.INT8
            assert not numpy_helper.to_array(constants[makers[name].input[2]]).any()
        weight_steps = numpy_helper.to_array(constants[makers[node.input[1]].input[1]])
        assert weight_steps.shape == numpy_helper.to_array(constants[makers[node.input[1]].input[0]]).shape[:1]
        assert len(node.input) == 2 or constants[node.input[2]].data_type == TensorProto.FLOAT
    assert TensorProto.INT32 not in {value.data_type for value in constants.values()}
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["QuantizeLinear"] == len({node.input[0] for node in convolutions})


def test_int8_answers_as_torch_does_on_the_support_images(adapted_task) -> None:
    images = scale(adapted_task.support.images, adapted_task.preprocessing).numpy()
    reference = adapted_task.logits(adapted_task.support.images).numpy()
    found = session(build_onnx(adapted_task, precision="int8").SerializeToString())(images)
    difference = np.abs(found - reference).max()
    assert 0 < difference < 0.1 * np.abs(reference).max()
    # The weights are hardly trained: where two classes are all but equal, rounding chooses, and processors differ.
    runner_up, best = np.sort(reference, axis=1)[:, -2:].T
    certain = best - runner_up > 2 * difference
    assert certain.mean() > 0.5
    assert (found.argmax(axis=1) == reference.argmax(axis=1))[certain].all()
    assert (found.argmax(axis=1) == reference.argmax(axis=1)).mean() > 0.8


def test_weights_are_whole_numbers_by_hand() -> None:
    kernel = np.array([[[[0.5, -1.0]]], [[[0.0, 0.0]]]], dtype=np.float32)
    whole, steps = quantising._whole_weights(kernel, 127)
    assert whole.ravel().tolist() == [64, -127, 0, 0]
    assert steps[0] == pytest.approx(1 / 127)


def test_a_rare_large_value_is_cut_off_and_a_common_one_is_not() -> None:
    counts = np.zeros(1024, dtype=np.int64)
    counts[:300] = 1_000_000
    counts[-1] = 1
    assert quantising._step(10.0, counts) < 5.0 / 127
    counts[:] = 1000
    assert quantising._step(10.0, counts) == pytest.approx(10.0 / 127)
    assert quantising._step(0.0, np.zeros(1024, dtype=np.int64)) == 1 / 127


def test_calibration_images_are_the_support_set_and_distortions_of_it(build_task) -> None:
    task = build_task(n_way=5, shots=2)
    images = quantising.calibration_images(task)
    assert len(images) == 90
    np.testing.assert_array_equal(images[:10], scale(task.support.images, task.preprocessing).numpy())
    assert not np.array_equal(images[10:20], images[:10])
    np.testing.assert_array_equal(images, quantising.calibration_images(task))
    assert len(quantising.calibration_images(build_task(n_way=60, shots=2))) == quantising.MAX_IMAGES


def test_a_kept_unit_has_no_pairs_and_the_unsigned_scheme_halves_steps(build_task) -> None:
    graph = build_graph(build_task())
    steps = quantising.calibrate(graph, quantising.calibration_images(build_task())[:16])
    model = quantising.quantise(graph, steps, keep=["stem"])
    (stem,) = [node for node in model.graph.node if node.name == "stem/conv"]
    assert list(stem.input[:2]) == ["images", "stem/conv/weight"]
    scheme = quantising.Scheme(unsigned_after_relu=True, weight_limit=63)
    constants = {one.name: one for one in quantising.quantise(graph, steps, scheme=scheme).graph.initializer}
    assert constants["stem/conv/relu/zero"].data_type == TensorProto.UINT8
    assert constants["images/zero"].data_type == TensorProto.INT8
    assert numpy_helper.to_array(constants["stem/conv/relu/step"]) == pytest.approx(steps["stem/conv/relu"] * 127 / 255)
    assert np.abs(numpy_helper.to_array(constants["stem/conv/weight/int8"]).astype(int)).max() == 63
