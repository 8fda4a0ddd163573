"""One genotype, many tasks: what a GPU must show, and what holds without one."""

import ctypes
import types

import numpy as np
import pytest
import torch

from metanas.preprocessing import scale
from metanas_export import engine, onnx_bytes
from metanas_export.device import find_device
from metanas_export.errors import RefitError, RuntimeMissingError
from metanas_export.obtaining import obtain
from metanas_export.plan import PlanOptions, Profile
from metanas_export.plan_cache import PlanCache
from metanas_export.plan_loading import open_plan
from metanas_export.plan_running import PlanRunner, require_cuda
from metanas_export.refitting import refit, verify
from metanas_export.running import session

needs_gpu = pytest.mark.skipif(
    find_device() is None or not torch.cuda.is_available(),
    reason="running and refitting a plan needs an NVIDIA GPU and a CUDA build of torch",
)


@pytest.fixture(scope="module")
def trt() -> types.ModuleType:
    try:
        return engine.find_tensorrt()
    except engine.TensorRTMissingError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_plan_answers_as_the_onnx_file_does(build_task, trt, precision) -> None:
    task = build_task(channels=8)
    model = onnx_bytes(task, precision=precision)
    plan = engine.build_plan(trt, model, profile=Profile(1, 2, 4))
    runner = PlanRunner(trt, open_plan(trt, plan.data))
    images = scale(task.support.images, task.preprocessing).numpy()
    assert runner(images).argmax(axis=1).tolist() == session(model)(images).argmax(axis=1).tolist()
    assert np.abs(runner(images) - np.concatenate([runner(one[None]) for one in images])).max() < 1e-2


@pytest.mark.gpu
@needs_gpu
def test_a_second_task_of_one_genotype_is_refitted_and_answers_as_its_own_onnx_file(build_task, trt, tmp_path) -> None:
    cache = PlanCache(tmp_path)
    ways = []
    for seed in (1, 2, 1):
        task = build_task(channels=8, seed=seed)
        model = onnx_bytes(task)
        got = obtain(trt, task, onnx_model=model, precision="fp32", profile=Profile(1, 1, 8), cache=cache)
        ways.append(got.way)
        if got.plan.options.refittable:
            assert verify(trt, got.plan, task=task, onnx_model=model, precision="fp32").same_class == 10
    assert ways[0] == "built"
    assert ways[1] == "refitted", got.tried
    assert ways[2] == "found"


@pytest.mark.gpu
@needs_gpu
def test_a_refitted_plan_is_not_used_where_it_answers_for_another_task(build_task, trt) -> None:
    first, second = build_task(channels=8, seed=1), build_task(channels=8, seed=2)
    plan = engine.build_plan(trt, onnx_bytes(first), profile=Profile(1, 1, 8), options=PlanOptions(refittable=True))
    with pytest.raises(RefitError, match=r"a score differs by .*; the plan is not used"):
        verify(trt, plan, task=second, onnx_model=onnx_bytes(second), precision="fp32")


@pytest.mark.gpu
@needs_gpu
def test_a_plan_that_was_not_built_refittable_is_not_refitted(build_task, trt) -> None:
    first, second = build_task(seed=1), build_task(seed=2)
    plan = engine.build_plan(trt, onnx_bytes(first), profile=Profile(1, 1, 8))
    with pytest.raises(RefitError, match="the plan was not built refittable"):
        refit(trt, plan, onnx_model=onnx_bytes(second))


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_is_described_as_torch_describes_it() -> None:
    found = find_device()
    major, minor = torch.cuda.get_device_capability()
    assert found is not None
    assert (found.name, found.compute_capability) == (torch.cuda.get_device_name(), f"{major}.{minor}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_running_and_refitting_say_what_is_missing(build_task) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(RuntimeMissingError, match=r"takes an NVIDIA GPU and a CUDA build of torch, this is torch 2"):
        require_cuda()
    first, second = onnx_bytes(build_task(seed=1)), onnx_bytes(build_task(seed=2))
    plan = engine.build_plan(rtx, first, profile=Profile(1, 1, 8), targets=("sm_86",))
    with pytest.raises(RefitError, match=r"cannot be refitted: TensorRT-RTX .* refuses the plan: .*CUDA"):
        refit(rtx, plan, onnx_model=second)


def test_without_a_driver_there_is_no_device() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert find_device() is None
    else:
        pytest.skip("this machine has a driver")
