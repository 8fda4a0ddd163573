"""The weights of a second task in the plan of a first one: no build, and checked before it is used.

    refit    TensorRT, plan, ONNX of the second task  ->  plan of the second task
    verify   TensorRT, plan, ONNX, images             ->  nothing, or an error that says what differs

Networks of one genotype differ in their numbers only. TensorRT puts those of an ONNX file into an
engine by the names that the ONNX parser gave them. It is known to get this wrong: releases have
dropped the bias of a matrix product in refittable engines, refitted or not. So a refittable plan
counts only once it has answered as ONNX Runtime does, on the task's own images.
"""

import time
from dataclasses import replace
from types import ModuleType
from typing import Any

import onnx

from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export import casting, check
from metanas_export.builder import Precision
from metanas_export.errors import PlanMismatchError, RefitError
from metanas_export.flavour import describe, new_log
from metanas_export.plan import Plan, sha256
from metanas_export.plan_loading import open_plan
from metanas_export.plan_running import PlanRunner
from metanas_export.running import session

LARGEST_DIFFERENCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.1}
"""Of a score, as a fraction of the largest score (at least of 1). Tighter than what an export may round, as the
graph is the same: a bias that was dropped need not change an answer on the support images."""


def refit(trt: ModuleType, plan: Plan, *, onnx_model: bytes) -> Plan:
    """Put the weights of an ONNX file into a plan of the same structure; needs the GPU that the plan is for.

    Raises:
        RefitError: the plan is not refittable, or TensorRT did not take the weights.
    """
    started = time.perf_counter()
    log = new_log(trt)
    try:
        opened = open_plan(trt, plan.data)
    except PlanMismatchError as error:
        raise RefitError(f"the plan cannot be refitted: {error} build the task in place of it") from error
    engine = opened.engine
    if not engine.refittable:
        raise RefitError("the plan was not built refittable; build the task with PlanOptions(refittable=True)")
    refitter = trt.Refitter(engine, log)
    # It owns the numbers until they are in the engine.
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(onnx_model):
        raise _refused(trt, "does not take the weights of the ONNX file", log=log)
    missing = refitter.get_missing_weights()
    if missing:
        raise _refused(trt, f"misses {len(missing)} weights, {missing[0]} among them", log=log)
    if not refitter.refit_cuda_engine():
        raise _refused(trt, "did not refit the plan", log=log)
    return replace(
        plan, data=_serialise(trt, engine), onnx_sha256=sha256(onnx_model), seconds=time.perf_counter() - started
    )


def _runnable(onnx_model: bytes, *, precision: Precision) -> bytes:
    """The file as ONNX Runtime runs it on a CPU, where it has no bfloat16: the same roundings in float32."""
    if precision != "bf16":
        return onnx_model
    return casting.emulate(onnx.load_model_from_string(onnx_model)).SerializeToString()


def _serialise(trt: ModuleType, engine: Any) -> bytes:
    config = engine.create_serialization_config()
    # Where a version knows it: else the plan could not be refitted a second time.
    again = trt.SerializationFlag.__members__.get("INCLUDE_REFIT")
    if again is not None:
        config.set_flag(again)
    return bytes(engine.serialize_with_config(config))


def _refused(trt: ModuleType, what: str, *, log: Any) -> RefitError:
    seen = "; ".join(log.errors) or "no reason was logged"
    return RefitError(f"{describe(trt)} {what}: {seen}; build the task in place of refitting")


def verify(trt: ModuleType, plan: Plan, *, task: TaskModel, onnx_model: bytes, precision: Precision) -> check.Agreement:
    """Let a plan and ONNX Runtime answer the task's support images.

    Raises:
        RefitError: they do not agree.
        PlanMismatchError: TensorRT refuses the plan on this GPU.
        RuntimeMissingError: there is nothing to run one of them with.
    """
    images = scale(task.support.images, task.preprocessing).numpy()
    # Node for node in bfloat16: the runtime would drop the roundings.
    run = session(_runnable(onnx_model, precision=precision), as_written=precision == "bf16")
    expected = run(images)
    scores = PlanRunner(trt, open_plan(trt, plan.data))(images)
    found = check.agreement(expected, scores, what=f"ONNX Runtime / {describe(trt)} {precision}")
    limit = LARGEST_DIFFERENCE[precision] * max(1.0, found.largest_score)
    if not found.largest_difference <= limit:
        raise RefitError(
            f"{found.what}: a score differs by {found.largest_difference:.2g}, at most {limit:.2g} may, and "
            f"{found.same_class} of {found.images} support images get the same class; the plan is not used: "
            "build one that is not refittable"
        )
    return found
