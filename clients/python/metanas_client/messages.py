"""The server's answers as frozen dataclasses: nothing of protobuf reaches the user.

    task_info     proto Task              ->  TaskInfo, with Genotype and Preprocessing
    predictions   proto ClassifyResponse  ->  a Prediction for each image

Pure functions. It does not know how the messages travel.
"""

from dataclasses import dataclass

from metanas_client.errors import ServerError
from metanas_proto.v1 import few_shot_pb2 as pb


@dataclass(frozen=True)
class EdgeOperation:
    """One operation that survived pruning."""

    input: int
    """0 and 1: the cell's inputs; 2, 3, ...: its own nodes."""
    operation: str
    """For example ``sep_conv_3x3``."""
    weight: float
    """Its constant in the node's sum, above 0."""


@dataclass(frozen=True)
class NodeGenotype:
    """One intermediate node of a cell."""

    inputs: tuple[EdgeOperation, ...]
    """Never empty."""


@dataclass(frozen=True)
class CellGenotype:
    """One cell: its intermediate nodes, in order."""

    nodes: tuple[NodeGenotype, ...]


@dataclass(frozen=True)
class Genotype:
    """The architecture that survived pruning, one cell of each type."""

    normal: CellGenotype
    reduction: CellGenotype


@dataclass(frozen=True)
class Preprocessing:
    """What the server does to every image before the network sees it."""

    channels: int
    """1: converted to grey; 3: to RGB."""
    height: int
    """Pixels after resizing."""
    width: int
    """Pixels after resizing."""
    invert: bool
    """True: 255 - value, so that dark ink on white paper becomes bright."""


@dataclass(frozen=True)
class TaskInfo:
    """What the server knows about a learnt task."""

    task_id: str
    class_names: tuple[str, ...]
    """In the order of the support set."""
    genotype: Genotype
    parameter_count: int
    """Of the task network, head included."""
    one_shot_parameter_count: int
    """Of the network that it was pruned from, head included."""
    architecture_steps: int
    """Gradient steps on weights and architecture."""
    weight_steps: int
    """Gradient steps on the weights of the pruned network."""
    support_accuracy: float
    """Fraction of support images that the finished network classifies right."""
    adapt_seconds: float
    """Time that the adaptation ran, waiting in the queue not counted."""
    created_unix_seconds: float
    support_image_count: int
    preprocessing: Preprocessing
    warnings: tuple[str, ...]
    """What fell back or was left out while the task was learnt; empty when nothing was."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    class_name: str
    """The most probable class."""
    probability: float
    """Its probability."""
    probabilities: dict[str, float]
    """Every class of the task, most probable first; they sum to 1."""


def task_info(task: pb.Task) -> TaskInfo:
    """Turn the contract's task into ours."""
    return TaskInfo(
        task_id=task.task_id,
        class_names=tuple(task.class_names),
        genotype=Genotype(normal=_cell(task.genotype.normal), reduction=_cell(task.genotype.reduction)),
        parameter_count=task.parameter_count,
        one_shot_parameter_count=task.one_shot_parameter_count,
        architecture_steps=task.architecture_steps,
        weight_steps=task.weight_steps,
        support_accuracy=task.support_accuracy,
        adapt_seconds=task.adapt_seconds,
        created_unix_seconds=task.created_unix_seconds,
        support_image_count=task.support_image_count,
        preprocessing=Preprocessing(
            channels=task.preprocessing.channels,
            height=task.preprocessing.height,
            width=task.preprocessing.width,
            invert=task.preprocessing.invert,
        ),
        warnings=tuple(task.warnings),
    )


def predictions(response: pb.ClassifyResponse, *, image_count: int) -> list[Prediction]:
    """Turn the contract's answer into one prediction for each image, in order.

    Raises:
        ServerError: not one answer for each image, or an answer without classes.
    """
    if len(response.classifications) != image_count:
        raise ServerError(
            f"the server gave {len(response.classifications)} answers for {image_count} images; "
            "check that it is of this client's version"
        )
    return [_prediction(classification) for classification in response.classifications]


def _prediction(classification: pb.Classification) -> Prediction:
    if not classification.classes:
        raise ServerError("the server gave an answer without classes; check that it is of this client's version")
    # The contract promises this order; sorting again costs nothing and keeps our own promise.
    ranked = sorted(classification.classes, key=lambda entry: -entry.probability)
    return Prediction(
        class_name=ranked[0].class_name,
        probability=ranked[0].probability,
        probabilities={entry.class_name: entry.probability for entry in ranked},
    )


def _cell(cell: pb.CellGenotype) -> CellGenotype:
    return CellGenotype(nodes=tuple(_node(node) for node in cell.nodes))


def _node(node: pb.NodeGenotype) -> NodeGenotype:
    return NodeGenotype(
        inputs=tuple(
            EdgeOperation(input=edge.input, operation=edge.operation, weight=edge.weight) for edge in node.inputs
        )
    )
