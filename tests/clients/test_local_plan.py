"""A plan is refused in words wherever it does not fit, before TensorRT sees it; on a GPU it answers as ONNX does."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.tasks import SupportSet
from metanas_client import InvalidRequestError, ModelFileError, RuntimeMissingError, local_tensorrt
from metanas_client.cli import main
from metanas_client.local import TaskRunner
from metanas_export import engine, onnx_bytes, targets

MAX_BATCH = 4


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def learned(small_meta: MetaModel) -> TaskModel:
    images = torch.randint(0, 256, (9, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return adapt(small_meta, SupportSet(images, torch.arange(9) % 3, ("cat", "dog", "hen")))


@pytest.fixture(scope="module")
def built(learned: TaskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan of the TensorRT that is here, its sidecar, and its ONNX file."""
    folder = tmp_path_factory.mktemp("built")
    onnx_model = onnx_bytes(learned)
    plan = engine.build_plan(engine.find_tensorrt(), onnx_model, profile=engine.Profile(max_batch=MAX_BATCH))
    (folder / "task.onnx").write_bytes(onnx_model)
    (folder / "task.plan").write_bytes(plan.data)
    (folder / "task.plan.json").write_text(json.dumps(engine.sidecar(plan, learned, precision="fp32")))
    return folder


@pytest.fixture
def plan(built: Path, tmp_path: Path) -> Path:
    """A plan and its sidecar, to be spoiled."""
    for name in ("task.plan", "task.plan.json"):
        shutil.copy(built / name, tmp_path)
    return tmp_path / "task.plan"


@pytest.fixture
def change_sidecar(plan: Path) -> Callable[..., None]:
    """Sets values of the sidecar, or by None removes them."""

    def change(**values: Any) -> None:
        path = plan.with_name("task.plan.json")
        kept = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))

    return change


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_without_a_gpu_a_plan_is_refused_with_the_way_out(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeMissingError, match=r"needs an NVIDIA GPU with its driver, .*; run the \.onnx file"):
        TaskRunner(plan)
    assert main(["run", str(plan), "picture.png"]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not has_driver(), reason="running a plan needs an NVIDIA GPU")
def test_a_plan_answers_as_the_onnx_file_does(built: Path) -> None:
    queries = list(np.random.default_rng(0).integers(0, 256, (2 * MAX_BATCH + 1, 30, 30, 3), dtype=np.uint8))
    expected = TaskRunner(built / "task.onnx").classify(queries)
    with TaskRunner(built / "task.plan") as runner:
        assert runner.batch_size == MAX_BATCH
        for one, other in zip(runner.classify(queries), expected, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-2)
        with pytest.raises(InvalidRequestError, match=r"batch_size 5, but .* was built for at most 4"):
            TaskRunner(built / "task.plan", batch_size=MAX_BATCH + 1)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_plan_is_refused(plan: Path, kept: int) -> None:
    whole = plan.read_bytes()
    plan.write_bytes(whole[:kept])
    with pytest.raises(ModelFileError, match=rf"has \d+ bytes, its sidecar says {len(whole)}: it is truncated"):
        TaskRunner(plan)


def test_a_sidecar_that_does_not_belong_is_refused(plan: Path) -> None:
    other = bytearray(plan.read_bytes())
    other[-1] ^= 1
    plan.write_bytes(bytes(other))
    with pytest.raises(ModelFileError, match=r"not the plan that its sidecar describes .*; copy both again"):
        TaskRunner(plan)


def test_a_plan_without_a_sidecar_is_refused(plan: Path) -> None:
    plan.with_name("task.plan.json").unlink()
    with pytest.raises(ModelFileError, match=r"task\.plan\.json is missing: .*; copy it beside task\.plan"):
        TaskRunner(plan)


def test_a_damaged_sidecar_is_refused(plan: Path) -> None:
    sidecar = plan.with_name("task.plan.json")
    sidecar.write_text(sidecar.read_text()[:-5])
    with pytest.raises(ModelFileError, match=r"task\.plan\.json is damaged .*; copy it again"):
        TaskRunner(plan)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_names": None}, "does not say its class_names"),
        (
            {"class_names": ["cat", "dog"]},
            r"contradicts itself: .*gives \[3\] scores, but .* and \[2\]; build it again",
        ),
        ({"format_version": 1_000}, r"format version 1000, this package reads up to \d+"),
        ({"profile": None}, "lacks 'profile'; build it again: metanas-export"),
        ({"tensorrt": {"flavour": "tensorrt_rtx", "version": "0.9"}}, r"built by tensorrt-rtx 0\.9, here is .*; build"),
        ({"tensorrt": {"flavour": "os", "version": "1"}}, "is for 'os', this package knows tensorrt, tensorrt_rtx"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_it_is_run(
    plan: Path, change_sidecar: Callable[..., None], values: dict[str, Any], message: str
) -> None:
    change_sidecar(**values)
    with pytest.raises(ModelFileError, match=message):
        TaskRunner(plan)


def test_a_tensorrt_that_is_missing_is_named_as_pip_names_it(
    plan: Path, change_sidecar: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    change_sidecar(tensorrt={"flavour": "tensorrt", "version": "11.0"})
    with pytest.raises(RuntimeMissingError, match=r"built by tensorrt, which does not import here .*pip install"):
        TaskRunner(plan)


def test_a_plan_that_brings_code_is_refused_unless_that_is_allowed(
    plan: Path, change_sidecar: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    change_sidecar(version_compatible=True, tensorrt={"flavour": "tensorrt_rtx", "version": "0.9"})
    with pytest.raises(InvalidRequestError, match=r"brings code for this machine's processor.*allow_code=True"):
        TaskRunner(plan)
    assert main(["run", str(plan), "a.png"]) == 2
    assert "--allow-code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "command"),
    [("12.1", "--format tensorrt-rtx --target sm_121"), ("8.7", "--format tensorrt, here and with TensorRT")],
)
def test_a_plan_for_another_gpu_is_refused_with_a_command_that_can_build_for_this_one(
    plan: Path, change_sidecar: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capability: str, command: str
) -> None:
    gpu = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(local_tensorrt, "Device", lambda: gpu)  # no GPU is at hand, least of all two
    change_sidecar(compute_capabilities=["8.6"])
    with pytest.raises(ModelFileError, match=rf"of compute capability 8\.6, this one has {capability}; .*{command}"):
        TaskRunner(plan)


def test_the_targets_of_tensorrt_rtx_are_those_of_the_exporter() -> None:
    assert local_tensorrt.RTX_TARGETS == targets.RTX_TARGETS
