"""What `make bench` computes rather than measures: FLOP, limits, verdicts, scaling, the table."""

import math
from dataclasses import replace

import pytest
from measuring import machine
from measuring.adapt_rows import Alone, Pair, Pairs, bundled_rows, pair_rows, untrained_rows
from measuring.adaptation import Order, Result, run
from measuring.adaptation_process import Watch
from measuring.flops import Counter, adaptation_flops
from measuring.row import Goal, Row, verdict
from measuring.table import markdown

from metanas.cost import multiply_adds
from metanas.progress import StepReport
from metanas.space import EdgeOperation, Genotype, SearchSpace

SMALL = SearchSpace(
    channels=4, cells=2, reduction_cells=(1,), nodes=2, operations=("skip_connect", "conv_3x3"), image_size=8
)
RATES = machine.Rates(one=50.0, all=100.0, one_median=40.0, all_median=80.0)
RESULT = Result(
    seconds=30.0,
    flops=1_000_000_000_000,
    scaled=False,
    architecture_steps_run=50,
    weight_steps_run=50,
    architecture_seconds=15.0,
    weight_seconds=14.0,
    architecture_flops=500_000_000_000,
    weight_flops=490_000_000_000,
    engine="plain",
    genotype={},
    support_accuracy=1.0,
    pruning_margin=2.0,
    logits=[],
)


def test_a_forward_pass_counts_two_flop_for_each_multiply_add_of_the_core():
    assert Counter(SMALL, n_way=5).forward() == 2 * multiply_adds(SMALL, None, n_way=5)


def test_learning_costs_three_forward_passes_without_the_gradient_of_the_images():
    counter = Counter(SMALL)
    stem = 2 * 8 * 8 * 9 * 1 * 12  # pixels, taps, one input channel, 3 x 4 filters
    assert counter.learning() == 3 * counter.forward() - stem


def test_an_operation_that_does_not_run_costs_nothing():
    counter = Counter(SMALL)
    normal, reduction = counter.everything()
    # Row 1 of the normal cell: a 3x3 depthwise and a 1x1 convolution of 4 channels on 8 x 8 pixels.
    without = (tuple(row != 1 for row in range(len(normal))), reduction)
    assert counter.forward() - counter.forward(without) == 2 * 64 * (9 * 4 + 4 * 4)


def test_an_adaptation_counts_its_steps_as_they_were_run():
    edge = (EdgeOperation(0, "skip_connect", 1.0),)
    genotype = Genotype(normal=(edge, edge), reduction=(edge, edge))
    one_shot, task = Counter(SMALL, n_way=3), Counter(SMALL, genotype, n_way=3)
    dense = one_shot.everything()
    sparse = (tuple(row % 2 == 0 for row in range(len(dense[0]))), dense[1])
    flops = adaptation_flops(SMALL, [dense, dense, sparse], genotype, weight_steps=4, batch=2, support=3, n_way=3)
    assert flops.architecture == 2 * (one_shot.learning(dense) + one_shot.learning(sparse))
    assert flops.weights == 2 * 4 * task.learning()
    assert flops.rest == 3 * (one_shot.forward(dense) + 2 * task.forward())


@pytest.mark.parametrize(
    ("value", "at_least", "expected"),
    [(1.9, False, "aim"), (3.0, False, "bar"), (4.1, False, "missed"), (math.nan, False, "missed"), (5, True, "aim")],
)
def test_a_verdict_is_the_better_of_aim_and_bar(value, at_least, expected):
    assert verdict([Goal(value, 4.0, 2.0, at_least=at_least)]) == expected


def test_a_row_with_two_numbers_is_as_good_as_the_worse():
    assert verdict([Goal(1.0, 2.0, 1.0), Goal(4.0, 5.0, 2.0)]) == "bar"
    assert verdict([]) == ""


def test_the_limit_is_the_time_of_the_flop_at_the_rate_of_all_cores():
    rows = untrained_rows(Alone({1: [RESULT], 2: [replace(RESULT, seconds=21.0)]}, []), RATES)
    assert [row.limit_seconds for row in rows] == [10.0, 10.0]
    assert [row.times_limit for row in rows] == [3.0, 2.1]
    assert [row.verdict for row in rows] == ["", "bar"]  # one thread is told, not judged


def test_a_scaled_row_says_so():
    scaled = replace(RESULT, scaled=True, architecture_steps_run=5, weight_steps_run=6)
    (row,) = untrained_rows(Alone({2: [scaled]}, []), RATES)
    assert "SCALED from 5 + 6 steps" in row.measured


def test_the_bundled_rows_are_judged_by_seconds():
    rows = bundled_rows(Alone({1: [replace(RESULT, seconds=1.9)]}, [5.0, 7.0, 3.0]), RATES)
    assert [row.verdict for row in rows] == ["aim", "bar"]


def test_two_that_take_as_long_as_one_are_twice_the_throughput():
    pair = Pair(one=(3.0, 3.0, 3.0), two=(3.0, 4.0, 1.0))
    assert pair.ratio == 2.0
    assert [row.verdict for row in pair_rows(Pairs(pair, pair, Pair((3.0,), (4.0,)), 10, 50), RATES)] == [
        "aim",
        "aim",
        "",  # through a server one Adapt alone has all cores
    ]


def test_the_pace_of_a_phase_leaves_out_its_first_step():
    watch = Watch(started=0.0, ends={"architecture": [5.0, 6.0, 7.0], "weights": []})
    assert watch.seconds("architecture") == 3.0
    watch.note(StepReport("weights", 4, 4, loss=1.0, temperature=1.0, accuracy=1.0))
    assert len(watch.ends["weights"]) == 1


def test_the_table_names_the_machine_and_marks_what_is_missed():
    row = Row("Adapt", "9.0 s", "6 s", "2 s", (Goal(9.0, 6.0, 2.0),), limit_seconds=0.05, times_limit=180.0)
    text = markdown({**machine.describe(), "data": "omniglot"}, RATES, [row], quick=True)
    assert "| Adapt | 6 s | 2 s | 9.0 s | 50.00 ms | 180.0 x | **no** |" in text
    assert "These are not results" in text
    assert machine.describe()["processor"] in text


def test_the_fastest_of_several_probes_is_the_rate():
    slow = machine.Rates(one=10.0, all=20.0, one_median=9.0, all_median=18.0)
    assert machine.fastest(slow, RATES).all == 100.0
    assert machine.fastest(slow, RATES).all_median == 49.0


def test_an_adaptation_process_reports_what_it_ran():
    (result,) = run(Order(architecture_steps=2, weight_steps=1, path="plain", n_query=1))
    assert result.engine == "plain"
    assert (result.architecture_steps_run, result.weight_steps_run) == (2, 1)
    assert not result.scaled
    assert 0 < result.architecture_flops < result.flops
    assert len(result.logits) == 20
