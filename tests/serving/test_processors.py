"""Which processor a thread runs on, and where those of a server do."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import processors
from metanas_serving.config import ServerConfig
from metanas_serving.processors import away, current, tie, tied, untied
from metanas_serving.truce import Truce

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or processors.PROCESSORS < 2,
    reason="one processor, or a system that does not tie threads: nothing to choose",
)

RED, BLUE = np.zeros((12, 16), dtype=np.uint8), np.full((12, 16), 255, dtype=np.uint8)


def _here(thread=0):
    return set(os.sched_getaffinity(thread))


def _on_a_thread(work):
    """What ``work`` returns on a thread of its own, which is not this test's."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(timeout=20)
    return found[0]


@pytest.fixture
def everywhere():
    return _here()


def test_the_processor_that_a_thread_runs_on_is_the_one_it_is_tied_to(everywhere):
    for processor in everywhere:

        def look(processor=processor):
            tie(processor)
            return current()

        assert _on_a_thread(look) == processor


def test_a_tied_thread_may_run_anywhere_for_a_while_and_comes_back(everywhere):
    own = min(everywhere)

    def look():
        with untied():
            seen = [_here()]
        tie(own)
        seen.append(_here())
        with untied():
            seen.append(_here())
        seen.append(_here())
        tie(None)
        return [*seen, _here()]

    assert _on_a_thread(look) == [everywhere, {own}, everywhere, {own}, everywhere]


def test_a_thread_that_someone_has_put_elsewhere_stays_there(everywhere):
    own, other = min(everywhere), max(everywhere)

    def look():
        tie(own)
        os.sched_setaffinity(0, {other})  # as taskset does
        with untied():
            seen = [_here()]
        tie(None)
        tie(own)
        return [*seen, _here()]

    assert _on_a_thread(look) == [{other}, {other}]


def test_what_is_computed_away_is_computed_on_the_other_processors_and_waited_for(everywhere):
    own = min(everywhere)

    def look():
        seen = []
        away(lambda: seen.append(_here()))
        tie(own)
        away(lambda: seen.append(_here()))
        with pytest.raises(KeyError):
            away({}.__getitem__, 1)
        return [*seen, _here()]

    assert _on_a_thread(look) == [everywhere, everywhere - {own}, {own}]


def test_what_is_started_by_a_thread_that_is_tied_for_a_while_stays_there(everywhere):
    own = max(everywhere)
    with tied(own):
        inside = _on_a_thread(_here)
    assert (inside, _here()) == ({own}, everywhere)


def test_a_processor_that_was_taken_from_the_process_is_told_once_and_then_left_alone(everywhere, monkeypatch, caplog):
    monkeypatch.setattr(processors, "_truce", Truce())
    put = os.sched_setaffinity

    def refuse(thread, mask):
        if set(mask) != everywhere:
            raise OSError(22, "Invalid argument")
        put(thread, mask)

    def look():
        tie(min(everywhere))
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
        seen = []
        with untied():
            seen.append(_here())
        seen.append(_here())  # it was to come back and could not
        tie(max(everywhere))
        return [*seen, _here()]

    assert _on_a_thread(look) == [everywhere] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "seems to be kept now" in caplog.text


def test_threads_are_let_go_for_a_while_where_computations_wait_for_their_processor(everywhere, monkeypatch):
    now, own = [0.0], min(everywhere)
    monkeypatch.setattr(processors, "_truce", Truce(clock=lambda: now[0]))

    def look():
        tie(own)
        seen = [_here()]
        away(time.sleep, 0.55)  # has no processor, as if others had it
        tie(own)
        seen.append(_here())
        now[0] = 11.0
        tie(own)
        seen.append(_here())
        away(_compute, 0.55)
        tie(own)
        return [*seen, _here()]

    assert _on_a_thread(look) == [{own}, everywhere, {own}, {own}]


def _compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _threads_of(process_id):
    """Where the threads of a process may run, each once."""
    found = set()
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        found.add(frozenset(_here(int(thread.name))))
    return found


def test_a_server_answers_on_one_processor_and_learns_on_all(everywhere, start_server, tiny_meta):
    images = {
        name: [pb.Image(tensor=pb.Tensor(shape=[12, 16], data_type=pb.Tensor.DATA_TYPE_UINT8, data=pixels.tobytes()))]
        for name, pixels in (("red", RED), ("blue", BLUE))
    }
    server = start_server(ServerConfig(meta_path=tiny_meta, port=0, adapt_workers=1))
    task = server.adapt(images)
    server.classify(task.task_id, images["red"])
    of_calls = [thread for thread in threading.enumerate() if thread.name.startswith("request")]
    last = {frozenset(_here(thread.native_id)) for thread in of_calls if thread.native_id}
    assert any(len(where) == 1 for where in last)
    (worker,) = server.application.adaptations.process_ids
    assert _threads_of(worker) == {frozenset(everywhere)}
    assert _here() == everywhere


def test_a_server_may_answer_on_any_processor(start_process, tiny_meta, everywhere):
    process = start_process("--meta", str(tiny_meta), "--request-processors", "any")
    assert process.health() == "SERVING"
    assert _threads_of(process.process.pid) == {frozenset(everywhere)}
    assert "requests are read and answered on processor" not in process.log_path.read_text()


def test_a_server_process_says_where_it_answers(start_process, tiny_meta, everywhere):
    process = start_process("--meta", str(tiny_meta))
    process.health()
    assert "requests are read and answered on processor" in process.log_path.read_text()
    assert any(len(where) == 1 for where in _threads_of(process.process.pid))
