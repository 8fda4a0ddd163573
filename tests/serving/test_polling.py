"""Who reads what callers send: the thread that waits, where gRPC still can."""

import os
import sys
from pathlib import Path

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import polling
from metanas_serving.polling import poll_directly

VARIABLE = "GRPC_EXPERIMENTS"


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not imported gRPC, with a version that is known."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "grpc")
    monkeypatch.setattr(polling, "version", lambda package: "1.85.3")


def test_grpc_is_asked_before_it_begins(fresh):
    assert f"({VARIABLE}=-event_engine_listener)" in poll_directly()
    assert os.environ[VARIABLE] == "-event_engine_listener"


def test_what_the_environment_says_stays(fresh, monkeypatch):
    monkeypatch.setenv(VARIABLE, "something")
    assert poll_directly().endswith(f" goes by {VARIABLE}=something")
    assert os.environ[VARIABLE] == "something"


@pytest.mark.parametrize("later", ["1.86.0", "1.100.0.dev1", "2.0.0"])
def test_a_later_grpc_is_left_as_it_is_and_that_is_said(fresh, monkeypatch, later):
    monkeypatch.setattr(polling, "version", lambda package: later)
    assert poll_directly() == f"gRPC {later} is newer than 1.85: threads of its own read what callers send"
    assert VARIABLE not in os.environ


def test_where_grpc_has_begun_nothing_is_claimed(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", grpc)
    assert "was imported before" in poll_directly()
    assert VARIABLE not in os.environ


def _turns(process_id):
    """How often gRPC's own threads have gone to sleep in a process."""
    turns = 0
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        if (thread / "comm").read_text().startswith("event_engine"):
            lines = (thread / "status").read_text().splitlines()
            turns += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return turns


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not tell what threads do")
def test_a_servers_calls_take_no_turn_of_grpcs_own_threads(start_process, tiny_meta, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    process = start_process("--meta", str(tiny_meta))
    process.stub.ListTasks(pb.ListTasksRequest())
    before, calls = _turns(process.process.pid), 200
    for _ in range(calls):
        process.stub.ListTasks(pb.ListTasksRequest())
    turns = _turns(process.process.pid) - before
    if "the thread that waits reads" in process.log_path.read_text():
        assert turns < calls / 2
    else:  # a later gRPC
        assert "newer than" in process.log_path.read_text()
