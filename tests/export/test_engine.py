"""Real plans from the real TensorRT-RTX builder, which needs no GPU."""

import importlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from metanas_export import engine, onnx_bytes
from metanas_export.device import find_device
from metanas_export.engine import BuildLimits, BuildProgress, PlanOptions, Profile, build_plan, find_tensorrt
from metanas_export.errors import BuildLimitError, TensorRTBuildError, TensorRTMissingError, UnsupportedTargetError
from metanas_export.monitoring import resident_bytes
from metanas_export.targets import for_own_gpu


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


@pytest.fixture(scope="module")
def trt() -> types.ModuleType:
    """TensorRT-RTX, which has a wheel for Linux and Windows on x86-64 only."""
    return pytest.importorskip("tensorrt_rtx")


def graph_of(kind: str, *, shape: list[int | str], domain: str = "") -> bytes:
    graph = helper.make_graph(
        [helper.make_node(kind, ["images"], ["logits"], domain=domain)],
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.slow), "int8"])
def test_tensorrt_rtx_builds_a_plan_whose_sidecar_describes_it(build_task, trt, precision) -> None:
    task = build_task(channels=8)
    model = onnx_bytes(task, precision=precision)
    plan = build_plan(trt, model, profile=Profile(1, 2, 8), targets=("sm_80", "sm_120"))
    assert len(plan.data) > 1000
    found = json.loads(json.dumps(engine.sidecar(plan, task, precision=precision)))
    assert found["format_version"] == 1
    assert found["plan_sha256"] == engine.sha256(plan.data)
    assert found["plan_bytes"] == len(plan.data)
    assert found["onnx_sha256"] == engine.sha256(model)
    assert found["tensorrt"] == {"flavour": "tensorrt_rtx", "version": trt.__version__}
    assert found["compute_capabilities"] == ["8.0", "12.0"]
    assert found["layers"] == plan.layers > 20
    assert found["precision"] == precision
    assert found["profile"] == {"min_batch": 1, "opt_batch": 2, "max_batch": 8}
    assert found["input"] == {"name": "images", "type": "float32", "shape": ["batch", 1, 14, 14]}
    assert found["output"] == {"name": "logits", "type": "float32", "shape": ["batch", 5]}
    assert found["class_names"] == list(task.class_names)
    assert found["preprocessing"] == task.preprocessing.to_dict()
    assert found["temperature"] == 1.0
    assert found["genotype"] == task.genotype.to_dict()


def test_without_targets_a_plan_is_for_all_that_tensorrt_rtx_builds_float32_for(build_task, trt) -> None:
    plan = build_plan(trt, onnx_bytes(build_task()), profile=Profile())
    assert plan.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert plan.timing_cache == "none: TensorRT-RTX times no kernels"


def test_progress_counts_the_steps_of_each_phase(build_task, trt) -> None:
    seen: list[BuildProgress] = []
    plan = build_plan(trt, onnx_bytes(build_task()), profile=Profile(), on_progress=seen.append)
    assert {one.layers for one in seen} == {plan.layers}
    assert [one.seconds for one in seen] == sorted(one.seconds for one in seen)
    cloning = [one.done for one in seen if one.phase == "Cloning network graph"]
    assert cloning == list(range(len(cloning)))
    assert len(cloning) > plan.layers
    assert f"({plan.layers} layers, " in str(seen[-1])


def test_what_hears_of_the_progress_can_stop_the_build(build_task, trt) -> None:
    def stop(progress: BuildProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), on_progress=stop)


def test_a_build_stops_at_its_limit_of_time(build_task, trt) -> None:
    with pytest.raises(BuildLimitError, match=r"stopped after [\d.]+ s in .*: its limit is 0\.001 s; give it more"):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), limits=BuildLimits(seconds=0.001))


def test_a_build_stops_at_its_limit_of_memory(build_task, trt) -> None:
    assert (resident_bytes() or 0) > 2**20
    with pytest.raises(BuildLimitError, match=r"the process takes [\d.]+ MiB, its limit is 1\.0 MiB; give it more"):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), limits=BuildLimits(memory_bytes=2**20))


def test_a_workspace_that_is_too_small_is_said_with_its_size(build_task, trt) -> None:
    with pytest.raises(BuildLimitError, match=r"fits the workspace of 0\.0 MiB .*; give it more, or build with a sm"):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), limits=BuildLimits(workspace_bytes=1024))


@pytest.mark.parametrize("limit", ["seconds", "memory_bytes", "workspace_bytes"])
def test_a_limit_that_allows_nothing_is_refused(limit) -> None:
    with pytest.raises(ValueError, match=f"{limit} must be above 0, or None for no limit, got 0"):
        BuildLimits(**{limit: 0})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sm_87", r"does not build for sm_87, only for sm_75, sm_80, .*Jetson.* build on its machine: --format tensor"),
        ("9.0", r"does not build for sm_90, only for"),
        ("rtx4090", r"'rtx4090' names no GPU; write it as sm_86"),
    ],
)
def test_an_unsupported_target_is_refused_with_those_there_are(build_task, trt, target, message) -> None:
    with pytest.raises(UnsupportedTargetError, match=message):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), targets=("sm_86", target))


def test_tensorrt_builds_for_the_gpu_of_its_machine_only() -> None:
    for_own_gpu(None, own=None)
    for_own_gpu(("sm_89", "8.9", "SM89"), own="8.9")
    with pytest.raises(UnsupportedTargetError, match=r"here sm_89, not for sm_87; build on a machine with that GPU"):
        for_own_gpu(("sm_89", "sm_87"), own="8.9")
    with pytest.raises(UnsupportedTargetError, match=r"there is none here, not for sm_120; .*: --format tensorrt-rtx"):
        for_own_gpu(("sm_120",), own=None)


def test_a_target_that_lacks_kernels_is_an_error_that_quotes_tensorrt(build_task, trt) -> None:
    # TensorRT-RTX 1.7 names Turing but has no float32 matrix product for it.
    with pytest.raises(TensorRTBuildError, match=r"TensorRT-RTX [\d.]+ cannot build the network: .*ONNX file"):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), targets=("sm_75",))


@pytest.mark.parametrize("option", ["version_compatible", "hardware_compatible"])
def test_what_tensorrt_rtx_has_no_need_of_is_refused(build_task, trt, option) -> None:
    name = option.replace("_", "-")
    with pytest.raises(TensorRTBuildError, match=rf"a {name} plan is asked for, and TensorRT-RTX .*; leave it out"):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), options=PlanOptions(**{option: True}))


@pytest.mark.skipif(find_device() is not None, reason="this machine has a GPU")
def test_a_refittable_plan_without_a_gpu_is_refused(build_task, trt) -> None:
    with pytest.raises(TensorRTBuildError, match="cannot build a refittable plan without a GPU"):
        build_plan(trt, onnx_bytes(build_task()), profile=Profile(), options=PlanOptions(refittable=True))


@pytest.mark.skipif(find_device() is not None, reason="this machine has a GPU")
def test_a_build_of_tensorrt_keeps_its_timings(build_task, trt, tmp_path) -> None:
    # The calls of TensorRT, which needs a GPU, on the builder of TensorRT-RTX, which still has them all.
    renamed = types.ModuleType("tensorrt")
    renamed.__dict__.update({name: value for name, value in vars(trt).items() if name != "__name__"})
    path = tmp_path / "timing" / "cache.bin"
    options = PlanOptions(hardware_compatible=True)
    plan = build_plan(renamed, onnx_bytes(build_task()), profile=Profile(1, 1, 2), options=options, timing_cache=path)
    assert plan.flavour == "tensorrt"
    assert plan.timing_cache == f"{path.stat().st_size:,} bytes in cache.bin"
    assert plan.compute_capabilities is None
    with pytest.raises(UnsupportedTargetError, match="there is none here, not for sm_86"):
        build_plan(renamed, onnx_bytes(build_task()), profile=Profile(), targets=("sm_86",), timing_cache=path)


def test_bytes_that_are_not_onnx_are_a_clear_error(trt) -> None:
    with pytest.raises(TensorRTBuildError, match=r"TensorRT-RTX [\d.]+ cannot read the ONNX graph: .*ONNX file"):
        build_plan(trt, b"not onnx at all", profile=Profile())


def test_an_operator_that_tensorrt_does_not_know_is_named_in_the_error(trt) -> None:
    model = graph_of("Whatever", shape=["batch", 1, 4, 4], domain="nobody")
    with pytest.raises(TensorRTBuildError, match=r"cannot read the ONNX graph: .*Whatever"):
        build_plan(trt, model, profile=Profile())


def test_a_graph_whose_batch_is_fixed_fits_no_profile(trt) -> None:
    with pytest.raises(TensorRTBuildError, match=r"its input images is \(1, 1, 4, 4\), so no profile fits it; export"):
        build_plan(trt, graph_of("Relu", shape=[1, 1, 4, 4]), profile=Profile())


def test_a_profile_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got min_batch 1, opt_batch 4 and max_batch 2"):
        Profile(1, 4, 2)


def test_a_plan_cannot_be_version_compatible_and_refittable() -> None:
    with pytest.raises(ValueError, match="lean runtime, which cannot refit; take one of the two"):
        PlanOptions(refittable=True, version_compatible=True)


def test_plain_tensorrt_comes_first_where_both_are_installed(shadow) -> None:
    for flavour in engine.FLAVOURS:
        (shadow / f"{flavour}.py").write_text("__version__ = '1'\nclass Builder: ...\nclass OnnxParser: ...\n")
    assert find_tensorrt().__name__ == "tensorrt"
    assert find_tensorrt("tensorrt_rtx").__name__ == "tensorrt_rtx"


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
