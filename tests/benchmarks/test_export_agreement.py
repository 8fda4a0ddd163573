"""What the agreement table computes, on a small task that was really learned and exported."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from exporting import table
from exporting.agreeing import Agreement, Missing, Reference, agree
from exporting.tasks import Kind, Subject, kinds
from measuring.subjects import untrained
from onnx import numpy_helper

from metanas.learner import adapt
from metanas.schedule import Schedule
from metanas.space import SearchSpace
from metanas.tasks import SupportSet
from metanas_export import casting
from metanas_export.graph import build_graph
from metanas_export.model import build_onnx

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


def test_thirty_tasks_hold_every_kind_at_least_three_times():
    counts = Counter(kinds(30))
    assert len(counts) == 8
    assert min(counts.values()) == 3


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
    about = {"command": "the command", "processor": "a processor", "versions": "onnxruntime 1"}
    text = table.markdown(rows, {"litert bf16": "has none"}, kinds={"noise, 3-way 2-shot": 1}, about=about)
    assert "| onnx | fp16 | 1 | 100 | 100.000% |" in text
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| onnx")] == ["yes", "**no**"]
    assert "- litert bf16: has none" in text
    assert "(1 x noise, 3-way 2-shot)" in text
