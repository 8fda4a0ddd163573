"""When computations that wait for their processor have threads let go, and for how long."""

import pytest

from metanas_serving.truce import Truce

HALF, SHORT_WAITS, WHOLE = (0.6, 0.3, 60), (0.6, 0.3, 600), (0.6, 0.6, 1)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def truce(clock):
    return Truce(clock=clock)


def _lasts(truce, clock):
    """Seconds until it is over."""
    before = clock.now
    while truce.is_on:
        clock.now += 1
    return clock.now - before


def test_it_lasts_longer_each_time_until_computations_have_their_processor_again(truce, clock):
    seconds = []
    for computation in (HALF, HALF, HALF, WHOLE, HALF):
        truce.note(*computation)
        seconds.append(_lasts(truce, clock))
    assert seconds == [10, 20, 40, 0, 10]


def test_it_never_lasts_longer_than_some_minutes(truce, clock):
    for _ in range(20):
        truce.note(*HALF)
        last = _lasts(truce, clock)
    assert last == 640


def test_many_short_interruptions_do_no_harm(truce):
    truce.note(*SHORT_WAITS)
    assert not truce.is_on


def test_computations_are_judged_together(truce):
    for _ in range(4):
        truce.note(0.1, 0.05, 5)
    assert not truce.is_on  # too few to tell
    truce.note(0.2, 0.1, 10)
    assert truce.is_on


def test_it_tells_what_it_saw(truce, caplog):
    caplog.set_level("INFO")
    truce.note(*HALF)
    assert "had one for 50 % of their time, and waited 5.0 ms each time): for 10 s requests" in caplog.text


def test_it_may_last_for_good(truce, clock):
    assert truce.keep()
    assert not truce.keep()
    truce.note(*HALF)
    clock.now += 1e9
    assert truce.is_on
