"""What a request may choose about how its task is learnt, and what it is told about it."""

import dataclasses

import grpc
import pytest
import torch

from metanas.artifact import load_meta, task_from_bytes
from metanas.optimizer import parameter_names
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.errors import InvalidRequestError
from metanas_serving.options import OptionLimits, apply_options


def request_of(server, support, seed=0, **options):
    request = server.request(support, seed=seed)
    request.options.CopyFrom(pb.AdaptOptions(**options))
    return request


def test_a_task_is_learnt_as_asked_and_says_so(job_server, support):
    asked = {
        "architecture_steps": 2,
        "weight_steps": 0,
        "learning_rate": 0.01,
        "architecture_learning_rate": 0.25,
        "threshold": 0.2,
    }
    task = job_server.stub.Adapt(request_of(job_server, support, seed=9, **asked), timeout=60).task
    assert task.settings == pb.AdaptSettings(**asked, seed=9)
    assert (task.architecture_steps, task.weight_steps) == (2, 0)
    model = task_from_bytes(job_server.export(task.task_id))
    assert model.provenance["schedule"].items() >= asked.items()
    edges = [
        edge for cell in (task.genotype.normal, task.genotype.reduction) for node in cell.nodes for edge in node.inputs
    ]
    plain = job_server.adapt(support, seed=9)
    assert len(edges) < sum(
        len(node.inputs) for cell in (plain.genotype.normal, plain.genotype.reduction) for node in cell.nodes
    )


@pytest.mark.slow
def test_a_budget_is_kept_and_the_answer_says_what_it_cost(job_server, support):
    free = job_server.adapt(support)
    assert not free.HasField("budget")
    limit = free.parameter_count - 1
    task = job_server.stub.Adapt(request_of(job_server, support, max_parameters=limit), timeout=60).task
    assert task.parameter_count <= limit
    assert (task.budget.max_parameters, task.budget.HasField("max_multiply_adds")) == (limit, False)
    assert task.budget.unconstrained_parameter_count > limit
    assert 0 < task.budget.multiply_adds <= task.budget.unconstrained_multiply_adds
    assert 0 <= task.budget.support_accuracy <= 1
    assert job_server.stub.GetTask(pb.GetTaskRequest(task_id=task.task_id)) == task


def test_a_budget_that_nothing_fits_is_refused(job_server, support, refuses):
    for options, words in (
        ({"max_parameters": 1}, ["no network of 3 classes fits", "the smallest of this meta-model has"]),
        ({"max_multiply_adds": 1}, ["multiply-adds; raise the limit"]),
        ({"max_parameters": 0}, ["max_parameters must be"]),
    ):
        request = request_of(job_server, support, **options)
        refuses(grpc.StatusCode.INVALID_ARGUMENT, words, lambda request=request: job_server.stub.Adapt(request))


def test_without_options_the_meta_models_own_are_used_and_told(job_server, support, tiny_meta):
    schedule = load_meta(tiny_meta).schedule
    settings = job_server.adapt(support).settings
    for name in ("architecture_steps", "weight_steps", "learning_rate", "architecture_learning_rate", "threshold"):
        assert getattr(settings, name) == getattr(schedule, name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture_steps": 20_000, "weight_steps": 1}, ["20000 architecture_steps and 1", "--max-adapt-steps"]),
        ({"weight_steps": 2**32 - 1}, ["than 20000, the limit of this server"]),
        ({"learning_rate": 0.6}, ["learning_rate", "at most 0.5", "--max-learning-rate", "got 0.6"]),
        ({"architecture_learning_rate": 0.0}, ["architecture_learning_rate must be above 0"]),
        ({"learning_rate": float("nan")}, ["got nan"]),
        ({"threshold": 1.0}, ["threshold must be above 0.0001", "below 1, got 1"]),
        ({"threshold": 0.0}, ["threshold must be above 0.0001"]),
    ],
)
def test_an_option_over_a_limit_is_refused_by_its_name(job_server, support, options, words, refuses):
    request = request_of(job_server, support, **options)
    for call in (
        job_server.stub.Adapt,
        job_server.stub.StartAdapt,
        lambda one: job_server.stub.UploadAdapt(iter([one])),
    ):
        refuses(grpc.StatusCode.INVALID_ARGUMENT, words, lambda call=call: call(request))


def test_a_rate_is_refused_where_the_meta_model_has_learned_its_own(tiny_meta):
    meta = load_meta(tiny_meta)
    rates = {name: torch.full((2,), 0.1) for name in parameter_names(meta.weights, meta.architecture)}
    limits = OptionLimits(max_steps=10, max_learning_rate=1.0)
    learned = dataclasses.replace(meta, step_rates=rates)
    with pytest.raises(InvalidRequestError, match="learning_rate cannot be chosen: this meta-model has learned"):
        apply_options(pb.AdaptOptions(learning_rate=0.1), learned, limits)
    assert apply_options(pb.AdaptOptions(weight_steps=1), learned, limits).weight_steps == 1
