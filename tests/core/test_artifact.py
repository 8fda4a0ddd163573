"""Both files: round trips to the bit, and every way in which a file can be bad."""

import hashlib
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metanas import artifact
from metanas.artifact import (
    META_KIND,
    TASK_KIND,
    load_meta,
    load_task,
    meta_from_bytes,
    meta_to_bytes,
    pack,
    save_meta,
    save_task,
    task_from_bytes,
    task_to_bytes,
    unpack,
    write_atomically,
)
from metanas.errors import ArtifactError, CorruptArtifactError, MetaNASError, NewerVersionError, WrongKindError
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel

From = Callable[[bytes], MetaModel | TaskModel]
OF_LATER_FILES = {META_KIND: {"genotype", "known_similarity", "prior_images", "variation"}, TASK_KIND: {"trust"}}


@pytest.fixture(scope="module")
def meta(make_meta: Any) -> MetaModel:
    found: MetaModel = make_meta(moments=True, in_channels=3)
    return found


@pytest.fixture(scope="module")
def task(meta: MetaModel, make_support: Any) -> TaskModel:
    return adapt(meta, make_support(channels=3))


def _content(model: MetaModel | TaskModel) -> tuple[Any, dict[str, Tensor]]:
    """Everything a model holds, to compare."""
    if isinstance(model, MetaModel):
        values = (
            model.space, model.genotype, model.head_scale, model.preprocessing, model.schedule, dict(model.provenance),
        )  # fmt: skip
        tensors = {
            **model.weights,
            **model.architecture,
            **{f"moments {name}": one for name, one in model.moments.items()},
        }
        return values, tensors
    values = (model.genotype, model.class_names, model.preprocessing, model.report, dict(model.provenance), model.space)
    return values, {**model.network.state_dict(), "images": model.support.images, "labels": model.support.labels}


def _same(one: MetaModel | TaskModel, other: MetaModel | TaskModel) -> bool:
    (values, tensors), (other_values, other_tensors) = _content(one), _content(other)
    return (
        values == other_values
        and tensors.keys() == other_tensors.keys()
        and all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)
    )


def test_a_meta_model_survives_its_file_with_everything_it_holds(meta: MetaModel, tmp_path: Path) -> None:
    save_meta(tmp_path / "meta.pt", meta)
    loaded = load_meta(tmp_path / "meta.pt")
    assert _same(loaded, meta)
    assert loaded.moments.keys() == meta.moments.keys() != set()


def test_a_meta_model_from_its_file_adapts_to_the_same_bits(meta: MetaModel, make_support: Any) -> None:
    """Weights and moments lie in memory otherwise after a file: that must not matter."""
    loaded = meta_from_bytes(meta_to_bytes(meta))
    assert meta.weights["stem.weight"].stride() != loaded.weights["stem.weight"].stride()
    support = make_support(channels=3)
    assert _same(adapt(loaded, support), adapt(meta, support))


def test_a_task_model_survives_its_file_and_answers_to_the_same_bits(task: TaskModel, tmp_path: Path) -> None:
    save_task(tmp_path / "task_model.pt", task)
    loaded = load_task(tmp_path / "task_model.pt")
    assert _same(loaded, task)
    images = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)
    assert torch.equal(loaded.logits(images), task.logits(images))
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())


def test_writing_a_model_twice_gives_the_same_bytes(meta: MetaModel) -> None:
    assert meta_to_bytes(meta) == meta_to_bytes(meta) == meta_to_bytes(meta_from_bytes(meta_to_bytes(meta)))


@pytest.fixture(params=["meta", "task"], scope="module")
def written(
    request: pytest.FixtureRequest, meta: MetaModel, task: TaskModel
) -> tuple[bytes, MetaModel | TaskModel, From]:
    if request.param == "meta":
        return meta_to_bytes(meta), meta, meta_from_bytes
    return task_to_bytes(task), task, task_from_bytes


Written = tuple[bytes, MetaModel | TaskModel, From]


def test_an_empty_file_is_refused(written: Written) -> None:
    with pytest.raises(CorruptArtifactError, match="the file is empty; copy or write it again"):
        written[2](b"")


def test_a_file_truncated_anywhere_is_refused(written: Written) -> None:
    data, _, read = written
    lengths = sorted(
        {2, 3, 4, 5, 30, 64, 100, *range(500, len(data), len(data) // 12), *range(len(data) - 25, len(data))}
    )
    for length in lengths:
        with pytest.raises(
            CorruptArtifactError, match=rf"\({length} bytes\) is truncated or damaged; copy or write it"
        ):
            read(data[:length])
    with pytest.raises(WrongKindError, match="the file is not a file of MetaNAS Edge"):
        read(data[:1])


def test_a_flipped_byte_is_refused_or_harmless_but_never_changes_what_is_read(written: Written) -> None:
    data, model, read = written
    chance = random.Random(0)
    refused = 0
    places = [*chance.sample(range(len(data)), 40), *chance.sample(range(3000), 30), *range(len(data) - 30, len(data))]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        try:
            assert _same(read(bytes(flipped)), model), place
        except ArtifactError:
            refused += 1
    assert refused > 30


def test_a_file_of_the_other_kind_is_named(meta: MetaModel, task: TaskModel) -> None:
    with pytest.raises(WrongKindError, match=r"x is a task model \(task_model.pt\); expected a meta-model \(meta.pt\)"):
        meta_from_bytes(task_to_bytes(task), name="x")
    with pytest.raises(WrongKindError, match=r"x is a meta-model \(meta.pt\); expected a task model \(task_model.pt\)"):
        task_from_bytes(meta_to_bytes(meta), name="x")


def test_a_training_checkpoint_is_no_meta_model() -> None:
    with pytest.raises(WrongKindError, match="is 'metanas-edge/training-checkpoint'; expected a meta-model"):
        meta_from_bytes(pack("metanas-edge/training-checkpoint", {}, {}))


class _Malicious:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_opening_a_file_never_runs_code(tmp_path: Path, written: Written) -> None:
    trap = tmp_path / "executed"
    inside = io.BytesIO()
    torch.save({"kind": META_KIND, "version": 1, "tensors": _Malicious(trap)}, inside)
    for data in (pickle.dumps(_Malicious(trap)), inside.getvalue()):
        with pytest.raises(ArtifactError):
            written[2](data)
        assert not trap.exists()
    pickle.loads(pickle.dumps(_Malicious(trap)))  # noqa: S301  the trap does work
    assert trap.exists()


def _zip_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"just some text\n" * 20, WrongKindError, "x is not a file of MetaNAS Edge"),
        (pickle.dumps({"kind": META_KIND}), WrongKindError, "x is not a file of MetaNAS Edge"),
        (_zip_of("letter.txt", b"hello"), CorruptArtifactError, r"x \(\d+ bytes\) is truncated or damaged"),
        (_saved([1, 2]), WrongKindError, r"x is not a file of MetaNAS Edge; expected a meta-model \(meta.pt\)"),
        (_saved({"weights": torch.ones(2)}), WrongKindError, "x is not a file of MetaNAS Edge; expected a meta-model"),
        (_saved({"kind": META_KIND}), CorruptArtifactError, "x has no version number; write it again"),
        (_saved({"kind": META_KIND, "version": "1"}), CorruptArtifactError, "x has no version number"),
        (
            _saved({"kind": META_KIND, "version": 4}),
            NewerVersionError,
            "x has format version 4, this package reads up to 3; upgrade metanas-edge",
        ),
        (_saved({"kind": META_KIND, "version": 1}), CorruptArtifactError, "x does not match its checksum; copy or"),
        (
            _saved({"kind": META_KIND, "version": 1, "metadata": "{}", "tensors": {"a": 1}}),
            CorruptArtifactError,
            "x does not match its checksum",
        ),
        (
            _saved({"kind": META_KIND, "version": 1, "metadata": "{}", "tensors": {"a": torch.ones(2).to_sparse()}}),
            CorruptArtifactError,
            "x does not match its checksum",
        ),
        (
            _saved({"kind": META_KIND, "version": 1, "metadata": "{}", "tensors": {1: torch.ones(1)}}),
            CorruptArtifactError,
            "x does not match its checksum",
        ),
    ],
    ids=[
        "text", "pickle", "zip", "list", "weights", "no version", "odd version", "newer", "no content", "odd tensor",
        "sparse tensor", "odd name",
    ],
)  # fmt: skip
def test_what_is_not_a_file_of_ours_is_refused_with_the_reason(
    data: bytes, error: type[MetaNASError], message: str
) -> None:
    with pytest.raises(error, match=message):
        meta_from_bytes(data, name="x")


def test_a_changed_value_does_not_match_the_checksum(meta: MetaModel) -> None:
    content = torch.load(io.BytesIO(meta_to_bytes(meta)), weights_only=True)
    content["tensors"]["weights/stem.weight"][0, 0, 0, 0] += 1
    with pytest.raises(CorruptArtifactError, match="does not match its checksum"):
        meta_from_bytes(_saved(content))


def test_every_missing_part_of_either_file_is_an_error(written: Written) -> None:
    """The checksum is right: the file was written like that."""
    data, model, read = written
    kind = META_KIND if isinstance(model, MetaModel) else TASK_KIND
    metadata, tensors = unpack(data, kind, name="x")
    for key in metadata.keys() - OF_LATER_FILES[kind]:
        less = {name: value for name, value in metadata.items() if name != key}
        with pytest.raises(CorruptArtifactError, match=f"the file is incomplete or contradicts itself: '{key}'"):
            read(pack(kind, less, tensors))
    needed = [name for name in tensors if not name.startswith("moments/")]
    for name in needed[:: max(1, len(needed) // 8)]:
        less = {one: value for one, value in tensors.items() if one != name}
        with pytest.raises(CorruptArtifactError, match="the file is incomplete or contradicts itself: "):
            read(pack(kind, metadata, less))
    for key in metadata:
        for odd in (None, ["text"], {"odd": 1}):
            if key == "provenance" or (key == "class_names" and odd == ["text"]):
                continue  # any value may stand there
            if kind == META_KIND and key in OF_LATER_FILES[kind] and odd is None:
                continue  # what a search has
            with pytest.raises(CorruptArtifactError, match="the file is incomplete or contradicts itself: "):
                read(pack(kind, {**metadata, key: odd}, tensors))


def test_metadata_that_are_no_table_are_an_error(written: Written) -> None:
    kind = META_KIND if isinstance(written[1], MetaModel) else TASK_KIND
    for text in ("[]", "not json", "5"):
        digest = hashlib.sha256(text.encode()).hexdigest()
        data = _saved({"kind": kind, "version": 1, "checksum": digest, "metadata": text, "tensors": {}})
        with pytest.raises(CorruptArtifactError):
            written[2](data)


def test_a_missing_file_is_pythons_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_meta(tmp_path / "meta.pt")
    with pytest.raises(FileNotFoundError):
        load_task(tmp_path / "task_model.pt")


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "odd.pt").write_bytes(b"text")
    with pytest.raises(WrongKindError, match=r"/odd\.pt is not a file of MetaNAS Edge"):
        load_meta(tmp_path / "odd.pt")


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    target = tmp_path / "meta.pt"
    write_atomically(target, b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact.os, failing, fail)
    with pytest.raises(ArtifactError, match=r"cannot write .*/meta\.pt: No space left on device"):
        write_atomically(target, b"new content")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["meta.pt"]


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    write_atomically(tmp_path / "meta.pt", b"old")
    monkeypatch.setattr(artifact.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "meta.pt", b"new content")
    assert (tmp_path / "meta.pt").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["meta.pt"]


def test_a_write_replaces_what_is_there_and_leaves_one_file_that_others_may_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for content in (b"old", b"new"):
            write_atomically(tmp_path / "meta.pt", content)
    finally:
        os.umask(before)
    assert (tmp_path / "meta.pt").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["meta.pt"]
    assert (tmp_path / "meta.pt").stat().st_mode & 0o777 == 0o644


def test_writing_into_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write .*/nowhere/meta\.pt: No such file or directory"):
        write_atomically(tmp_path / "nowhere" / "meta.pt", b"x")


def test_metadata_are_readable_json(meta: MetaModel) -> None:
    content = torch.load(io.BytesIO(meta_to_bytes(meta)), weights_only=True)
    assert (content["kind"], content["version"]) == ("metanas-edge/meta-model", 3)
    assert json.loads(content["metadata"])["space"]["channels"] == 4


def test_a_meta_model_without_a_genotype_and_a_kind_is_an_older_one_and_searches(
    meta: MetaModel, make_support: Any
) -> None:
    metadata, tensors = unpack(meta_to_bytes(meta), META_KIND, name="x")
    assert metadata["space"].pop("kind") == "cells"
    assert metadata.pop("genotype") is None
    for later in ("affine", "optimizer", "relaxation"):
        metadata["space"].pop(later, None)
        metadata["schedule"].pop(later, None)
    old = meta_from_bytes(pack(META_KIND, metadata, tensors))
    assert old.searches
    assert _same(old, meta)
    support = make_support(channels=3)
    assert _same(adapt(old, support), adapt(meta, support))


def test_a_task_model_without_a_kind_is_an_older_one_and_answers_to_the_same_bits(task: TaskModel) -> None:
    metadata, tensors = unpack(task_to_bytes(task), TASK_KIND, name="x")
    assert metadata["space"].pop("kind") == "cells"
    metadata["space"].pop("affine")
    old = task_from_bytes(pack(TASK_KIND, metadata, tensors))
    assert _same(old, task)
    images = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)
    assert torch.equal(old.logits(images), task.logits(images))


def test_the_meta_model_that_comes_with_the_server_loads_and_searches() -> None:
    path = Path(__file__).parents[2] / "serving" / "metanas_serving" / "models" / "omniglot.pt"
    bundled = load_meta(path)
    assert bundled.searches
    assert (bundled.space.channels, bundled.space.image_size) == (30, 28)
    assert (bundled.schedule.architecture_steps, bundled.schedule.weight_steps) == (50, 50)
    assert bundled.schedule.relaxation == "softmax"


def test_an_unknown_kind_of_network_is_an_error(meta: MetaModel) -> None:
    metadata, tensors = unpack(meta_to_bytes(meta), META_KIND, name="x")
    metadata["space"]["kind"] = "transformer"
    with pytest.raises(CorruptArtifactError, match="unknown kind of network 'transformer'; there are cells and conv"):
        meta_from_bytes(pack(META_KIND, metadata, tensors))


def test_a_checksum_does_not_depend_on_strides_that_address_nothing() -> None:
    """Of a tensor with one value: a damaged file can make them anything, and that must not end in another error."""
    value = torch.arange(30.0)[4:5]
    odd = torch.as_strided(torch.arange(30.0), (1,), (9,), 4)
    assert odd.stride() == (9,)
    assert pack("kind", {}, {"x": value})
    content = torch.load(io.BytesIO(pack("kind", {}, {"x": value})), weights_only=True)
    content["tensors"]["x"] = odd
    assert unpack(_saved(content), "kind", name="x")[1]["x"].item() == 4.0
