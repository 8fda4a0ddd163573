"""What the agreement table computes, on a small task that was really learned and exported."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exporting import table
from exporting.agreeing import Agreement, Missing, Reference, agree
from exporting.including import include, renew
from exporting.tasks import Kind, Subject, kinds, kinds_of
from measuring.subjects import untrained
from onnx import numpy_helper

from metanas.learner import adapt
from metanas.schedule import Schedule
from metanas.space import SearchSpace
from metanas.tasks import SupportSet
from metanas_export import casting
from metanas_export.graph import build_graph
from metanas_export.model import build_onnx
from metanas_serving import bundled

ONE = Agreement(
    task="a",
    form="onnx",
    precision="fp16",
    images=100,
    same_class=1.0,
    same_class_of_support=1.0,
    largest_difference=1e-3,
    accuracy=0.9,
    torch_accuracy=0.9,
)


@pytest.fixture(scope="module")
def subject() -> Subject:
    space = SearchSpace(channels=4, cells=2, reduction_cells=(1,), nodes=2, image_size=16)
    meta = untrained(space, Schedule(architecture_steps=2, weight_steps=2))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (18, 1, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(6) % 3
    task = adapt(meta, SupportSet(images[:6], labels, ("a", "b", "c")))
    return Subject("small", Kind("noise", 3, 2), task, images[6:], torch.arange(12) % 3)


def test_thirty_tasks_hold_every_kind_of_every_bundled_meta_model():
    counts = Counter(kinds(30))
    assert {kind.meta for kind in counts} == set(bundled.names())
    assert min(counts.values()) >= 30 // len(counts) >= 1
    assert all(kind.n_way * kind.n_query <= 100 for kind in counts)


@pytest.mark.parametrize(
    ("trained_on", "channels", "expected"),
    [
        ("omniglot-vinyals/train", 1, ["glyphs", "omniglot"]),
        ("glyphs/train", 1, ["glyphs", "omniglot"]),
        ("miniimagenet/train", 3, ["miniimagenet"]),
        ("cifar_fs/train", 3, ["cifar_fs"]),
        ("", 3, []),
    ],
)
def test_a_meta_model_is_asked_for_what_it_was_trained_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained_on: str, channels: int, expected: list[str]
):
    for folder in ("omniglot", "miniimagenet", "cifar100"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("METANAS_DATA", str(tmp_path))
    found = kinds_of("one", trained_on=trained_on, channels=channels)
    assert sorted({kind.data for kind in found}) == expected
    assert {kind.n_way for kind in found} == (set() if not expected else {5, 20} if channels == 1 else {5})
    (tmp_path / "omniglot").rmdir()
    assert "omniglot" not in {kind.data for kind in kinds_of("one", trained_on=trained_on, channels=channels)}


def test_a_good_file_agrees_and_its_accuracy_is_torchs(subject: Subject):
    reference = Reference.of(subject)
    found = agree(subject, reference, model=build_onnx(subject.task), form="onnx", precision="fp32")
    assert isinstance(found, Agreement)
    assert (found.images, found.same_class, found.same_class_of_support) == (12, 1.0, 1.0)
    assert found.largest_difference < 1e-4
    assert found.accuracy == found.torch_accuracy == reference.accuracy


def test_a_file_with_a_changed_head_does_not_agree(subject: Subject):
    model = build_onnx(subject.task)
    (head,) = (one for one in model.graph.initializer if one.name == "head/weight")
    head.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(head), 1, axis=0), head.name))
    found = agree(subject, Reference.of(subject), model=model, form="onnx", precision="fp32")
    assert isinstance(found, Agreement)
    assert found.same_class < 1.0
    assert found.largest_difference > 0.01


def test_a_precision_that_a_format_does_not_have_is_told(subject: Subject):
    pytest.importorskip("ai_edge_litert")
    model = casting.narrow(build_graph(subject.task), "bf16")
    found = agree(subject, Reference.of(subject), model=model, form="litert", precision="bf16")
    assert isinstance(found, Missing)
    assert "no bfloat16" in found.reason


def test_agreement_is_of_all_images_and_accuracy_of_all_tasks():
    row = table.summarise([ONE, replace(ONE, images=300, same_class=0.98, largest_difference=3e-3, accuracy=0.7)])
    assert row["same_class"] == pytest.approx((100 + 294) / 400)
    assert row["same_class_least"] == 0.98
    assert row["difference_largest"] == 3e-3
    assert row["accuracy"] == pytest.approx(0.8)
    assert not row["reached"]  # 98.5 % of 99.5 %


def test_float32_is_judged_by_its_scores_too():
    exact = replace(ONE, precision="fp32", largest_difference=9e-5)
    assert table.summarise([exact])["reached"]
    assert not table.summarise([exact, replace(exact, largest_difference=2e-4)])["reached"]


def test_the_table_marks_what_is_missed_and_lists_what_is_not_there():
    rows = [table.summarise([ONE]), table.summarise([replace(ONE, precision="int8", same_class=0.9)])]
    about = {"command": "the command", "processor": "a processor", "versions": "onnxruntime 1", "metas": ["m (12)"]}
    text = table.markdown(rows, {"litert bf16": "has none"}, kinds={"noise, 3-way 2-shot": 1}, about=about)
    assert "| onnx | fp16 | 1 | 100 | 100.000% |" in text
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| onnx")] == ["yes", "**no**"]
    assert "- litert bf16: has none" in text
    assert "meta-models m (12) with their own schedules (1 x noise, 3-way 2-shot)" in text


def test_a_table_replaces_what_stood_between_its_marks(tmp_path: Path):
    (tmp_path / "a.md").write_text("| new |\n")
    text = "before\n<!-- table: a.md -->\n| old |\n<!-- end of table -->\nafter\n"
    renewed = include(text, results=tmp_path)
    assert renewed == "before\n<!-- table: a.md -->\n\n| new |\n\n<!-- end of table -->\nafter\n"
    assert include(renewed, results=tmp_path) == renewed
    (tmp_path / "page.md").write_text(text)
    assert renew([tmp_path / "page.md"], results=tmp_path) == [tmp_path / "page.md"]
    assert renew([tmp_path / "page.md"], results=tmp_path) == []


def test_the_tables_in_the_documents_are_those_of_the_results():
    root = Path(__file__).parents[2]
    for page in sorted((root / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert include(text, results=root / "benchmarks" / "results") == text, f"{page}: export_all.py --tables-only"
