"""The line in front of the processors: who is computed with whom, and when."""

import threading
import time

import numpy as np
import pytest

from metanas_serving.batching import Batcher
from metanas_serving.network import Network


class Held(Network):
    """Doubles its inputs, when it may; remembers how many images each run had, and whether it was to leave."""

    def __init__(self, *, batch=8, threads=1, error=None):
        self._threads = threads
        self.may_go = threading.Semaphore(0)
        self.runs = []
        self.away = []
        self._batch = batch
        self._error = error

    @property
    def providers(self):
        return ["CPUExecutionProvider"]

    @property
    def memory_bytes(self):
        return 0

    @property
    def batch(self):
        return self._batch

    @property
    def threads(self):
        return self._threads

    def run(self, inputs, *, is_away=False):
        self.runs.append(len(inputs))
        self.away.append(is_away)
        assert self.may_go.acquire(timeout=20)
        if self._error is not None:
            raise self._error
        return 2 * inputs.reshape(len(inputs), -1)


class Callers:
    """Calls on threads of their own, which come one after the other."""

    def __init__(self, batcher):
        self._batcher = batcher
        self.answers = {}
        self._threads = []

    def call(self, name, network, values):
        before = self._batcher.waiting_count, len(network.runs)

        def ask():
            try:
                self.answers[name] = self._batcher.run(network, np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1))
            except Exception as error:
                self.answers[name] = error

        self._threads.append(threading.Thread(target=ask))
        self._threads[-1].start()
        end = time.monotonic() + 20
        while (self._batcher.waiting_count, len(network.runs)) == before:  # in line, or running
            assert time.monotonic() < end
            time.sleep(0.001)

    def wait(self):
        for thread in self._threads:
            thread.join(timeout=20)
            assert not thread.is_alive()


def _until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_call_that_finds_a_processor_free_computes_at_once_and_alone():
    network = Held()
    network.may_go.release()
    computed = Batcher(max_batch=16).run(network, np.ones((1, 1, 1, 1), dtype=np.float32))
    assert computed.logits.tolist() == [[2.0]]
    assert (computed.batch_images, computed.led) == (1, (1,))
    assert computed.waited_seconds < 1


def test_a_quick_network_waits_for_a_full_batch_while_half_of_the_processors_compute_for_it():
    batcher = Batcher(max_batch=3, at_once=2)
    callers = Callers(batcher)
    one, other = Held(), Held()
    for network in (one, other):  # so that it is known to be quick
        network.may_go.release()
        batcher.run(network, np.ones((1, 1, 1, 1), dtype=np.float32))
        network.runs.clear()
    callers.call("first", one, [1])
    callers.call("a", one, [2])
    callers.call("another", other, [5])  # passes it
    _until(lambda: other.runs == [1])
    assert one.runs == [1]
    other.may_go.release()
    _until(lambda: "another" in callers.answers)
    callers.call("b", one, [3])
    assert one.runs == [1]
    callers.call("c", one, [4])  # with it the batch is full
    _until(lambda: one.runs == [1, 3])
    one.may_go.release(2)
    callers.wait()
    assert [callers.answers[name].logits.item() for name in ("first", "a", "b", "c")] == [2, 4, 6, 8]


def test_those_who_wait_for_company_go_on_alone_when_the_others_are_done():
    batcher = Batcher(max_batch=3, at_once=2)
    callers = Callers(batcher)
    one = Held()
    one.may_go.release()
    batcher.run(one, np.ones((1, 1, 1, 1), dtype=np.float32))
    callers.call("first", one, [1])
    callers.call("a", one, [2])
    assert one.runs == [1, 1]
    one.may_go.release()
    _until(lambda: one.runs == [1, 1, 1])
    one.may_go.release()
    callers.wait()


def test_a_network_that_takes_its_time_does_not_wait_for_company():
    batcher = Batcher(max_batch=3, at_once=2)
    callers = Callers(batcher)
    slow = Held()
    callers.call("before", slow, [0])
    time.sleep(0.05)
    slow.may_go.release()
    callers.wait()
    callers.call("first", slow, [1])
    callers.call("a", slow, [2])
    _until(lambda: slow.runs == [1, 1, 1])
    slow.may_go.release(2)
    callers.wait()


def test_a_call_that_is_not_wanted_any_more_leaves_between_two_of_its_batches():
    network = Held()
    network.may_go.release(9)
    asked = []

    def check():
        asked.append(True)
        if len(asked) == 3:
            raise TimeoutError("gone")

    batcher = Batcher(max_batch=4, at_once=1)
    with pytest.raises(TimeoutError, match="gone"):
        batcher.run(network, np.zeros((40, 1, 1, 1), dtype=np.float32), check=check)
    assert network.runs == [4, 4]
    assert batcher.run(network, np.ones((1, 1, 1, 1), dtype=np.float32)).logits.tolist() == [[2.0]]


def test_a_network_of_several_threads_waits_for_as_many_processors_and_no_one_passes_it():
    callers = Callers(Batcher(max_batch=1, at_once=2))
    small, large = Held(), Held(threads=8)
    callers.call("small", small, [1])
    callers.call("large", large, [2])
    callers.call("late", small, [3])
    assert (small.runs, large.runs) == ([1], [])
    small.may_go.release()
    _until(lambda: large.runs == [1])
    assert small.runs == [1]
    large.may_go.release()
    small.may_go.release()
    callers.wait()
    assert callers.answers["late"].logits.tolist() == [[6]]


def test_calls_that_wait_are_run_with_those_of_their_network_and_each_gets_its_own_answer():
    callers = Callers(Batcher(max_batch=16, at_once=1))
    one, other = Held(), Held()
    callers.call("first", one, [1])
    for name, network, values in (("a", one, [2]), ("x", other, [3]), ("b", one, [4, 5]), ("y", other, [6])):
        callers.call(name, network, values)
    for network in (one, other):
        network.may_go.release(2)
    callers.wait()
    answers = {name: answer.logits[:, 0].tolist() for name, answer in callers.answers.items()}
    assert answers == {"first": [2], "a": [4], "b": [8, 10], "x": [6], "y": [12]}
    assert (one.runs, other.runs) == ([1, 3], [2])
    assert [callers.answers[name].batch_images for name in ("first", "a", "b", "x", "y")] == [1, 3, 3, 2, 2]
    assert [callers.answers[name].led for name in ("first", "a", "b", "x", "y")] == [(1,), (3,), (), (2,), ()]
    assert callers.answers["b"].waited_seconds > 0


@pytest.mark.parametrize(("max_batch", "batch"), [(1, 8), (16, 1)])
def test_images_are_run_one_by_one_where_the_server_or_the_network_wants_it(max_batch, batch):
    callers = Callers(Batcher(max_batch=max_batch, at_once=1))
    network = Held(batch=batch)
    for number in range(3):
        callers.call(number, network, [number])
    network.may_go.release(3)
    callers.wait()
    assert network.runs == [1, 1, 1]
    assert [callers.answers[number].logits.item() for number in range(3)] == [0, 2, 4]


def test_a_large_call_lets_small_ones_pass_between_its_batches():
    callers = Callers(Batcher(max_batch=4, at_once=1))
    large, small = Held(), Held()
    callers.call("large", large, list(range(10)))
    callers.call("small", small, [7])
    large.may_go.release()  # its first four images
    small.may_go.release()
    _until(lambda: "small" in callers.answers)
    assert callers.answers["small"].logits.tolist() == [[14]]
    large.may_go.release(2)
    callers.wait()
    assert callers.answers["large"].logits[:, 0].tolist() == [2 * value for value in range(10)]
    assert large.runs == [4, 4, 2]


def test_what_a_network_raises_reaches_each_call_of_the_batch_and_none_of_the_next():
    callers = Callers(Batcher(max_batch=16, at_once=1))
    good, bad = Held(), Held(error=RuntimeError("out of memory"))
    callers.call("first", good, [1])
    callers.call("a", bad, [2])
    callers.call("b", bad, [3])
    callers.call("last", good, [4])
    good.may_go.release(2)
    bad.may_go.release()
    callers.wait()
    assert str(callers.answers["a"]) == str(callers.answers["b"]) == "out of memory"
    assert callers.answers["last"].logits.tolist() == [[8]]


@pytest.fixture
def batcher():
    return Batcher(max_batch=2, at_once=2)


@pytest.fixture
def known(batcher):
    """A network that is known to be quick."""
    network = Held()
    network.may_go.release()
    batcher.run(network, np.ones((1, 1, 1, 1), dtype=np.float32))
    network.runs.clear()
    network.away.clear()
    return network


def test_a_lone_call_computes_where_it_is_and_calls_that_meet_leave_their_processor(batcher, known):
    callers = Callers(batcher)
    for number in range(5):
        callers.call(number, known, [number])
    known.may_go.release(3)
    callers.wait()
    assert (known.runs, known.away) == ([1, 2, 2], [False, True, True])
    known.may_go.release(2)
    for _ in range(2):  # the first one that comes alone after others have met may meet others again
        batcher.run(known, np.ones((1, 1, 1, 1), dtype=np.float32))
    assert known.away[3:] == [True, False]


def test_of_full_batches_of_single_calls_one_computes_where_it_is_while_another_is_away(batcher, known):
    callers, other = Callers(batcher), Held()
    callers.call("lone", other, [1])
    callers.call("away", known, [2, 3])
    callers.call("next", known, [4, 5])
    other.may_go.release()
    _until(lambda: known.runs == [2, 2])
    assert known.away == [True, False]
    known.may_go.release(2)
    callers.wait()


def test_a_network_of_several_threads_computes_where_it_is(batcher):
    network, callers = Held(threads=2), Callers(batcher)
    network.may_go.release()
    batcher.run(network, np.ones((1, 1, 1, 1), dtype=np.float32))
    for number in range(3):
        callers.call(number, network, [number])
    network.may_go.release(3)
    callers.wait()
    assert not any(network.away)
