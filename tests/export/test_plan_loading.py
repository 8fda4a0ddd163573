"""A plan that does not fit is refused with all that does not, and with the command that builds one that does."""

import json
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metanas_export import engine, onnx_bytes
from metanas_export.device import Device, find_device
from metanas_export.errors import PlanMismatchError
from metanas_export.plan import Plan, PlanOptions, Profile
from metanas_export.plan_loading import Machine, Wanted, check_plan, load_plan, mismatches, this_machine
from metanas_export.sidecar import Sidecar, read_sidecar, sidecar_path

ADA = Device("NVIDIA L4", "8.9", 24 * 2**30, "13.0")
ORIN = Device("Orin", "8.7", 8 * 2**30, "12.6")
BLACKWELL = Device("Blackwell", "12.0", 32 * 2**30, "13.0")
TURING = Device("Tesla T4", "7.5", 16 * 2**30, "13.0")


@pytest.fixture(scope="module")
def trt() -> types.ModuleType:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def plan(adapted_task, trt) -> Plan:
    return engine.build_plan(trt, onnx_bytes(adapted_task), profile=Profile(1, 1, 8), targets=("sm_86", "sm_89"))


@pytest.fixture
def path(tmp_path: Path, adapted_task, plan) -> Path:
    """A plan with its sidecar, to be spoiled."""
    (tmp_path / "task.plan").write_bytes(plan.data)
    values = engine.sidecar(plan, adapted_task, precision="fp32")
    (tmp_path / "task.plan.json").write_text(json.dumps(values))
    return tmp_path / "task.plan"


@pytest.fixture
def change(path: Path) -> Callable[..., None]:
    """Sets values of the sidecar, or by None removes them."""

    def change(**values: Any) -> None:
        kept = {**json.loads(sidecar_path(path).read_text()), **values}
        sidecar_path(path).write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))

    return change


def machine_with(plan: Plan, device: Device | None = ADA, **values: str) -> Machine:
    return Machine(**{"flavour": plan.flavour, "version": plan.version, "device": device, **values})


def test_a_plan_that_fits_is_read_with_its_sidecar(path, plan, adapted_task) -> None:
    wanted = Wanted("fp32", Profile(1, 4, 8), adapted_task.class_names, plan.onnx_sha256)
    found, data = check_plan(path, machine_with(plan), wanted=wanted)
    assert data == plan.data
    assert (found.flavour, found.profile, found.class_names) == (plan.flavour, plan.profile, adapted_task.class_names)


def test_another_device_is_refused_with_the_command_that_builds_for_it(path, plan) -> None:
    with pytest.raises(PlanMismatchError) as caught:
        check_plan(path, machine_with(plan, BLACKWELL))
    assert str(caught.value) == (
        f"{path} cannot be used here: it is for compute capability 8.6, 8.9, Blackwell has 12.0. Build one that can:\n"
        "  metanas-export task_model.pt --format tensorrt-rtx --precision fp32 --profile 1,1,8 --target sm_120"
    )


def test_for_a_gpu_that_tensorrt_rtx_does_not_build_for_the_command_is_tensorrts(path, plan) -> None:
    with pytest.raises(PlanMismatchError) as caught:
        check_plan(path, machine_with(plan, ORIN))
    assert str(caught.value) == (
        f"{path} cannot be used here: it is for compute capability 8.6, 8.9, Orin has 8.7, for which TensorRT-RTX does "
        "not build: TensorRT does, there. Build one that can:\n"
        "  metanas-export task_model.pt --format tensorrt --precision fp32 --profile 1,1,8"
    )


def test_all_that_does_not_fit_is_said_at_once(path, plan, adapted_task) -> None:
    machine = Machine("tensorrt", "10.13.3", ORIN)
    wanted = Wanted("fp16", Profile(1, 8, 64), refittable=True)
    with pytest.raises(PlanMismatchError) as caught:
        check_plan(path, machine, wanted=wanted)
    message = str(caught.value)
    for part in (
        "built by TensorRT-RTX, here is TensorRT: neither runs the other's plans",
        "compute capability 8.6, 8.9, Orin has 8.7",
        "its precision is fp32, fp16 is wanted",
        "it takes batches of 1 to 8, 1 to 64 are wanted",
        "it is not refittable",
        "\n  metanas-export task_model.pt --format tensorrt --precision fp16 --profile 1,8,64",
    ):
        assert part in message


def test_another_version_is_refused_unless_the_plan_is_compatible_with_later_ones(path, plan) -> None:
    newer = machine_with(plan, version="99.0")
    with pytest.raises(PlanMismatchError, match=rf"built by TensorRT-RTX {plan.version}, here is 99\.0"):
        check_plan(path, newer)
    found = replace(read_sidecar(path), options=PlanOptions(version_compatible=True))
    assert mismatches(found, newer) == []
    assert mismatches(found, machine_with(plan, version="0.9")) != []


def test_a_machine_without_a_gpu_is_said(path, plan) -> None:
    with pytest.raises(PlanMismatchError, match=r"no NVIDIA GPU that its driver shows\. Build one that can:\n"):
        check_plan(path, machine_with(plan, None))


def test_a_hardware_compatible_plan_fits_every_gpu_from_ampere_on(path) -> None:
    found = replace(
        read_sidecar(path),
        flavour="tensorrt",
        compute_capabilities=None,
        options=PlanOptions(hardware_compatible=True),
    )
    assert mismatches(found, Machine("tensorrt", found.version, ORIN)) == []
    assert mismatches(found, Machine("tensorrt", found.version, TURING)) == [
        "it is for GPUs from compute capability 8.0 on, Tesla T4 (sm_75) has 7.5"
    ]


def test_a_plan_that_names_no_device_is_refused(path, plan, change) -> None:
    change(compute_capabilities=[])
    with pytest.raises(PlanMismatchError, match=r"it is for compute capability , NVIDIA L4 has 8\.9"):
        check_plan(path, machine_with(plan))
    unknown = replace(read_sidecar(path), compute_capabilities=None)
    assert "it does not say which GPU it was built for" in mismatches(unknown, machine_with(plan))[0]


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_plan_is_refused(path, plan, kept) -> None:
    path.write_bytes(plan.data[:kept])
    with pytest.raises(PlanMismatchError, match=r"task\.plan has [\d,]+ bytes, .* says [\d,]+: the plan is truncated"):
        check_plan(path, machine_with(plan))


def test_a_sidecar_of_another_plan_is_refused(path, plan) -> None:
    path.write_bytes(plan.data[:-1] + bytes([plan.data[-1] ^ 1]))
    with pytest.raises(PlanMismatchError, match=r"is not the plan that task\.plan\.json describes .*; copy both again"):
        check_plan(path, machine_with(plan))
    path.write_bytes(plan.data + b"more")
    with pytest.raises(
        PlanMismatchError, match=r"the plan is another one; copy both again, or build it:\n  metanas-ex"
    ):
        check_plan(path, machine_with(plan))


def test_a_missing_sidecar_is_named(path, plan) -> None:
    sidecar_path(path).unlink()
    with pytest.raises(PlanMismatchError, match=r"task\.plan\.json is missing, so nothing says what task\.plan is for"):
        check_plan(path, machine_with(plan))


def test_a_damaged_sidecar_is_refused(path, plan, change) -> None:
    whole = sidecar_path(path).read_text()
    sidecar_path(path).write_text(whole[:-20])
    with pytest.raises(PlanMismatchError, match=r"task\.plan\.json is damaged .*; copy it again"):
        read_sidecar(path)
    sidecar_path(path).write_text("[]")
    with pytest.raises(PlanMismatchError, match=r"is no sidecar of a plan: it has no format_version"):
        read_sidecar(path)
    sidecar_path(path).write_text(whole)
    change(profile={"min_batch": 3, "opt_batch": 1, "max_batch": 2})
    with pytest.raises(PlanMismatchError, match=r"is incomplete or contradicts itself: .*min_batch 3"):
        read_sidecar(path)
    change(profile=None)
    with pytest.raises(PlanMismatchError, match=r"is incomplete or contradicts itself: KeyError\('profile'\)"):
        read_sidecar(path)


def test_a_sidecar_of_a_newer_format_is_refused(path, plan, change) -> None:
    change(format_version=2)
    with pytest.raises(PlanMismatchError, match=r"has format version 2, this package reads up to 1; upgrade metanas-"):
        check_plan(path, machine_with(plan))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("class 1", "class 0", "class 2"), "in another order: class 0 is 'class 0', not 'class 1'"),
        (("class 0", "class 1", "cup"), "its class 2 is 'class 2', 'cup' is wanted"),
        (("class 0", "class 1"), "it has 3 classes, 2 are wanted"),
    ],
)
def test_labels_that_differ_are_named(path, plan, wanted, message) -> None:
    with pytest.raises(PlanMismatchError, match=message):
        check_plan(path, machine_with(plan), wanted=Wanted(class_names=wanted))


def test_a_plan_of_another_onnx_file_is_refused(path, plan) -> None:
    with pytest.raises(
        PlanMismatchError, match=rf"from another ONNX file \({plan.onnx_sha256[:12]}, not 000000000000\)"
    ):
        check_plan(path, machine_with(plan), wanted=Wanted(onnx_sha256="0" * 64))


def test_the_sidecar_survives_its_file(path, plan, adapted_task) -> None:
    written = engine.sidecar(plan, adapted_task, precision="fp32")
    assert read_sidecar(path) == Sidecar.from_dict(written)


@pytest.mark.skipif(find_device() is not None, reason="this machine has a GPU")
def test_loading_without_a_gpu_says_so_before_tensorrt_is_asked(path, trt) -> None:
    assert this_machine(trt) == Machine("tensorrt_rtx", trt.__version__, None)
    with pytest.raises(PlanMismatchError, match="this machine has no NVIDIA GPU"):
        load_plan(trt, path)
