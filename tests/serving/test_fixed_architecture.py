"""A server whose meta-model does not search: AutoMeta's cells, and a network without cells."""

import signal

import numpy as np
import onnxruntime
import pytest

from metanas.artifact import load_meta, task_from_bytes
from metanas.genotypes import named_genotype
from metanas.preprocessing import scale
from metanas.space import CELL_TYPES
from metanas_proto.v1 import few_shot_pb2 as pb


@pytest.mark.parametrize("kind", ["autometa", "blocks"])
def test_a_server_learns_answers_exports_and_remembers_tasks_of_a_fixed_architecture(
    tmp_path, fixed_metas, start_process, support, queries, kind
):
    arguments = ("--meta", str(fixed_metas[kind]), "--store", str(tmp_path / "store"))
    first = start_process(*arguments)
    task = first.adapt(support)

    assert (task.architecture_steps, task.weight_steps) == (0, 6)
    weights = load_meta(fixed_metas[kind]).weights
    features = 5 * 4 if kind == "autometa" else 8
    assert task.parameter_count == sum(value.numel() for value in weights.values()) + 3 * (features + 1)
    assert task.one_shot_parameter_count == task.parameter_count
    for cell_type in CELL_TYPES:
        told = [
            [(edge.input, edge.operation, edge.weight) for edge in node.inputs]
            for node in getattr(task.genotype, cell_type).nodes
        ]
        cell = named_genotype("autometa").cell(cell_type) if kind == "autometa" else ()
        assert told == [[(edge.source, edge.operation, 1.0) for edge in node] for node in cell]

    answers = first.classify(task.task_id, queries)
    assert len(answers) == len(queries)
    for one in answers:
        assert one.keys() == {"cat", "dog", "hen"}
        assert sum(one.values()) == pytest.approx(1.0, abs=1e-5)
    # One call with all images and one call for each: normalised alike.
    for image, together in zip(queries, answers, strict=True):
        assert first.classify(task.task_id, [image])[0] == pytest.approx(together, abs=1e-5)
    assert first.adapt(support).support_accuracy == task.support_accuracy

    model = task_from_bytes(first.export(task.task_id))
    session = onnxruntime.InferenceSession(first.export(task.task_id, pb.ExportTaskRequest.FORMAT_ONNX))
    images = scale(model.support.images, model.preprocessing).numpy()
    (scores,) = session.run(["logits"], {"images": images})
    assert np.abs(scores - model.logits(model.support.images).numpy()).max() < 1e-4

    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = start_process(*arguments)
    assert task in second.stub.ListTasks(pb.ListTasksRequest()).tasks
    assert second.classify(task.task_id, queries) == answers
