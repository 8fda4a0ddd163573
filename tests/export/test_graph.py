"""The ONNX graph: the same answers as torch, and nothing in it that is not needed."""

import io
import subprocess
import sys
import time
from collections import Counter, defaultdict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from metanas.genotypes import GENOTYPES
from metanas.model import TaskModel
from metanas.operations import OPERATIONS
from metanas.preprocessing import scale
from metanas.space import DEFAULT_OPERATIONS
from metanas_export import build_onnx, card, casting, onnx_bytes, quantising
from metanas_export.builder import PRECISIONS
from metanas_export.errors import UnsupportedOperationError
from metanas_export.graph import build_graph

LIMIT = 1e-4


def run(model: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def random_images(task: TaskModel, count: int) -> torch.Tensor:
    size = (count, *task.support.images.shape[1:])
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(99))


def largest_difference(task: TaskModel, images: torch.Tensor, model: bytes | None = None) -> float:
    onnx_scores = run(model or onnx_bytes(task), scale(images, task.preprocessing).numpy())
    return float(np.abs(onnx_scores - task.logits(images).numpy()).max())


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("name", DEFAULT_OPERATIONS)
@pytest.mark.parametrize("image_size", [14, 21])
def test_each_operation_alone_scores_as_torch_does(build_task, build_cell, name, image_size) -> None:
    cell = build_cell([(0, name), (1, name)], [(0, name), (2, name)], [(1, name), (3, name)])
    task = build_task(cell, image_size=image_size)
    assert largest_difference(task, random_images(task, 3)) < LIMIT


@pytest.mark.parametrize(
    ("image_size", "in_channels", "n_way", "channels"),
    [(28, 1, 5, 8), (27, 3, 2, 5), (21, 1, 40, 6), (5, 3, 3, 7)],
)
def test_all_operations_together_score_as_torch_does(
    build_task, cells, image_size, in_channels, n_way, channels
) -> None:
    task = build_task(
        cells["every_operation"], image_size=image_size, in_channels=in_channels, n_way=n_way, channels=channels
    )
    for images in (task.support.images, random_images(task, 4)):
        assert largest_difference(task, images) < LIMIT


def test_an_adapted_task_scores_as_torch_does(adapted_task) -> None:
    assert largest_difference(adapted_task, adapted_task.support.images) < LIMIT


@pytest.mark.parametrize("batch", [1, 5, 17])
def test_one_graph_takes_any_batch_size(build_task, batch) -> None:
    task = build_task()
    model = onnx_bytes(task)
    images = random_images(task, batch)
    assert run(model, scale(images, task.preprocessing).numpy()).shape == (batch, 5)
    assert largest_difference(task, images, model) < LIMIT


def test_a_blank_image_does_not_divide_by_zero(build_task) -> None:
    task = build_task()
    with torch.no_grad():
        for cell in task.network.network.cells:
            for parameter in cell.parameters():
                parameter.zero_()
    task.network.freeze_statistics(scale(task.support.images, task.preprocessing))
    images = random_images(task, 2)
    assert task.network.features(scale(images, task.preprocessing)).abs().max() == 0
    assert largest_difference(task, images) < LIMIT


class _Traceable(torch.nn.Module):
    """What torch.export can trace: without ``run``, the network compares its weights in Python."""

    def __init__(self, task: TaskModel) -> None:
        super().__init__()
        self.network, self.head = task.network.network, task.network.head
        self.run = {kind: [True for node in task.genotype.cell(kind) for _ in node] for kind in ("normal", "reduction")}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.network(images, run=self.run))


@pytest.mark.parametrize("kind", ["cells", "affine", "blocks"])
def test_the_graph_answers_as_the_one_of_the_torch_exporter(build_task, build_blocks, cells, kind) -> None:
    if kind == "blocks":
        task = build_blocks(filters=4, blocks=2, image_size=13)
    else:
        task = build_task(cells["two_a_node"], channels=4, image_size=13, cells=2, affine=kind == "affine")
    example = scale(random_images(task, 3), task.preprocessing)
    buffer = io.BytesIO()
    with torch.no_grad():
        exported = torch.onnx.export(
            _Traceable(task).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=64)}},
            verbose=False,
        )
    exported.save(buffer)
    images = scale(random_images(task, 6), task.preprocessing).numpy()
    assert np.abs(run(buffer.getvalue(), images) - run(onnx_bytes(task), images)).max() < LIMIT


CONVERSIONS = {
    "fp32": lambda graph: graph,
    "fp16": lambda graph: casting.narrow(graph, "fp16"),
    "bf16": lambda graph: casting.narrow(graph, "bf16"),
    "int8": lambda graph: quantising.quantise(graph, defaultdict(lambda: 0.01)),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["every_operation", "two_a_node"])
def test_the_graph_passes_the_full_checker_and_strict_shape_inference(build_task, cells, name, precision) -> None:
    model = CONVERSIONS[precision](build_graph(build_task(cells[name], image_size=21)))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 1, 21, 21]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 5]
    assert (images.name, logits.name) == ("images", "logits")
    assert images.type.tensor_type.elem_type == logits.type.tensor_type.elem_type == TensorProto.FLOAT


def test_the_graph_holds_the_operations_of_the_genotype_and_no_others(build_task, cells) -> None:
    # By hand, for `two_a_node` in 4 cells: stem 1; 2 cell inputs x 4 cells = 8; sep 4 + dil 2 + 1x5-5x1 2 +
    # conv 2 = 10 a cell = 40; a skip from input 0 is a convolution in the 2 reduction cells: 2. Together 51.
    # ReLU: stem (both inputs of cell 0, one of cell 1), 3 cell outputs; in a cell inputs 0, 1, node 0 (as
    # source 2), and inside sep_conv: 4 x 4. Together 20.
    count = kinds(build_onnx(build_task(cells["two_a_node"])))
    assert count["Conv"] == 51
    assert count["Relu"] == 20
    assert count["MaxPool"] == 4
    assert count["Mul"] == 4 + 2  # a pooling in each cell, a skip in each normal cell
    assert count["Add"] == count["Mul"] + 3 * 4  # two terms in each of 3 nodes of 4 cells
    assert count["Concat"] == 4
    assert set(count) == {
        "Conv", "Relu", "MaxPool", "Mul", "Add", "Concat",
        "GlobalAveragePool", "Flatten", "ReduceL2", "Max", "Div", "Gemm",
    }  # fmt: skip


def test_edges_that_pool_the_same_input_share_one_pooling(build_task, build_cell) -> None:
    pools = [(0, "max_pool_3x3"), (1, "max_pool_3x3")]
    count = kinds(build_onnx(build_task(build_cell(pools, pools, pools))))
    assert count["MaxPool"] == 2 * 4
    assert count["Mul"] == 6 * 4


def test_a_cell_that_nobody_reads_is_not_in_the_graph(build_task, build_cell) -> None:
    # The last cell reads only the cell before the one before it, so cell 2 does nothing.
    only_first = build_cell([(0, "conv_3x3")], [(0, "max_pool_3x3")], [(2, "sep_conv_3x3")])
    task = build_task(reduction=only_first)
    model = build_onnx(task)
    names = [node.name for node in model.graph.node] + [value.name for value in model.graph.initializer]
    assert not [name for name in names if name.startswith(("cell2", "cell3/input1"))]
    assert [name for name in names if name.startswith("cell1")]
    read = {name for node in model.graph.node for name in node.input}
    assert {value.name for value in model.graph.initializer} <= read
    assert largest_difference(task, random_images(task, 3), model.SerializeToString()) < LIMIT


def test_names_say_cell_node_source_and_operation(build_task, cells) -> None:
    names = [node.name for node in build_onnx(build_task(cells["two_a_node"])).graph.node]
    assert "cell3/node1_from2_conv_3x3/pointwise" in names
    assert "cell0/node0_from0_sep_conv_3x3/depthwise2" in names
    assert len(set(names)) == len(names)


def test_a_graph_of_full_size_is_built_in_under_100_milliseconds(build_task, cells) -> None:
    task = build_task(cells["two_a_node"], channels=28, image_size=28, n_way=20, shots=1)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        onnx_bytes(task)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1


def test_a_network_in_training_mode_is_refused(build_task) -> None:
    task = build_task()
    task.network.train()
    with pytest.raises(ValueError, match="training mode; call freeze_statistics"):
        build_onnx(task)


def test_an_operation_without_translation_is_named(build_task) -> None:
    task = build_task()
    task.network.network.cells[1].operations["node0_from0_sep_conv_3x3"] = torch.nn.Tanh()
    with pytest.raises(UnsupportedOperationError, match="cell1/node0_from0_sep_conv_3x3 is a Tanh"):
        build_onnx(task)


def test_folding_by_hand(build_task, build_cell) -> None:
    # Weight w, variance 3 - epsilon, mean 4: gain w / sqrt(3), offset -4 w / sqrt(3).
    task = build_task(build_cell([(0, "max_pool_3x3")], [(0, "max_pool_3x3")], [(0, "max_pool_3x3")]))
    norm = task.network.network.cells[1].operations["from0_max_pool_3x3"].norm
    norm.mean.fill_(4.0)
    norm.variance.fill_(3 - 1e-5)
    values = {value.name: numpy_helper.to_array(value) for value in build_onnx(task).graph.initializer}
    weight = task.genotype.reduction[0][0].weight
    assert values["cell1/node0_from0_max_pool_3x3/gain"].ravel() == pytest.approx([weight / 3**0.5] * 6)
    assert values["cell1/node0_from0_max_pool_3x3/offset"].ravel() == pytest.approx([-4 * weight / 3**0.5] * 6)


def test_importing_the_package_loads_no_runtime_and_no_other_application() -> None:
    heavy = ["onnxruntime", "tensorrt", "tensorrt_rtx", "grpc", "metanas_serving", "metanas_training"]
    code = f"import sys, metanas_export; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["conv_5x5", "sep_conv_5x5", "dil_conv_5x5"])
@pytest.mark.parametrize("image_size", [14, 21])
def test_each_5x5_operation_scores_as_torch_does(build_task, build_cell, name, image_size) -> None:
    cell = build_cell([(0, name), (1, name)], [(0, name), (2, name)], [(1, name), (3, name)])
    task = build_task(cell, image_size=image_size)
    model = build_onnx(task)
    assert largest_difference(task, random_images(task, 3), model.SerializeToString()) < LIMIT
    depthwise = [node for node in model.graph.node if node.name.startswith(f"cell0/node0_from0_{name}/depthwise")]
    assert len(depthwise) == (2 if name == "sep_conv_5x5" else 1)
    padding, dilation = (4, 2) if name == "dil_conv_5x5" else (2, 1)
    for node in depthwise:
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        assert attributes["kernel_shape"] == [5, 5]
        assert (attributes["pads"], attributes["dilations"]) == ([padding] * 4, [dilation] * 2)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("image_size", "in_channels", "n_way", "channels"), [(28, 1, 5, 8), (27, 3, 2, 5), (5, 3, 3, 7)]
)
def test_all_operations_of_all_kinds_together_score_as_torch_does(
    build_task, build_cell, affine, image_size, in_channels, n_way, channels
) -> None:
    names = list(OPERATIONS)
    cell = build_cell(
        [(0, name) for name in names] + [(1, "max_pool_3x3"), (0, "max_pool_3x3"), (0, "skip_connect")],
        [(1, name) for name in names] + [(1, "sep_conv_5x5"), (0, "skip_connect")],
        [(2, name) for name in names] + [(0, "max_pool_3x3"), (2, "conv_1x5_5x1"), (2, "conv_1x5_5x1")],
    )
    task = build_task(
        cell, affine=affine, image_size=image_size, in_channels=in_channels, n_way=n_way, channels=channels
    )
    model = build_onnx(task)
    onnx.checker.check_model(model, full_check=True)
    for images in (task.support.images, random_images(task, 4)):
        assert largest_difference(task, images, model.SerializeToString()) < LIMIT


@pytest.mark.parametrize("name", GENOTYPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("in_channels", "image_size", "cells"), [(1, 28, 4), (3, 33, 5)])
def test_the_genotypes_of_the_papers_score_as_torch_does(
    build_task, name, affine, in_channels, image_size, cells
) -> None:
    genotype = GENOTYPES[name]
    task = build_task(
        genotype.normal, genotype.reduction, affine=affine, in_channels=in_channels, image_size=image_size,
        channels=5, cells=cells,
    )  # fmt: skip
    assert task.genotype == genotype
    for images in (task.support.images, random_images(task, 4)):
        assert largest_difference(task, images) < LIMIT


def test_adapted_tasks_of_fixed_architectures_score_as_torch_does(adapted_fixed_tasks) -> None:
    for task in adapted_fixed_tasks.values():
        assert largest_difference(task, task.support.images) < LIMIT
        assert largest_difference(task, random_images(task, 4)) < LIMIT


@pytest.mark.parametrize(
    ("filters", "blocks", "in_channels", "image_size", "n_way"),
    [(64, 4, 1, 28, 20), (8, 4, 3, 84, 5), (5, 3, 3, 13, 2), (6, 1, 1, 5, 40)],
)
def test_plain_blocks_score_as_torch_does(build_blocks, filters, blocks, in_channels, image_size, n_way) -> None:
    task = build_blocks(filters=filters, blocks=blocks, in_channels=in_channels, image_size=image_size, n_way=n_way)
    model = onnx_bytes(task)
    for images in (task.support.images, random_images(task, 4), random_images(task, 1)):
        assert largest_difference(task, images, model) < LIMIT


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_of_plain_blocks_holds_their_layers_and_no_others(build_blocks, precision) -> None:
    task = build_blocks(blocks=3, image_size=21)
    model = build_onnx(task, precision=precision)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert kinds(model) == {
        "Conv": 3, "Relu": 3, "MaxPool": 3, "Flatten": 1, "ReduceL2": 1, "Max": 1, "Div": 1, "Gemm": 1,
        **({"Cast": 2} if precision == "fp16" else {}),
    }  # fmt: skip
    assert card.read(model)["genotype"] == {"normal": [], "reduction": []}
    names = [node.name for node in model.graph.node]
    assert {"block0/conv", "block2/pool"} <= set(names)
    assert len(set(names)) == len(names)
    scores = task.logits(task.support.images)
    limit = LIMIT if precision == "fp32" else 0.02 * float(scores.abs().max())
    assert largest_difference(task, task.support.images, model.SerializeToString()) < limit


def test_the_bias_of_a_convolution_is_folded_by_hand(build_blocks) -> None:
    # norm(conv(x) + b) with gain g = 2 / sqrt(4), mean 3 and shift 5: g * (b - 3) + 5 is left of the bias.
    task = build_blocks(filters=2, blocks=1, image_size=4)
    network = task.network.network
    norm = network.norms[0]
    norm.weight.fill_(2.0)
    norm.bias.fill_(5.0)
    norm.mean.fill_(3.0)
    norm.variance.fill_(4 - 1e-5)
    network.convs[0].bias.copy_(torch.tensor([1.0, -7.0]))
    values = {value.name: numpy_helper.to_array(value) for value in build_onnx(task).graph.initializer}
    assert values["block0/conv/bias"] == pytest.approx([1.0 - 3 + 5, -7.0 - 3 + 5])
    np.testing.assert_allclose(values["block0/conv/weight"], network.convs[0].weight.numpy(), rtol=1e-6)


def test_an_operation_twice_on_one_edge_has_two_names_and_two_sets_of_weights(build_task, build_cell) -> None:
    cell = build_cell([(0, "conv_3x3"), (0, "conv_3x3")], [(1, "max_pool_3x3"), (1, "max_pool_3x3")], [(3, "conv_3x3")])
    task = build_task(cell, cells=2)
    model = build_onnx(task)
    values = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    first, second = (values[f"cell1/node0_from0_conv_3x3{end}/pointwise/weight"] for end in ("", "_2"))
    assert not np.array_equal(first, second)
    assert kinds(model)["MaxPool"] == 2  # one in each cell: both edges pool alike
    assert largest_difference(task, random_images(task, 3), model.SerializeToString()) < LIMIT


def test_edges_that_pool_the_same_input_share_one_pooling_before_affine_norms_too(build_task, build_cell) -> None:
    pools = [(0, "max_pool_3x3"), (1, "max_pool_3x3")]
    task = build_task(build_cell(pools, pools, pools), affine=True)
    model = build_onnx(task)
    assert kinds(model)["MaxPool"] == 2 * 4
    assert kinds(model)["Mul"] == 6 * 4
    assert largest_difference(task, random_images(task, 3), model.SerializeToString()) < LIMIT
