"""A network of cells on the compiled engine: one autograd node from images and weights to features.

    Engine      a network's description in the form that the engine reads
    features    what ``Network.forward`` returns in training mode, in less time

``Network.forward`` is the definition; ``can_run`` says where this may take its place: training mode, float32, on a
CPU, ordinary autograd. Not here: frozen statistics, DropPath, derivatives of derivatives, vmap. Those
run on PyTorch's operations.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C import _functorch

from metanas.native.library import get_threads, library
from metanas.operations import (
    Factorized5x5,
    FactorizedReduction,
    Operation,
    Pooling,
    Projection,
    SeparableConv,
    Skip,
)
from metanas.space import CELL_INPUTS, CELL_TYPES, REDUCTION, SearchSpace

if TYPE_CHECKING:
    from metanas.network import Cell, CellPlan, Network

MAX_POOL, MEAN_POOL, SKIP, FACTORIZED, SEPARABLE, HALVING = range(6)
MAX_INPUT_GROUPS = 16
"""How many tensors of C channels a cell's input may be made of: half of MAX_TAPS of kernels.h."""

# One parameter as the engine reads it: its values, its gradient, four strides.
_PARAMETER = np.dtype([("data", np.uintp), ("grad", np.uintp), ("strides", np.int64, (4,))])


class _Owner(NamedTuple):
    """What a parameter belongs to: nothing in particular, an input of a cell or a row of its plan."""

    cell: int | None = None
    source: int | None = None
    row: int | None = None


class Engine:
    """The engine's side of one network: what it is made of, and room to work in."""

    def __init__(self, network: "Network", loaded: ctypes.CDLL) -> None:
        self.loaded = loaded
        space = network.space
        self.parameters: list[Tensor] = []
        self.space = space
        self.plans: dict[str, CellPlan] = {}
        self.owners: list[_Owner] = []
        stem = self._add(network.stem.weight, network.stem_norm.weight, network.stem_norm.bias)
        cells: list[int] = []
        border = 2
        for number, (cell_type, module) in enumerate(zip(space.cell_types, network.cells, strict=True)):
            cell = cast("Cell", module)
            self.plans[cell_type] = cell.plan
            rows: list[int] = []
            first, second = _input(cell.first_input), _input(cell.second_input)
            inputs = [
                self._add(*of_input, owner=_Owner(number, source=source))
                for source, of_input in enumerate((first, second))
            ]
            for index, row in enumerate(cell.plan):
                kind, kernel, rounds, dilation, weights = _row(cell.operation(index))
                border = max(border, kernel // 2 * dilation)
                at = self._add(*weights, owner=_Owner(number, row=index))
                rows += [row.node, row.source, kind, kernel, rounds, dilation, at]
            halves = isinstance(cell.first_input, FactorizedReduction)
            reduces = cell_type == REDUCTION
            cells += [reduces, halves, *inputs, CELL_TYPES.index(cell_type), len(cell.plan), *rows]
        header = [
            space.channels, space.in_channels, space.image_size, space.stem_multiplier, space.nodes, space.cells,
            border, stem,
        ]  # fmt: skip
        self.spec = np.array([*header, *cells], dtype=np.int32)
        self.handle = loaded.metanas_create(self.spec.ctypes.data)
        self._spare: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a network makes an engine of its own."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.loaded.metanas_destroy(self.handle)

    def _add(self, *parameters: Tensor | None, owner: "_Owner | None" = None) -> int:
        first = len(self.parameters)
        for parameter in parameters:
            assert parameter is not None
            self.parameters.append(parameter)
            self.owners.append(owner or _Owner())
        return first

    def used(self, run: Mapping[str, Sequence[bool]]) -> list[bool]:
        """Whether the output depends on each parameter.

        Raises:
            RuntimeError: a node of which no operation is run.
        """
        read: dict[str, set[int]] = {}
        for cell_type, plan in self.plans.items():
            rows = [row for row, runs in zip(plan, run[cell_type], strict=True) if runs]
            for node in range(self.space.nodes):
                if all(row.node != node for row in rows):
                    raise RuntimeError(f"no operation of node {node} is run; the largest of its weights must be")
            read[cell_type] = {row.source for row in rows}
        types = self.space.cell_types
        reached = [False] * len(types)
        reached[-1] = True
        for cell in reversed(range(len(types))):
            for source in range(CELL_INPUTS):
                if reached[cell] and source in read[types[cell]] and cell - CELL_INPUTS + source >= 0:
                    reached[cell - CELL_INPUTS + source] = True
        return [
            owner.cell is None
            or (
                reached[owner.cell]
                and (owner.source is None or owner.source in read[types[owner.cell]])
                and (owner.row is None or bool(run[types[owner.cell]][owner.row]))
            )
            for owner in self.owners
        ]

    def workspace(self, floats: int) -> Tensor:
        """Room for one pass. The last one's is taken again, as fresh memory is slow."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.numel() >= floats:
            return spare
        return torch.empty(floats, dtype=torch.float32)

    def give_back(self, workspace: Tensor) -> None:
        """Keep the room for the next pass."""
        self._spare = workspace


def _input(operation: Operation) -> tuple[Tensor, ...]:
    if isinstance(operation, FactorizedReduction):
        return operation.even.weight, operation.odd.weight
    assert isinstance(operation, Projection)
    return (operation.conv.weight,)


def _row(operation: Operation) -> tuple[int, int, int, int, tuple[Tensor, ...]]:
    """Kind, kernel size, rounds, dilation and weights."""
    match operation:
        case Pooling():
            return (MAX_POOL if operation.kind == "max" else MEAN_POOL), 3, 1, 1, ()
        case Skip():
            return SKIP, 1, 1, 1, ()
        case FactorizedReduction():
            return HALVING, 1, 1, 1, (operation.even.weight, operation.odd.weight)
        case Factorized5x5():
            return FACTORIZED, 5, 1, 1, (operation.row.weight, operation.column.weight)
        case SeparableConv():
            depthwise = [cast(torch.nn.Conv2d, conv) for conv in operation.depthwise]
            pointwise = [cast(torch.nn.Conv2d, conv) for conv in operation.pointwise]
            weights = tuple(conv.weight for conv in (*depthwise, *pointwise))
            return SEPARABLE, depthwise[0].kernel_size[0], len(depthwise), depthwise[0].dilation[0], weights
    raise TypeError(f"the engine does not know {type(operation).__name__}")


def fits(space: SearchSpace) -> bool:
    """Whether the engine knows networks of these sizes."""
    return not space.affine and max(space.stem_multiplier, space.nodes) <= MAX_INPUT_GROUPS


def can_run(network: "Network", images: Tensor, weights: Mapping[str, Tensor]) -> bool:
    """Whether this call may run on the engine."""
    weight = network.stem.weight
    return (
        network.training
        and not network.stem_norm.measuring
        and images.dtype == weight.dtype == torch.float32
        and images.device.type == weight.device.type == "cpu"
        and not images.requires_grad
        and images.shape[1:] == (network.space.in_channels, network.space.image_size, network.space.image_size)
        and len(images) > 0
        and fits(network.space)
        and _functorch.maybe_get_level(weight) == -1
        and all(value.dtype == torch.float32 and value.device.type == "cpu" for value in weights.values())
        and all(_functorch.maybe_get_level(value) == -1 for value in weights.values())
        and _functorch.maybe_get_level(images) == -1
        and library() is not None
    )


def features(
    network: "Network", images: Tensor, weights: Mapping[str, Tensor], run: Mapping[str, Sequence[bool]]
) -> Tensor:
    """Images to features in training mode: ``Network.forward``.

    Raises:
        RuntimeError: a node of which no operation is run; a second backward pass through one forward pass.
        ValueError: weights that are not one for each row of the plan.
    """
    engine = network.engine
    if engine is None or engine.parameters[0] is not network.stem.weight:
        loaded = library()
        assert loaded is not None
        engine = network.engine = Engine(network, loaded)
    used = engine.used(run)
    for cell_type, plan in engine.plans.items():
        if weights[cell_type].shape != (len(plan),):
            raise ValueError(f"weights of {cell_type} must be ({len(plan)},), got {tuple(weights[cell_type].shape)}")
    rows = [np.array(run[cell_type], dtype=np.uint8) for cell_type in CELL_TYPES]
    return cast(
        Tensor,
        _Features.apply(  # type: ignore[no-untyped-call]
            engine, rows, used, images, *(weights[name] for name in CELL_TYPES), *engine.parameters
        ),
    )


class _Call:
    """The arguments that the forward and the backward pass share."""

    def __init__(self, engine: Engine, run: list[NDArray[np.uint8]], used: list[bool], weights: list[Tensor]) -> None:
        self.engine, self.run, self.used = engine, run, used
        self.weights = [value.detach().contiguous() for value in weights]
        self.weight_pointers = _pointers(value.data_ptr() for value in self.weights)
        self.run_pointers = _pointers(value.ctypes.data for value in run)
        self.workspace: Tensor | None = None

    def parameters(self, values: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> NDArray[Any]:
        table = np.zeros(len(values), dtype=_PARAMETER)
        for index, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            if self.used[index]:
                strides = value.stride()
                table[index] = (
                    value.data_ptr(),
                    0 if gradient is None else gradient.data_ptr(),
                    strides + (0,) * (4 - len(strides)),
                )
        return table


def _pointers(values: Any) -> NDArray[np.uintp]:
    return np.array(list(values), dtype=np.uintp)


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        run: list[NDArray[np.uint8]],
        used: list[bool],
        images: Tensor,
        normal: Tensor,
        reduction: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        call = _Call(engine, run, used, [normal, reduction])
        batch = len(images)
        bytes_needed = engine.loaded.metanas_workspace(engine.handle, batch, call.run_pointers.ctypes.data)
        workspace = engine.workspace(bytes_needed // 4)
        features = images.new_empty(batch, int(engine.spec[4] * engine.spec[0]))
        strides = np.array(images.stride(), dtype=np.int64)
        table = call.parameters(parameters, [None] * len(parameters))
        engine.loaded.metanas_forward(
            engine.handle, batch, get_threads(), images.data_ptr(), strides.ctypes.data, table.ctypes.data,
            call.weight_pointers.ctypes.data, call.run_pointers.ctypes.data, features.data_ptr(), workspace.data_ptr(),
        )  # fmt: skip
        if any(ctx.needs_input_grad):
            call.workspace = workspace
            ctx.call, ctx.batch = call, batch
            ctx.save_for_backward(*parameters)
        else:
            engine.give_back(workspace)
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        engine = call.engine
        if call.workspace is None:
            raise RuntimeError("the engine's forward pass has been used up by a backward pass; run it again")
        workspace, call.workspace = call.workspace, None
        parameters: tuple[Tensor, ...] = ctx.saved_tensors
        wanted = ctx.needs_input_grad[6:]
        gradients = [
            torch.empty_like(value) if used and needed else None
            for value, used, needed in zip(parameters, call.used, wanted, strict=True)
        ]
        slopes = [torch.zeros_like(value) for value in call.weights]
        table = call.parameters(parameters, gradients)
        gradient = gradient.contiguous()
        slope_pointers = _pointers(value.data_ptr() for value in slopes)
        engine.loaded.metanas_backward(
            engine.handle, ctx.batch, get_threads(), table.ctypes.data, call.weight_pointers.ctypes.data,
            call.run_pointers.ctypes.data, gradient.data_ptr(), slope_pointers.ctypes.data, workspace.data_ptr(),
        )  # fmt: skip
        engine.give_back(workspace)
        # A cell type that no cell has gets no gradient, as on PyTorch's operations.
        of_types = [slope if name in engine.plans else None for name, slope in zip(CELL_TYPES, slopes, strict=True)]
        return None, None, None, None, *of_types, *gradients
