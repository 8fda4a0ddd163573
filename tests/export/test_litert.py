"""LiteRT files, written operator by operator, in the LiteRT interpreter."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from metanas.operations import OPERATIONS
from metanas.preprocessing import scale
from metanas_export import build_onnx, casting, quantising
from metanas_export.errors import FormatError, UnsupportedOperationError
from metanas_export.graph import build_graph
from metanas_export.windows import Window, padding

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

from metanas_export import litert
from metanas_export.runtimes import open_model


def run(content: bytes, images: np.ndarray, folder) -> np.ndarray:
    (folder / "model.tflite").write_bytes(content)
    return open_model("litert", folder / "model.tflite")(images)


@pytest.mark.parametrize("image_size", [14, 21])
def test_all_operations_of_all_kinds_score_as_torch_does(build_task, build_cell, tmp_path, image_size) -> None:
    names = list(OPERATIONS)
    cell = build_cell([(0, name) for name in names], [(1, name) for name in names], [(2, name) for name in names])
    task = build_task(cell, image_size=image_size, in_channels=3, cells=2)
    content = litert.convert(build_onnx(task))
    for count in (1, 3):
        images = torch.randint(0, 256, (count, 3, image_size, image_size), dtype=torch.uint8)
        found = run(content, scale(images, task.preprocessing).numpy(), tmp_path)
        assert np.abs(found - task.logits(images).numpy()).max() < 1e-4


def test_plain_blocks_score_as_torch_does(build_blocks, tmp_path) -> None:
    task = build_blocks(filters=5, blocks=2, image_size=21, in_channels=3)
    images = scale(task.support.images, task.preprocessing).numpy()
    found = run(litert.convert(build_onnx(task)), images, tmp_path)
    assert np.abs(found - task.logits(task.support.images).numpy()).max() < 1e-4


def test_fp16_and_int8_are_smaller_and_close(adapted_task, tmp_path) -> None:
    graph = build_graph(adapted_task)
    images = scale(adapted_task.support.images, adapted_task.preprocessing).numpy()
    reference = adapted_task.logits(adapted_task.support.images).numpy()
    steps = quantising.calibrate(graph, quantising.calibration_images(adapted_task)[:24])
    # A processor with float16 arithmetic (AVX512-FP16) calculates in it too, where others only store the weights so.
    models = {0.03: casting.narrow(graph, "fp16"), 0.25: quantising.quantise(graph, steps)}
    for limit, model in models.items():
        found = run(litert.convert(model), images, tmp_path)
        assert 0 < np.abs(found - reference).max() < limit * np.abs(reference).max()


def test_names_and_preprocessing_are_in_the_file(build_blocks) -> None:
    from ai_edge_litert import schema_py_generated as schema

    task = build_blocks()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(litert.convert(build_onnx(task))))
    (note,) = model.metadata
    assert note.name == b"metanas"
    assert json.loads(bytes(model.buffers[note.buffer].data))["class_names"] == list(task.class_names)
    (signature,) = model.signatureDefs
    assert [one.name for one in signature.inputs] == [b"images"]
    names = {tensor.name for tensor in model.subgraphs[0].tensors}
    assert b"block0/conv/weight" in names


def test_bfloat16_is_refused(build_blocks) -> None:
    with pytest.raises(FormatError, match="LiteRT has no bfloat16; export it with --precision fp16, int8 or fp32"):
        litert.convert(casting.narrow(build_graph(build_blocks()), "bf16"))


def test_a_node_without_translation_is_named(build_blocks) -> None:
    model = build_onnx(build_blocks())
    model.graph.node.insert(0, helper.make_node("Erf", ["images"], ["odd"], name="odd/erf"))
    with pytest.raises(UnsupportedOperationError, match="odd/erf is a Erf, which has no LiteRT translation"):
        litert.convert(model)
    onnx.checker.check_model(model)


def test_windows_by_hand() -> None:
    # 3x3, stride 2, padding 1 on 8 pixels: out 4, the last window ends at pixel 7: only the pad before is needed,
    # and SAME would put its one missing pixel at the end. On 7 pixels both ends are padded, as SAME does.
    even = Window(kernel=3, stride=2, dilation=1, before=1, size=8, out=4)
    odd = Window(kernel=3, stride=2, dilation=1, before=1, size=7, out=4)
    assert padding(odd, odd) == "SAME"
    assert padding(even, even) == ((1, 0), (1, 0))
    assert even.share_inside().tolist() == pytest.approx([2 / 3, 1, 1, 1])
    assert padding(*[Window(2, 2, 1, 0, 8, 4)] * 2) == "SAME"
    assert padding(*[Window(2, 2, 1, 0, 7, 3)] * 2) == "VALID"
