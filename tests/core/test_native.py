"""The compiled engine gives what PyTorch's operations give; where it cannot run, it says so."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metanas import native
from metanas.native import network as engine
from metanas.network import Network, channels_last
from metanas.relaxation import initial_architecture, relax
from metanas.space import CELL_TYPES, DEFAULT_OPERATIONS, EdgeOperation, Genotype, SearchSpace

BOTH = ((), (0,))
OPERATIONS = (*DEFAULT_OPERATIONS, "conv_5x5", "sep_conv_5x5", "dil_conv_5x5")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = native.get_threads()
    yield
    native.set_threads(before)


def pass_through(
    network: Network, images: Tensor, *, on_engine: bool, run_above: float = 0.0, temperature: float = 0.7
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Features, and the gradient of every parameter and every architecture parameter."""
    generator = torch.Generator().manual_seed(5)
    architecture = {
        name: torch.randn(value.shape, generator=generator).requires_grad_()
        for name, value in initial_architecture(network.space).items()
    }
    weights = {
        name: mixture.rows for name, mixture in relax(architecture, network.space, temperature=temperature).items()
    }
    network.zero_grad(set_to_none=True)
    if on_engine:
        assert engine.can_run(network, images, weights)
    features = network(images, weights, skip_below=run_above, twice_differentiable=not on_engine)
    assert (network.engine is not None) or not on_engine
    target = torch.randn(features.shape, generator=generator)
    (features * target).sum().backward()  # type: ignore[no-untyped-call]
    named = {**dict(network.named_parameters()), **architecture}
    return features.detach(), {name: value.grad for name, value in named.items()}


def assert_equal_passes(space: SearchSpace, *, batch: int, seed: int = 0, run_above: float = 0.0) -> None:
    torch.manual_seed(seed)
    network = Network(space)
    channels_last(network)
    images = torch.rand(batch, space.in_channels, space.image_size, space.image_size)
    expected, expected_gradients = pass_through(network, images, on_engine=False, run_above=run_above)
    features, gradients = pass_through(network, images, on_engine=True, run_above=run_above)
    # Means over an image of values about 1, which may cancel.
    assert (features - expected).abs().max() <= 2e-5 * expected.abs().max().clamp(min=0.1)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        other = expected_gradients[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            assert gradient.stride() == other.stride(), name
            assert (gradient - other).abs().max() <= 1e-3 * other.abs().max() + 1e-6, name


def equal_weights(network: Network) -> dict[str, Tensor]:
    mixtures = relax(initial_architecture(network.space), network.space, temperature=1.0)
    return {name: mixture.rows for name, mixture in mixtures.items()}


@pytest.mark.parametrize("reduction_cells", BOTH)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_alone_gives_the_features_and_gradients_of_pytorch(
    operation: str, reduction_cells: tuple[int, ...]
) -> None:
    space = SearchSpace(
        channels=5, image_size=9, cells=2, nodes=2, reduction_cells=reduction_cells, operations=(operation,)
    )
    assert_equal_passes(space, batch=3)


@pytest.mark.parametrize("channels", [2, 16, 17, 28, 40])
def test_any_number_of_channels_gives_the_features_and_gradients_of_pytorch(channels: int) -> None:
    assert_equal_passes(SearchSpace(channels=channels, image_size=8, cells=2, reduction_cells=(1,)), batch=2)


def test_images_that_are_reduced_to_a_pixel() -> None:
    operations = ("conv_1x5_5x1", "skip_connect")
    space = SearchSpace(channels=4, image_size=4, cells=2, nodes=2, reduction_cells=(0, 1), operations=operations)
    assert_equal_passes(space, batch=3)


@pytest.mark.parametrize(("image_size", "reduction_cells"), [(47, (1,)), (47, (0,)), (84, (0,))])
def test_images_of_many_bands_of_lines(image_size: int, reduction_cells: tuple[int, ...]) -> None:
    space = SearchSpace(channels=4, in_channels=3, image_size=image_size, cells=2, reduction_cells=reduction_cells)
    assert_equal_passes(space, batch=3)


@pytest.mark.parametrize("image_size", [7, 12, 21])
@pytest.mark.parametrize("batch", [2, 3, 5])
def test_colour_images_of_any_size_and_batches_of_any_length(image_size: int, batch: int) -> None:
    assert_equal_passes(SearchSpace(channels=6, in_channels=3, image_size=image_size), batch=batch)


def test_operations_that_are_not_run_get_no_gradient() -> None:
    space = SearchSpace(channels=6, image_size=12)
    assert_equal_passes(space, batch=4, run_above=0.1)
    network = Network(space)
    _, gradients = pass_through(network, torch.rand(4, 1, 12, 12), on_engine=True, run_above=0.1)
    assert any(gradient is None for gradient in gradients.values())


def test_a_cell_and_an_input_that_nothing_reads_get_no_gradient() -> None:
    node = (EdgeOperation(0, "conv_3x3", 0.7), EdgeOperation(0, "max_pool_3x3", 0.3))
    space = SearchSpace(channels=4, image_size=12, nodes=1)
    torch.manual_seed(0)
    network = Network(space, Genotype(normal=(node,), reduction=(node,)))
    images, gradients = torch.rand(3, 1, 12, 12), []
    for on_engine in (False, True):
        network.zero_grad(set_to_none=True)
        network(images, twice_differentiable=not on_engine).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    plain, fast = gradients
    without = [name for name, gradient in plain.items() if gradient is None]
    # The last cell reads the one before the one before it, and so on: cells 0 and 2 and all second inputs are unused.
    assert "cells.0.first_input.conv.weight" in without
    assert "cells.3.second_input.conv.weight" in without
    assert without == [name for name, gradient in fast.items() if gradient is None]
    for name, gradient in fast.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-6)


def test_a_node_without_any_operation_is_an_error() -> None:
    network = Network(SearchSpace(channels=4, image_size=8))
    weights = {name: torch.full((63,), 1e-5) for name in CELL_TYPES}
    with pytest.raises(RuntimeError, match="no operation of node 0 is run; the largest of its weights must be"):
        network(torch.rand(2, 1, 8, 8), weights, skip_below=1e-4)


def test_weights_that_are_not_one_for_each_row_are_refused() -> None:
    network = Network(SearchSpace(channels=4, image_size=8))
    weights = {name: value[:-1] for name, value in equal_weights(network).items()}
    run = {name: [True] * 63 for name in CELL_TYPES}
    with pytest.raises(ValueError, match=r"weights of normal must be \(63,\), got \(62,\)"):
        network(torch.rand(2, 1, 8, 8), weights, run=run)


def test_weights_of_double_precision_are_left_to_pytorch() -> None:
    network = Network(SearchSpace(channels=4, image_size=8))
    weights = {name: value.double() for name, value in equal_weights(network).items()}
    assert not engine.can_run(network, torch.rand(2, 1, 8, 8), weights)


def test_other_spaces_of_cells_nodes_and_inputs() -> None:
    space = SearchSpace(
        channels=4, image_size=11, cells=5, nodes=4, reduction_cells=(0, 1, 4), inputs_per_node=3, stem_multiplier=2
    )
    assert_equal_passes(space, batch=3)


def test_the_number_of_threads_changes_no_bit() -> None:
    torch.manual_seed(0)
    network = Network(SearchSpace(channels=8, image_size=14))
    images = torch.rand(7, 1, 14, 14)
    native.set_threads(1)
    features, gradients = pass_through(network, images, on_engine=True)
    for threads in (2, 3, 4):
        native.set_threads(threads)
        again, gradients_again = pass_through(network, images, on_engine=True)
        assert torch.equal(features, again)
        for name, gradient in gradients.items():
            other = gradients_again[name]
            assert gradient is None or (other is not None and torch.equal(gradient, other)), name


def test_a_second_backward_pass_is_refused_and_not_wrong() -> None:
    network = Network(SearchSpace(channels=4, image_size=8))
    weights = {
        name: value.rows
        for name, value in relax(initial_architecture(network.space), network.space, temperature=1.0).items()
    }
    loss = network(torch.rand(2, 1, 8, 8), weights).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by a backward pass; run it again"):
        loss.backward()


def test_two_forward_passes_before_their_backward_passes_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    network = Network(SearchSpace(channels=4, image_size=8))
    weights = {
        name: value.rows
        for name, value in relax(initial_architecture(network.space), network.space, temperature=1.0).items()
    }
    first, second = torch.rand(2, 1, 8, 8), torch.rand(5, 1, 8, 8)

    def gradient(*batches: Tensor) -> Tensor:
        network.zero_grad(set_to_none=True)
        losses = [network(images, weights).square().sum() for images in batches]
        for loss in losses:
            loss.backward()
        assert network.stem.weight.grad is not None
        return network.stem.weight.grad.clone()

    torch.testing.assert_close(gradient(first, second), gradient(first) + gradient(second))


def test_a_copy_of_a_network_has_an_engine_of_its_own() -> None:
    network = Network(SearchSpace(channels=4, image_size=8))
    images = torch.rand(2, 1, 8, 8)
    features, _ = pass_through(network, images, on_engine=True)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.stem.weight.mul_(torch.rand_like(other.stem.weight))
    changed, _ = pass_through(other, images, on_engine=True)
    again, _ = pass_through(network, images, on_engine=True)
    assert torch.equal(features, again)
    assert not torch.equal(features, changed)


def test_weights_that_are_not_finite_do_not_vanish() -> None:
    network = Network(SearchSpace(channels=4, image_size=8))
    with torch.no_grad():
        network.stem.weight[0, 0, 0, 0] = float("nan")
    features, _ = pass_through(network, torch.rand(2, 1, 8, 8), on_engine=True)
    assert features.isnan().any()


def test_steps_on_the_engine_stay_with_steps_in_double_precision() -> None:
    # Where a pixel lies within rounding of a kink of ReLU or of max pooling, any float32 may take the other side.
    distances = [distance_from_double_precision(seed) for seed in range(6)]
    assert sorted(distances)[4] <= 1e-5, distances
    assert max(distances) <= 0.1, distances


def distance_from_double_precision(seed: int) -> float:
    """Of the features after four steps, against their largest value."""
    torch.manual_seed(seed)
    space = SearchSpace(channels=8, image_size=12)
    start = Network(space)
    channels_last(start)
    alphas = {name: 2.0 * torch.randn(value.shape) for name, value in initial_architecture(space).items()}
    images, target = torch.rand(15, 1, 12, 12), torch.randn(15, space.features)
    outputs = {}
    for kind in (torch.float32, torch.float64):
        network = copy.deepcopy(start).to(kind)
        architecture = {name: value.to(kind, copy=True).requires_grad_() for name, value in alphas.items()}
        learned = [*network.parameters(), *architecture.values()]
        for _ in range(5):
            mixtures = relax(architecture, space, temperature=0.7)
            features = network(images.to(kind), {name: mixture.rows for name, mixture in mixtures.items()})
            outputs[kind] = features.detach().double()
            gradients = torch.autograd.grad((features * target.to(kind)).sum() / 15, learned, allow_unused=True)
            with torch.no_grad():
                for value, gradient in zip(learned, gradients, strict=True):
                    if gradient is not None:
                        value -= 0.01 * gradient
        assert (network.engine is None) == (kind is torch.float64)
    expected = outputs[torch.float64]
    return ((outputs[torch.float32] - expected).abs().max() / expected.abs().max()).item()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


PRINT_STATE = "from metanas import native; state = native.state(); print(state.used, state.reason)"


def test_without_a_compiler_the_log_says_that_it_is_slower_and_why(tmp_path: Path) -> None:
    done = run_python(PRINT_STATE, CC="no-such-compiler", METANAS_CACHE=str(tmp_path))
    assert done.stdout.startswith("False no C compiler: 'no-such-compiler' is not found; install gcc or clang")
    assert "PyTorch's slower operations are" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1 && exit 0\necho "out of order" >&2\nexit 1\n')
    broken.chmod(0o755)
    done = run_python(PRINT_STATE, CC=str(broken), METANAS_CACHE=str(tmp_path / "cache"))
    assert done.stdout == "False out of order\n"
    assert list((tmp_path / "cache").iterdir()) == []


def test_it_is_built_once_and_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = run_python(PRINT_STATE, METANAS_CACHE=str(tmp_path))
        assert done.stdout.startswith("True "), done.stderr
    (library,) = tmp_path.iterdir()
    assert library.suffix == ".so"
    done = run_python(PRINT_STATE, METANAS_CACHE=str(tmp_path), CC="no-such-compiler")
    assert done.stdout == f"True {library}\n"  # as in a container that was built with a compiler and runs without
    whole = library.read_bytes()
    for damaged in (whole[:5000], bytes(len(whole))):
        library.write_bytes(damaged)
        done = run_python(PRINT_STATE, METANAS_CACHE=str(tmp_path))
        assert done.stdout == f"True {library}\n"
        assert "is damaged" in done.stderr
        assert library.read_bytes()[:4] == b"\x7fELF"
        assert library.stat().st_size == len(whole)


def test_a_folder_that_cannot_be_written_is_named() -> None:
    done = run_python(PRINT_STATE, METANAS_CACHE="/proc/nope")
    assert done.stdout.startswith("False it cannot be kept in /proc/nope (")
    assert "name a folder in METANAS_CACHE that can be" in done.stdout


@pytest.mark.parametrize("value", ["0", "off"])
def test_it_can_be_switched_off(value: str) -> None:
    done = run_python(PRINT_STATE, METANAS_NATIVE=value)
    assert done.stdout == f"False switched off by METANAS_NATIVE={value}\n"
