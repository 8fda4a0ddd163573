"""The server's answers as frozen dataclasses: nothing of protobuf reaches the user.

    genotype      proto Genotype          ->  Genotype
    task_info     proto Task              ->  TaskInfo, with Genotype and Preprocessing
    predictions   proto ClassifyResponse  ->  a Prediction for each image
    ranked        names, probabilities    ->  the Prediction of one image

Pure functions. It does not know how the messages travel.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Literal, TypeAlias

from metanas_client.errors import ServerError

if TYPE_CHECKING:  # the dataclasses serve a device too, where protobuf need not be
    from metanas_proto.v1 import few_shot_pb2 as pb

ExportFormat: TypeAlias = Literal["task_model", "onnx"]
"""Of the file that a server gives of a task."""


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
class AdaptSettings:
    """What a task was learnt with."""

    architecture_steps: int
    """As asked for; ``TaskInfo`` says how many were taken in which phase."""
    weight_steps: int
    learning_rate: float
    """Of the weights."""
    architecture_learning_rate: float
    threshold: float
    """Operations and inputs of a smaller weight were pruned."""
    seed: int


@dataclass(frozen=True)
class BudgetReport:
    """What fitting a network into its budget cost, measured when it was pruned, before its last steps."""

    max_parameters: int | None
    max_multiply_adds: int | None
    multiply_adds: int
    """Of the task network, for one image."""
    unconstrained_parameter_count: int
    """Of the network that the threshold alone would have left."""
    unconstrained_multiply_adds: int
    unconstrained_support_accuracy: float
    """Of that network."""
    support_accuracy: float
    """Of the network that fits."""


@dataclass(frozen=True)
class Trust:
    """What a task knows of its own reliability, from its support set alone."""

    temperature: float
    """Logits were divided by it before the softmax."""
    leave_one_out_accuracy: float | None
    """Fraction of support images classified right by those of the others; None where no class has two shots."""
    least_similarity: float | None
    """Images of less are ``none_of_these``; None: unknown."""


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
    settings: AdaptSettings | None
    """None for a task of an earlier version of the server."""
    version: int
    """1, or one more than that of the task it is an update of."""
    parent_task_id: str
    """The task it is an update of; empty for a first version."""
    first_task_id: str
    """Of all versions of one task the same: the id of the first."""
    budget: BudgetReport | None
    """Where the request set one."""
    trust: Trust
    expires_unix_seconds: float
    """When it is deleted unless it has an alias then; 0: never."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    class_name: str
    """The most probable class."""
    probability: float
    """Its probability."""
    probabilities: dict[str, float]
    """Every class of the task or the top_k, most probable first; all together sum to 1."""
    similarity: float | None = None
    """Cosine, -1 to 1, to the class that the image resembles most; None: unknown."""
    none_of_these: bool | None = None
    """Whether that is too little for any class of the task; None: the task cannot tell."""


@dataclass(frozen=True)
class Timing:
    """Where the server's time for a request went."""

    queue_milliseconds: float
    """Until the message was there and had a thread (0 within a stream), and in line for a processor."""
    decode_milliseconds: float
    compute_milliseconds: float
    batch_images: int = 0
    """The most images, of this call and of others for the task, that were run together; 0: unknown."""


class Predictions(list[Prediction]):
    """The answers to one request, and where the server's time for them went."""

    def __init__(self, answers: Iterable[Prediction], *, timing: Timing) -> None:
        super().__init__(answers)
        self.timing = timing


def task_info(task: "pb.Task") -> TaskInfo:
    """Turn the contract's task into ours."""
    return TaskInfo(
        task_id=task.task_id,
        class_names=tuple(task.class_names),
        genotype=genotype(task.genotype),
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
        settings=_settings(task.settings) if task.HasField("settings") else None,
        version=task.version,
        parent_task_id=task.parent_task_id,
        first_task_id=task.first_task_id,
        budget=_budget(task.budget) if task.HasField("budget") else None,
        trust=_trust(task.trust),
        expires_unix_seconds=task.expires_unix_seconds,
    )


def _budget(budget: "pb.BudgetReport") -> BudgetReport:
    return BudgetReport(
        max_parameters=budget.max_parameters if budget.HasField("max_parameters") else None,
        max_multiply_adds=budget.max_multiply_adds if budget.HasField("max_multiply_adds") else None,
        multiply_adds=budget.multiply_adds,
        unconstrained_parameter_count=budget.unconstrained_parameter_count,
        unconstrained_multiply_adds=budget.unconstrained_multiply_adds,
        unconstrained_support_accuracy=budget.unconstrained_support_accuracy,
        support_accuracy=budget.support_accuracy,
    )


def _trust(trust: "pb.Trust") -> Trust:
    return Trust(
        temperature=trust.temperature or 1.0,
        leave_one_out_accuracy=trust.leave_one_out_accuracy if trust.HasField("leave_one_out_accuracy") else None,
        least_similarity=trust.least_similarity if trust.HasField("least_similarity") else None,
    )


def _settings(settings: "pb.AdaptSettings") -> AdaptSettings:
    return AdaptSettings(
        architecture_steps=settings.architecture_steps,
        weight_steps=settings.weight_steps,
        learning_rate=settings.learning_rate,
        architecture_learning_rate=settings.architecture_learning_rate,
        threshold=settings.threshold,
        seed=settings.seed,
    )


def predictions(response: "pb.ClassifyResponse", *, image_count: int) -> Predictions:
    """Turn the contract's answer into one prediction for each image, in order.

    Raises:
        ServerError: not one answer for each image, or an answer without classes.
    """
    if len(response.classifications) != image_count:
        raise ServerError(
            f"the server gave {len(response.classifications)} answers for {image_count} images; "
            "check that it is of this client's version"
        )
    timing = response.timing
    return Predictions(
        (_prediction(classification) for classification in response.classifications),
        timing=Timing(
            queue_milliseconds=timing.queue_milliseconds,
            decode_milliseconds=timing.decode_milliseconds,
            compute_milliseconds=timing.compute_milliseconds,
            batch_images=timing.batch_images,
        ),
    )


def ranked(
    probabilities: Iterable[tuple[str, float]], *, similarity: float | None = None, none_of_these: bool | None = None
) -> Prediction:
    """The prediction of names with their probabilities; equal ones stay in the order given."""
    best_first = sorted(probabilities, key=itemgetter(1), reverse=True)
    class_name, probability = best_first[0]
    return Prediction(class_name, probability, dict(best_first), similarity, none_of_these)


def _prediction(classification: "pb.Classification") -> Prediction:
    if not classification.classes:
        raise ServerError("the server gave an answer without classes; check that it is of this client's version")
    # The contract promises the order; sorting again costs nothing and keeps our own promise.
    return ranked(
        [(entry.class_name, entry.probability) for entry in classification.classes],
        similarity=classification.similarity if classification.HasField("similarity") else None,
        none_of_these=classification.none_of_these if classification.HasField("none_of_these") else None,
    )


def genotype(found: "pb.Genotype") -> Genotype:
    """Turn the contract's genotype into ours."""
    return Genotype(normal=_cell(found.normal), reduction=_cell(found.reduction))


def _cell(cell: "pb.CellGenotype") -> CellGenotype:
    return CellGenotype(nodes=tuple(_node(node) for node in cell.nodes))


def _node(node: "pb.NodeGenotype") -> NodeGenotype:
    return NodeGenotype(
        inputs=tuple(
            EdgeOperation(input=edge.input, operation=edge.operation, weight=edge.weight) for edge in node.inputs
        )
    )
