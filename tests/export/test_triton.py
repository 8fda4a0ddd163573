"""A model repository, read back by Triton's own ``model_config.proto``."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format

from metanas_export import onnx_bytes
from metanas_export.errors import ModelRepositoryError
from metanas_export.plan import Plan, PlanOptions, Profile, TensorInfo, sha256
from metanas_export.triton import write_repository

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def plan_of(onnx_model: bytes, *, profile: Profile | None = None, flavour: str = "tensorrt") -> Plan:
    """What a build on a machine with a GPU would give; Triton reads it, this package only copies it."""
    return Plan(
        data=b"bytes of a plan",
        flavour=flavour,
        version="10.13.3",
        compute_capabilities=("8.9",),
        profile=profile or Profile(1, 4, 16),
        onnx_sha256=sha256(onnx_model),
        input=TensorInfo("images", "float32", (-1, 1, 14, 14)),
        output=TensorInfo("logits", "float32", (-1, 5)),
        options=PlanOptions(),
        built_on="NVIDIA L4",
        layers=100,
        seconds=1.0,
        timing_cache="none",
    )


def config_of(folder: Path):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config.ModelConfig())


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_repository_holds_onnx_and_plan_as_two_models(build_task, tmp_path) -> None:
    task = build_task()
    model = onnx_bytes(task)
    written = write_repository(tmp_path, task, onnx_model=model, plan=plan_of(model), name="cups")
    assert tree(tmp_path) == [
        "cups_onnx/1/model.onnx", "cups_onnx/config.pbtxt", "cups_onnx/labels.txt",
        "cups_plan/1/model.plan", "cups_plan/config.pbtxt", "cups_plan/labels.txt",
    ]  # fmt: skip
    assert sorted(str(path.relative_to(tmp_path)) for path in written) == tree(tmp_path)
    assert (tmp_path / "cups_onnx/1/model.onnx").read_bytes() == model
    assert (tmp_path / "cups_plan/1/model.plan").read_bytes() == b"bytes of a plan"
    assert (tmp_path / "cups_plan/labels.txt").read_text().splitlines() == list(task.class_names)


def test_triton_reads_the_configuration_as_it_is_meant(build_task, tmp_path) -> None:
    task = build_task()
    model = onnx_bytes(task)
    write_repository(tmp_path, task, onnx_model=model, plan=plan_of(model), name="cups")
    config = config_of(tmp_path / "cups_plan")
    assert (config.name, config.backend, config.default_model_filename) == ("cups_plan", "tensorrt", "model.plan")
    assert config.max_batch_size == 16
    (image,), (scores,) = config.input, config.output
    assert (image.name, image.data_type, list(image.dims)) == ("images", model_config.TYPE_FP32, [1, 14, 14])
    assert (scores.name, list(scores.dims), scores.label_filename) == ("logits", [5], "labels.txt")
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, model_config.ModelInstanceGroup.KIND_GPU)
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.version_policy.latest.num_versions == 1
    assert [warm.batch_size for warm in config.model_warmup] == [1, 16]
    for warm in config.model_warmup:
        given = warm.inputs["images"]
        assert (given.data_type, list(given.dims), given.random_data) == (model_config.TYPE_FP32, [1, 14, 14], True)
    said = json.loads(config.parameters["metanas.preprocessing"].string_value)
    assert said == task.preprocessing.to_dict()
    onnx_config = config_of(tmp_path / "cups_onnx")
    assert (onnx_config.backend, onnx_config.max_batch_size) == ("onnxruntime", 16)
    assert onnx_config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_AUTO


def test_the_configuration_names_what_the_onnx_file_has(build_task, tmp_path) -> None:
    task = build_task(in_channels=3, n_way=7)
    model = onnx_bytes(task)
    write_repository(tmp_path, task, onnx_model=model, plan=None, name="colour", profile=Profile(1, 2, 6))
    assert tree(tmp_path) == ["colour_onnx/1/model.onnx", "colour_onnx/config.pbtxt", "colour_onnx/labels.txt"]
    config, graph = config_of(tmp_path / "colour_onnx"), onnx.load(tmp_path / "colour_onnx/1/model.onnx").graph
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (6, [2, 6])
    for ours, real in ((config.input[0], graph.input[0]), (config.output[0], graph.output[0])):
        assert ours.name == real.name
        assert list(ours.dims) == [size.dim_value for size in real.type.tensor_type.shape.dim[1:]]


def test_a_batch_of_one_at_most_needs_one_warm_up(build_task, tmp_path) -> None:
    task = build_task()
    model = onnx_bytes(task)
    write_repository(tmp_path, task, onnx_model=model, plan=plan_of(model, profile=Profile(1, 1, 1)), name="cups")
    config = config_of(tmp_path / "cups_plan")
    assert [warm.batch_size for warm in config.model_warmup] == [1]
    assert list(config.dynamic_batching.preferred_batch_size) == []


def test_a_changed_model_gets_the_next_version_and_an_unchanged_one_none(build_task, tmp_path) -> None:
    first, second = build_task(seed=1), build_task(seed=2)
    for task in (first, first, second):
        write_repository(tmp_path, task, onnx_model=onnx_bytes(task), plan=None, name="cups")
    assert tree(tmp_path) == [
        "cups_onnx/1/model.onnx", "cups_onnx/2/model.onnx", "cups_onnx/config.pbtxt", "cups_onnx/labels.txt",
    ]  # fmt: skip
    assert (tmp_path / "cups_onnx/2/model.onnx").read_bytes() == onnx_bytes(second)


def test_labels_of_any_script_survive_and_lines_in_them_are_refused(build_task, tmp_path) -> None:
    task = build_task(n_way=2)
    model = onnx_bytes(task)
    named = replace(task, class_names=('a "quoted" \\ cup', "чашка 茶碗"))
    write_repository(tmp_path, named, onnx_model=model, plan=None, name="cups")
    assert (tmp_path / "cups_onnx/labels.txt").read_text().splitlines() == list(named.class_names)
    for label in ("two\nlines", "two\u2028lines", ""):
        with pytest.raises(ModelRepositoryError, match=r"does not fit one line of labels\.txt; rename the class"):
            write_repository(tmp_path, replace(task, class_names=("cup", label)), onnx_model=model, plan=None, name="c")


def test_a_plan_that_triton_cannot_run_is_refused(build_task, tmp_path) -> None:
    task = build_task()
    model = onnx_bytes(task)
    with pytest.raises(ModelRepositoryError, match=r"this one is of TensorRT-RTX; write the repository with the ONNX"):
        write_repository(tmp_path, task, onnx_model=model, plan=plan_of(model, flavour="tensorrt_rtx"), name="cups")
    with pytest.raises(ModelRepositoryError, match="built from another ONNX file than is given"):
        write_repository(tmp_path, task, onnx_model=model, plan=plan_of(b"another"), name="cups")
    plan = plan_of(model, profile=Profile(2, 4, 8))
    with pytest.raises(ModelRepositoryError, match=r"takes batches from 2 on, .* build it with --profile 1,4,8"):
        write_repository(tmp_path, task, onnx_model=model, plan=plan, name="cups")
    assert tree(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../cups", "a/b", ".hidden", "a cup"])
def test_a_name_that_is_no_folder_is_refused(build_task, tmp_path, name) -> None:
    task = build_task()
    with pytest.raises(ModelRepositoryError, match="cannot name a model; use letters, digits"):
        write_repository(tmp_path, task, onnx_model=onnx_bytes(task), plan=None, name=name)
