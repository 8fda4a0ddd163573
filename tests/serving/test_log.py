"""Each call has an id, the caller's or a new one, in every line that it writes and in its answer's metadata."""

import io
import json
import logging
import re
import sys
from datetime import UTC, datetime

import grpc
import pytest

from metanas.errors import InvalidConfigError
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig
from metanas_serving.log import JsonFormatter, TextFormatter


def id_of(call):
    """The id in the trailing metadata of a call that is over."""
    return dict(call.trailing_metadata())["x-request-id"]


def delete(process, task_id, *metadata):
    request = pb.DeleteTaskRequest(task_id=task_id)
    return process.stub.DeleteTask.with_call(request, metadata=metadata, timeout=20)[1]


def test_lines_of_a_json_log_carry_the_id_that_the_caller_gave_and_reads_back(start_process, tiny_meta, support):
    process = start_process("--meta", str(tiny_meta), "--log-format", "json")
    before = datetime.now(UTC)
    tasks = [process.adapt(support).task_id for _ in range(4)]
    assert id_of(delete(process, tasks[0], ("x-request-id", "line-3.frame:7"))) == "line-3.frame:7"
    own = id_of(delete(process, tasks[1]))
    # Neither spaces nor more than 128 characters reach the log.
    refused = ["two words", "x" * 129]
    made = [id_of(delete(process, task, ("x-request-id", id_))) for task, id_ in zip(tasks[2:], refused, strict=True)]
    assert len({own, *made}) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", id_) for id_ in (own, *made))
    with pytest.raises(grpc.RpcError) as caught:
        process.stub.GetTask(pb.GetTaskRequest(task_id=tasks[0]), metadata=[("x-request-id", "lost")], timeout=20)
    assert id_of(caught.value) == "lost"
    export = process.stub.ExportTask(pb.ExportTaskRequest(task_id="none"), metadata=[("x-request-id", "stream")])
    with pytest.raises(grpc.RpcError):
        list(export)
    assert id_of(export) == "stream"

    lines = [json.loads(line) for line in process.log_path.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    deleted = [line for line in lines if line["message"].startswith("delete: task")]
    assert [line["request_id"] for line in deleted] == ["line-3.frame:7", own, *made]
    assert (deleted[0]["level"], deleted[0]["logger"]) == ("INFO", "metanas_serving.service")
    assert before <= datetime.fromisoformat(deleted[0]["time"]) <= datetime.now(UTC)
    started = [line for line in lines if line["message"].startswith("meta-model")]
    assert started
    assert all("request_id" not in line for line in started)


def test_an_exception_and_line_breaks_stay_on_one_line_of_a_json_log():
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f.py", 1, "failed: %s", ("x\ny",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    value = json.loads(line)
    assert value["message"] == "failed: x\ny"
    assert value["exception"].startswith("Traceback")
    assert value["exception"].endswith("ValueError: of two\nlines")


def test_lines_of_a_text_log_end_with_the_id(server, support):
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(TextFormatter())
    logger = logging.getLogger("metanas_serving.service")
    task_id = server.adapt(support).task_id
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        delete(server, task_id, ("x-request-id", "frame-7"))
        logger.info("outside of calls")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    inside, outside = written.getvalue().splitlines()
    assert inside.endswith(f" INFO metanas_serving.service: delete: task {task_id} [frame-7]")
    assert outside.endswith(" INFO metanas_serving.service: outside of calls")


def test_another_format_of_the_log_is_refused():
    with pytest.raises(InvalidConfigError, match="log_format must be text or json, got 'xml'"):
        ServerConfig(log_format="xml")
