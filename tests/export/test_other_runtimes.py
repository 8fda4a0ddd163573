"""OpenVINO and ExecuTorch: real files, run by their own runtimes."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from metanas.operations import OPERATIONS
from metanas.preprocessing import scale
from metanas_export import build_onnx, casting, executorch_pte, openvino_ir, quantising
from metanas_export.builder import PRECISIONS
from metanas_export.errors import FormatError
from metanas_export.formats import convert
from metanas_export.graph import build_graph
from metanas_export.running import session
from metanas_export.runtimes import open_model
from metanas_export.torch_graph import TorchGraph

needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="OpenVINO is not installed")
needs_executorch = pytest.mark.skipif(not find_spec("executorch"), reason="ExecuTorch is not installed")


def run(kind: str, contents: dict[str, bytes], images: np.ndarray, folder) -> np.ndarray:
    paths = [folder / f"model{suffix}" for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return open_model(kind, paths[0])(images)


@needs_openvino
@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", 1e-5), ("fp16", 0.02), ("bf16", 0.2), ("int8", 0.2)], ids=PRECISIONS
)
def test_openvino_scores_as_torch_does(adapted_task, tmp_path, precision, limit) -> None:
    graph = build_graph(adapted_task)
    if precision == "int8":
        steps = quantising.calibrate(graph, quantising.calibration_images(adapted_task)[:24])
        model = quantising.quantise(graph, steps, scheme=openvino_ir.SCHEME)
    else:
        model = graph if precision == "fp32" else casting.narrow(graph, precision)
    contents = dict(zip((".xml", ".bin"), openvino_ir.convert(model.SerializeToString(), name="it"), strict=True))
    images = scale(adapted_task.support.images, adapted_task.preprocessing).numpy()
    reference = adapted_task.logits(adapted_task.support.images).numpy()
    for count in (1, 12):
        found = run("openvino", contents, images[:count], tmp_path)
        assert np.abs(found - reference[:count]).max() < limit * np.abs(reference).max()


@needs_openvino
def test_openvino_calculates_int8_as_onnx_runtime_does(adapted_task, tmp_path) -> None:
    # With signed activations and weights of 8 bits, OpenVINO's kernels for AVX2 alone are far off.
    graph = build_graph(adapted_task)
    steps = quantising.calibrate(graph, quantising.calibration_images(adapted_task)[:24])
    model = quantising.quantise(graph, steps, scheme=openvino_ir.SCHEME).SerializeToString()
    contents = dict(zip((".xml", ".bin"), openvino_ir.convert(model, name="it"), strict=True))
    images = scale(adapted_task.support.images, adapted_task.preprocessing).numpy()
    reference = session(model, as_written=True)(images)
    assert np.abs(run("openvino", contents, images, tmp_path) - reference).max() < 0.05 * np.abs(reference).max()


@needs_openvino
def test_what_openvino_does_not_read_is_said() -> None:
    with pytest.raises(FormatError, match="OpenVINO does not read the model"):
        openvino_ir.convert(b"no model", name="the model")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graph_as_a_torch_module_scores_as_the_network_does(build_task, build_cell, precision) -> None:
    names = list(OPERATIONS)
    cell = build_cell([(0, name) for name in names], [(1, "conv_3x3")], [(2, "dil_conv_5x5")])
    task = build_task(cell, cells=2)
    limit = {"fp32": 1e-5, "fp16": 0.02, "int8": 0.3}[precision]
    with torch.no_grad():
        found = TorchGraph(build_onnx(task, precision=precision))(scale(task.support.images, task.preprocessing))
    reference = task.logits(task.support.images)
    assert (found - reference).abs().max() < limit * reference.abs().max()


@needs_executorch
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_executorch_takes_every_batch_up_to_the_largest(build_blocks, tmp_path) -> None:
    task = build_blocks(filters=4, blocks=1, image_size=8)
    contents = convert("executorch", task, model=build_onnx(task), precision="fp32", max_batch=32)
    pixels = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    images = scale(pixels, task.preprocessing).numpy()
    for count in (1, 2, 15, 16, 32):
        found = run("executorch", contents, images[:count], tmp_path)
        assert np.abs(found - task.logits(pixels[:count]).numpy()).max() < 1e-4


@needs_executorch
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 0.01)])
def test_executorch_scores_as_torch_does(adapted_task, tmp_path, precision, limit) -> None:
    model = build_onnx(adapted_task, precision=precision)
    contents = convert("executorch", adapted_task, model=model, precision=precision, max_batch=32)
    images = scale(adapted_task.support.images, adapted_task.preprocessing).numpy()
    reference = adapted_task.logits(adapted_task.support.images).numpy()
    found = run("executorch", contents, images, tmp_path)
    assert np.abs(found - reference).max() < limit * np.abs(reference).max()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_executorch_refuses_what_xnnpack_would_not_run(build_blocks, precision) -> None:
    with pytest.raises(FormatError, match=f"runs fp32 and fp16 here, not {precision}; export it with one of these"):
        executorch_pte.convert(build_onnx(build_blocks()), precision=precision, max_batch=4)
