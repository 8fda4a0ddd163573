"""Each gRPC status becomes the error that the tree draws, with its code, words, cause and a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from metanas_client import (
    DataLossError,
    DeadlineExceededError,
    FewShotClient,
    InvalidRequestError,
    KeyTakenError,
    MetaNASClientError,
    PreconditionError,
    RequestCancelledError,
    ResourceExhaustedError,
    ServerError,
    ServerUnavailableError,
    TaskNotFoundError,
)
from metanas_client.translation import translate

if TYPE_CHECKING:
    from tests.clients.conftest import RecordingService

CASES = [
    (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError, "the server's words"),
    (grpc.StatusCode.NOT_FOUND, TaskNotFoundError, r"the server's words; client\.tasks\(\) lists"),
    (grpc.StatusCode.ALREADY_EXISTS, KeyTakenError, "the server's words"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError, "the server's words; .*--max-message-mb"),
    (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        DeadlineExceededError,
        r"no answer within 20 s \(the server's words\); pass a larger",
    ),
    (grpc.StatusCode.CANCELLED, RequestCancelledError, "the server's words; send the request again"),
    (grpc.StatusCode.UNAVAILABLE, ServerUnavailableError, "the server's words; check the address"),
    (grpc.StatusCode.DATA_LOSS, DataLossError, "the server's words; delete the task and adapt again"),
    (grpc.StatusCode.INTERNAL, ServerError, "the server's words; the server's log"),
    (grpc.StatusCode.UNKNOWN, ServerError, "the server's words; the server's log"),
    (grpc.StatusCode.UNIMPLEMENTED, ServerError, "the server's words; check that it is a MetaNAS Edge server"),
    (grpc.StatusCode.FAILED_PRECONDITION, PreconditionError, "the server's words"),
]


@pytest.mark.parametrize(("code", "kind", "said"), CASES, ids=[code.name for code, _, _ in CASES])
def test_a_status_becomes_its_error_with_code_words_and_cause(
    client: FewShotClient,
    service: RecordingService,
    code: grpc.StatusCode,
    kind: type[MetaNASClientError],
    said: str,
) -> None:
    service.failure = (code, "the server's words")

    with pytest.raises(MetaNASClientError, match=f"adapt at .*: {said}") as caught:
        client.adapt({"cat": [b"png"], "dog": [b"png"]})

    assert type(caught.value) is kind
    assert caught.value.code is code
    assert caught.value.details == "the server's words"
    assert isinstance(caught.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize("max_message_bytes", [64 * 1024 * 1024, 100_000])
def test_a_message_over_the_servers_or_the_clients_limit_names_both_options(
    client: FewShotClient, max_message_bytes: int
) -> None:
    images = [np.zeros((1000, 400), dtype=np.uint8)] * 3  # 1.2 MB; the server takes 1 MB
    with (
        FewShotClient(client.address, max_message_bytes=max_message_bytes) as limited,
        pytest.raises(ResourceExhaustedError, match=r"larger than max.*--max-message-mb .* max_message_bytes"),
    ):
        limited.task("task-1").classify(images)
    assert len(client.tasks()) == 2  # the server goes on


def test_an_error_of_grpc_without_a_status_is_still_one_of_ours() -> None:
    error = translate(grpc.RpcError("odd"), action="adapt", address="edge:1", timeout_seconds=1)

    assert type(error) is ServerError
    assert str(error) == "adapt at edge:1: odd; the server's log holds the reason"


def test_the_errors_are_the_builtin_kinds_that_python_users_catch() -> None:
    assert issubclass(InvalidRequestError, ValueError)
    assert issubclass(TaskNotFoundError, LookupError)
    assert issubclass(DeadlineExceededError, TimeoutError)
    assert issubclass(ServerUnavailableError, ConnectionError)
