"""Search space and genotype: what they refuse, and the way to plain values and back."""

import json
from typing import Any

import pytest

from metanas.errors import InvalidConfigError
from metanas.space import EdgeOperation, Genotype, SearchSpace, space_from_dict, space_to_dict

SKIP = EdgeOperation(0, "skip_connect", 0.25)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 0}, "channels must be a whole number of at least 1, got 0"),
        ({"channels": 2.5}, "channels must be a whole number of at least 1, got 2.5"),
        ({"nodes": True}, "nodes must be a whole number of at least 1, got True"),
        ({"image_size": "28"}, "image_size must be a whole number of at least 1, got '28'"),
        ({"inputs_per_node": 0}, "inputs_per_node must be a whole number of at least 1, got 0"),
        ({"channels": 1}, "channels must be at least 2, as reductions halve them, got 1"),
        ({"operations": ()}, "operations must be distinct and at least one"),
        ({"operations": ("conv_3x3", "conv_3x3")}, "operations must be distinct and at least one"),
        ({"reduction_cells": (1, 4)}, r"reduction_cells must name cells 0..3, got \(1, 4\)"),
        ({"reduction_cells": (-1,)}, r"reduction_cells must name cells 0..3, got \(-1,\)"),
    ],
)
def test_a_search_space_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        SearchSpace(**values)


def test_edges_combinations_and_features_of_the_papers_space() -> None:
    space = SearchSpace()
    assert space.edges == ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3))
    assert [space.node_edges(node) for node in range(3)] == [slice(0, 2), slice(2, 5), slice(5, 9)]
    assert space.combinations(0) == ((0, 1),)
    assert space.combinations(1) == ((0, 1), (0, 2), (1, 2))
    assert len(space.combinations(2)) == 6
    assert space.cell_types == ("normal", "reduction", "normal", "reduction")
    assert space.features == 84


def test_a_search_space_survives_json() -> None:
    space = SearchSpace(channels=5, cells=3, reduction_cells=(2,), operations=("conv_3x3", "skip_connect"), nodes=2)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfigError, match="SearchSpace has no setting depth, width"):
        SearchSpace.from_dict({"width": 1, "depth": 2})


@pytest.mark.parametrize("weight", [0.0, -0.5, float("nan"), float("inf")])
def test_a_surviving_operation_needs_a_finite_weight_above_0(weight: float) -> None:
    with pytest.raises(InvalidConfigError, match="the weight of conv_3x3 must be above 0, got"):
        EdgeOperation(0, "conv_3x3", weight)


def test_a_genotype_node_without_inputs_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="node 1 of the reduction cell has lost all its inputs"):
        Genotype(normal=((SKIP,), (SKIP,)), reduction=((SKIP,), ()))


@pytest.mark.parametrize("source", [2, 7, -1])
def test_a_genotype_node_cannot_read_from_itself_or_later(source: int) -> None:
    late = EdgeOperation(source, "conv_3x3", 1.0)
    with pytest.raises(InvalidConfigError, match=f"node 0 of the normal cell cannot read from input {source}"):
        Genotype(normal=((late,),), reduction=((SKIP,),))


def test_a_genotype_survives_json_to_the_bit() -> None:
    odd = EdgeOperation(1, "conv_3x3", 0.1 + 0.2)
    genotype = Genotype(normal=((SKIP, odd), (odd,)), reduction=((odd,), (SKIP,)))
    assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype


def test_genotypes_that_differ_in_weights_only_have_one_structure() -> None:
    one = Genotype(normal=((SKIP,),), reduction=((SKIP,),))
    other = Genotype(normal=((EdgeOperation(0, "skip_connect", 0.9),),), reduction=((SKIP,),))
    third = Genotype(normal=((EdgeOperation(1, "skip_connect", 0.25),),), reduction=((SKIP,),))
    assert one.structure() == other.structure()
    assert one.structure() != third.structure()


def test_a_genotype_may_use_an_operation_twice_on_one_edge_and_survives_json() -> None:
    twice = (EdgeOperation(0, "conv_3x3", 1.0), EdgeOperation(0, "conv_3x3", 0.5))
    genotype = Genotype(normal=(twice,), reduction=((SKIP,),))
    assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype
    assert genotype.structure()[0] == (((0, "conv_3x3"), (0, "conv_3x3")),)


@pytest.mark.parametrize(("k", "counts"), [(1, [2, 3, 4]), (2, [1, 3, 6]), (3, [1, 1, 4]), (9, [1, 1, 1])])
def test_a_node_with_fewer_inputs_than_k_has_one_combination_of_all_of_them(k: int, counts: list[int]) -> None:
    space = SearchSpace(inputs_per_node=k)
    assert [len(space.combinations(node)) for node in range(3)] == counts
    assert space.combinations(0) == (((0,), (1,)) if k == 1 else ((0, 1),))


def test_a_search_space_says_its_kind_in_files_and_without_one_it_is_meant() -> None:
    space = SearchSpace(affine=True)
    values = space_to_dict(space)
    assert values["kind"] == "cells"
    assert space_from_dict(values) == space == space_from_dict(space.to_dict())
