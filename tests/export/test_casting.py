"""Float16 and bfloat16 in the graph, and which parts stay float32."""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from metanas.preprocessing import scale
from metanas_export import build_onnx, card, casting, keeping
from metanas_export.graph import build_graph
from metanas_export.running import session

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def scores(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return session(model.SerializeToString(), as_written=True)(images)


def support(task) -> np.ndarray:
    return scale(task.support.images, task.preprocessing).numpy()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_inside_is_narrow_and_borders_and_head_are_float32(build_task, cells, precision) -> None:
    task = build_task(cells["two_a_node"], cells=2)
    model = build_onnx(task, precision=precision)
    assert card.read(model)["kept_in_float32"] == []
    for value in model.graph.initializer:
        if value.data_type != TensorProto.INT64:
            expected = TensorProto.FLOAT if value.name.startswith("head/") else TYPES[precision]
            assert value.data_type == expected, value.name
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 2
    assert card.read(model)["precision"] == precision


def test_float16_costs_something_and_little(build_task, cells) -> None:
    task = build_task(cells["every_operation"], image_size=21)
    reference = task.logits(task.support.images).numpy()
    found = scores(build_onnx(task, precision="fp16"), support(task))
    assert 1e-4 < np.abs(found - reference).max() < 0.02 * np.abs(reference).max()


def test_the_emulation_gives_what_the_reference_evaluator_gives_for_bfloat16(build_blocks) -> None:
    # The evaluator of ONNX runs the file as it is, with bfloat16 arrays; sums may be taken in another order.
    task = build_blocks(filters=4, blocks=2, image_size=8, n_way=3)
    model = build_onnx(task, precision="bf16")
    images = support(task)[:2]
    emulated = scores(casting.emulate(model), images)
    try:
        evaluated = ReferenceEvaluator(model).run(None, {"images": images})[0]
    except Exception as error:  # what it raises for a type it lacks differs from version to version
        pytest.skip(f"the reference evaluator of onnx {onnx.__version__} does not run bfloat16: {error}")
    exact = task.logits(task.support.images[:2]).numpy()
    assert np.abs(emulated - exact).max() > 1e-4
    assert np.abs(emulated - evaluated).max() < 0.02 * np.abs(exact).max()


def test_emulation_rounds_by_hand(build_blocks) -> None:
    # 1 + 2 ** -9 is not a bfloat16: its neighbours are 1 and 1 + 2 ** -7.
    task = build_blocks(filters=2, blocks=1, image_size=4)
    graph = casting.narrow(build_graph(task), "bf16")
    values = {one.name: one for one in casting.emulate(graph).graph.initializer}
    weight = numpy_helper.to_array(values["block0/conv/weight"])
    assert weight.dtype == np.float32
    assert (weight == weight.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_a_kept_unit_is_float32_between_casts(build_task) -> None:
    task = build_task()
    graph = build_graph(task)
    kept = "cell1/input0"
    model = casting.narrow(graph, "fp16", keep=[kept])
    onnx.checker.check_model(model, full_check=True)
    types = {value.name: value.data_type for value in model.graph.initializer}
    assert {kind for name, kind in types.items() if name.startswith(kept)} == {TensorProto.FLOAT}
    assert types["cell1/input1/projection/weight"] == TensorProto.FLOAT16
    assert kept in casting.units(graph)


def test_a_weight_that_float16_cannot_hold_stays_float32(build_task) -> None:
    task = build_task(cells=2)
    task.network.network.stem_norm.bias[0] = 70000.0
    assert casting.too_large(build_graph(task), "fp16") == {"stem"}
    assert casting.too_large(build_graph(task), "bf16") == frozenset()
    model = build_onnx(task, precision="fp16")
    assert "stem" in card.read(model)["kept_in_float32"]
    assert np.isfinite(scores(model, support(task))).all()


def test_nothing_is_kept_where_nothing_costs_too_much() -> None:
    reference = np.array([[2.0, 0.0]], dtype=np.float32)
    assert keeping.choose(lambda keep: reference, reference, units=("a", "b"), limit=0.01) == ()


def test_the_unit_that_costs_most_is_kept_first() -> None:
    reference = np.array([[2.0, 0.0]], dtype=np.float32)
    costs = {"a": 0.1, "b": 0.5, "c": 0.01}

    def trial(keep: frozenset[str]) -> np.ndarray:
        return reference - np.float32(sum(cost for unit, cost in costs.items() if unit not in keep))

    assert keeping.choose(trial, reference, units=tuple(costs), limit=0.2) == ("b",)
    assert keeping.choose(trial, reference, units=tuple(costs), limit=0.01) == ("a", "b")
    assert keeping.choose(trial, reference, units=tuple(costs), limit=0.2, always=["c"]) == ("b", "c")


def test_a_lost_number_is_an_infinite_error() -> None:
    reference = np.array([[2.0, 0.0]], dtype=np.float32)
    assert keeping.error(np.array([[np.nan, 0.0]], dtype=np.float32), reference) == float("inf")
    assert keeping.error(reference * np.float32(0.5), reference) == 0.5
