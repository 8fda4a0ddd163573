"""Real plans from the real TensorRT-RTX builder, which needs no GPU."""

import importlib
import json
import platform
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from metanas_export import engine, onnx_bytes
from metanas_export.engine import Profile, build_plan, find_tensorrt
from metanas_export.errors import TensorRTBuildError, TensorRTMissingError

needs_rtx = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason=f"tensorrt-rtx has no wheel for {platform.machine()}",
)


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in front of the import path: what lies in it is found before any real TensorRT."""
    saved = {name: sys.modules.pop(name) for name in engine.FLAVOURS if name in sys.modules}
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in engine.FLAVOURS:
        sys.modules.pop(name, None)
    sys.modules.update(saved)


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_a_plan_whose_sidecar_describes_it(build_task, precision) -> None:
    task = build_task(channels=8)
    model = onnx_bytes(task, precision=precision)
    trt = importlib.import_module("tensorrt_rtx")
    plan = build_plan(trt, model, profile=Profile(max_batch=8))
    assert len(plan.data) > 1000
    found = json.loads(json.dumps(engine.sidecar(plan, task, precision=precision)))
    assert found["plan_sha256"] == engine.sha256(plan.data)
    assert found["plan_bytes"] == len(plan.data)
    assert found["plan_was_run"] is False
    assert found["onnx_sha256"] == engine.sha256(model)
    assert found["tensorrt"] == {"flavour": "tensorrt_rtx", "version": trt.__version__}
    assert found["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0", "12.1"]
    assert found["precision"] == precision
    assert found["profile"] == {"min_batch": 1, "opt_batch": 1, "max_batch": 8}
    assert found["input"] == {"name": "images", "type": "float32", "shape": ["batch", 1, 14, 14]}
    assert found["output"] == {"name": "logits", "type": "float32", "shape": ["batch", 5]}
    assert found["class_names"] == list(task.class_names)
    assert found["preprocessing"] == task.preprocessing.to_dict()


@needs_rtx
def test_bytes_that_are_not_onnx_are_a_clear_error() -> None:
    with pytest.raises(TensorRTBuildError, match=r"TensorRT-RTX [\d.]+ cannot read the ONNX graph: .*ONNX file"):
        build_plan(importlib.import_module("tensorrt_rtx"), b"not onnx at all", profile=Profile())


@needs_rtx
def test_an_operator_that_tensorrt_does_not_know_is_named_in_the_error() -> None:
    shape = ["batch", 1, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Whatever", ["images"], ["logits"], domain="nobody")],
        "unknown",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(TensorRTBuildError, match="Whatever"):
        build_plan(importlib.import_module("tensorrt_rtx"), model.SerializeToString(), profile=Profile())


def test_a_profile_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="1 <= opt_batch <= max_batch, got opt_batch 4 and max_batch 2"):
        Profile(max_batch=2, opt_batch=4)


@pytest.mark.usefixtures("shadow")
def test_plain_tensorrt_comes_first_where_both_are_installed(shadow) -> None:
    for flavour in engine.FLAVOURS:
        (shadow / f"{flavour}.py").write_text("__version__ = '1'\nclass Builder: ...\nclass OnnxParser: ...\n")
    assert find_tensorrt().__name__ == "tensorrt"


def test_a_stub_counts_as_not_installed(shadow) -> None:
    (shadow / "tensorrt.py").write_text("__version__ = '10.0'  # no Builder: the libraries are elsewhere\n")
    (shadow / "tensorrt_rtx.py").write_text("__version__ = '1'\nclass Builder: ...\nclass OnnxParser: ...\n")
    found: types.ModuleType = find_tensorrt()
    assert found.__name__ == "tensorrt_rtx"


def test_what_is_missing_is_said_of_both(shadow) -> None:
    (shadow / "tensorrt.py").write_text("__version__ = '10.0'\n")
    (shadow / "tensorrt_rtx.py").write_text("raise OSError('libtensorrt_rtx.so: cannot open shared object file')\n")
    with pytest.raises(TensorRTMissingError) as caught:
        find_tensorrt()
    message = str(caught.value)
    assert "tensorrt is a stub without Builder and OnnxParser" in message
    assert "tensorrt_rtx does not import (libtensorrt_rtx.so: cannot open shared object file)" in message
    assert "pip install tensorrt-rtx" in message
