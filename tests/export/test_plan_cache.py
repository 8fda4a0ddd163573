"""A plan is found for exactly what it was built for, and for nothing that only looks like it."""

import json
import multiprocessing
import types
from dataclasses import replace
from pathlib import Path

import pytest

from metanas_export import onnx_bytes
from metanas_export.device import Device
from metanas_export.obtaining import obtain
from metanas_export.plan import Plan, PlanOptions, Profile, TensorInfo, sha256
from metanas_export.plan_cache import Key, PlanCache, make_key
from metanas_export.plan_loading import Machine

ADA = Device("NVIDIA L4", "8.9", 24 * 2**30, "13.0")
MACHINE = Machine("tensorrt", "10.13.3", ADA)
REFITTABLE = PlanOptions(refittable=True)


def key_of(onnx_model: bytes, machine: Machine = MACHINE, *, profile: Profile | None = None) -> Key:
    return make_key(
        onnx_model, machine, precision="fp32", profile=profile or Profile(), targets=None, options=REFITTABLE
    )


def plan_of(onnx_model: bytes, *, data: bytes = b"a plan", profile: Profile | None = None) -> Plan:
    return Plan(
        data=data,
        flavour="tensorrt",
        version="10.13.3",
        compute_capabilities=("8.9",),
        profile=profile or Profile(),
        onnx_sha256=sha256(onnx_model),
        input=TensorInfo("images", "float32", (-1, 1, 14, 14)),
        output=TensorInfo("logits", "float32", (-1, 5)),
        options=REFITTABLE,
        built_on="NVIDIA L4",
        layers=100,
        seconds=1.5,
        timing_cache="none",
    )


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def test_what_was_stored_is_found_again(build_task, cache) -> None:
    model = onnx_bytes(build_task())
    key = key_of(model)
    assert cache.look_up(key) is None
    cache.store(key, plan_of(model))
    assert cache.look_up(key) == plan_of(model)
    assert PlanCache(cache.folder).look_up(key_of(model)) == plan_of(model)


def test_two_tasks_of_one_genotype_never_share_a_plan(build_task, cache) -> None:
    first, second = onnx_bytes(build_task(seed=1)), onnx_bytes(build_task(seed=2))
    one, other = key_of(first), key_of(second)
    assert (one.genotype, one.structure) == (other.genotype, other.structure)
    assert one.weights_sha256 != other.weights_sha256
    cache.store(one, plan_of(first, data=b"the plan of the first"))
    assert cache.look_up(other) is None
    cache.store(other, plan_of(second, data=b"the plan of the second"))
    assert cache.look_up(one).data == b"the plan of the first"
    assert cache.look_up(other).data == b"the plan of the second"


def test_only_what_differs_in_its_weights_alone_is_offered_for_refitting(build_task, build_cell, cache) -> None:
    model = onnx_bytes(build_task(seed=1))
    key = key_of(model)
    cell = build_cell([(0, "conv_3x3")], [(1, "conv_3x3")], [(2, "conv_3x3")])
    for number, (task, machine, profile) in enumerate(
        [
            (build_task(seed=2), MACHINE, Profile()),
            (build_task(seed=3), replace(MACHINE, version="10.14.0"), Profile()),
            (build_task(seed=4), replace(MACHINE, device=replace(ADA, name="NVIDIA L40S")), Profile()),
            (build_task(seed=5), MACHINE, Profile(1, 1, 64)),
            (build_task(cell), MACHINE, Profile()),
            (build_task(n_way=6), MACHINE, Profile()),
        ]
    ):
        other = onnx_bytes(task)
        stored = plan_of(other, data=b"plan %d" % number, profile=profile)
        cache.store(key_of(other, machine, profile=profile), stored)
    assert [plan.data for plan in cache.refittable(key)] == [b"plan 0"]
    cache.store(key, plan_of(model))
    assert [plan.data for plan in cache.refittable(key)] == [b"plan 0"]
    rigid = replace(key, options=PlanOptions())
    assert list(cache.refittable(rigid)) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"flavour": "tensorrt_rtx"},
        {"version": "10.13.4"},
        {"device": "nvidia-l40s-sm_89"},
        {"precision": "fp16"},
        {"profile": Profile(1, 2, 32)},
        {"targets": ("sm_86",)},
        {"options": PlanOptions()},
        {"weights_sha256": "0"},
        {"onnx_sha256": "0"},
        {"genotype": "0"},
        {"structure": "0"},
    ],
)
def test_every_part_of_the_key_counts(build_task, cache, changed) -> None:
    model = onnx_bytes(build_task())
    key = key_of(model)
    cache.store(key, plan_of(model))
    assert cache.look_up(replace(key, **changed)) is None


def test_a_plan_that_is_not_what_its_key_says_is_not_kept(build_task, cache) -> None:
    first, second = onnx_bytes(build_task(seed=1)), onnx_bytes(build_task(seed=2))
    with pytest.raises(ValueError, match="built from another ONNX file, profile or options than its key says"):
        cache.store(key_of(first), plan_of(second))


@pytest.mark.parametrize("damage", ["plan", "entry", "key", "gone"])
def test_a_damaged_entry_is_a_miss_and_is_replaced(build_task, cache, damage, caplog) -> None:
    model = onnx_bytes(build_task())
    key = key_of(model)
    cache.store(key, plan_of(model))
    (plan,), (entry,) = cache.folder.glob("*.plan"), cache.folder.glob("*.json")
    if damage == "plan":
        plan.write_bytes(b"a plam")
    elif damage == "entry":
        entry.write_text(entry.read_text()[:-10])
    elif damage == "key":
        values = json.loads(entry.read_text())
        values["key"]["weights_sha256"] = "another"
        entry.write_text(json.dumps(values))
    else:
        plan.unlink()
    assert cache.look_up(key) is None
    assert ("damaged" in caplog.text) == (damage != "gone")
    cache.store(key, plan_of(model))
    assert cache.look_up(key) == plan_of(model)


def _store_often(folder: str, model: bytes, data: bytes) -> None:
    for _ in range(30):
        PlanCache(Path(folder)).store(key_of(model), plan_of(model, data=data))


def test_two_processes_that_store_one_key_leave_a_whole_plan_at_any_moment(build_task, tmp_path) -> None:
    model = onnx_bytes(build_task())
    contents = [letter * 50_000 for letter in (b"a", b"b")]
    cache, key = PlanCache(tmp_path), key_of(model)
    cache.store(key, plan_of(model, data=contents[0]))
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_store_often, args=(str(tmp_path), model, data)) for data in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert cache.look_up(key).data in contents
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0


def test_a_full_cache_gives_up_what_was_stored_longest_ago(build_task, tmp_path) -> None:
    cache = PlanCache(tmp_path, max_bytes=250)
    models = [onnx_bytes(build_task(seed=seed)) for seed in range(3)]
    for number, model in enumerate(models):
        cache.store(key_of(model), plan_of(model, data=b"%d" % number * 100))
    assert [cache.look_up(key_of(model)) is not None for model in models] == [False, True, True]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_second_export_of_one_task_finds_the_plan_of_the_first(adapted_task, cache) -> None:
    trt: types.ModuleType = pytest.importorskip("tensorrt_rtx")
    model = onnx_bytes(adapted_task)

    def again(profile: Profile) -> tuple[str, bytes]:
        got = obtain(
            trt,
            adapted_task,
            onnx_model=model,
            precision="fp32",
            profile=profile,
            cache=cache,
            targets=("sm_86",),
        )
        return got.way, got.plan.data

    way, data = again(Profile())
    assert way == "built"
    assert again(Profile()) == ("found", data)
    assert again(Profile(1, 1, 64))[0] == "built"
