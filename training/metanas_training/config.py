"""One run of meta-training, as a value.

    TrainingConfig   every setting; saved beside what it produced
    NetworkConfig    what is trained: a search space, a fixed genotype, or REPTILE's CNN
    Plan             how many steps each phase has
    read_config      a TOML file  ->  TrainingConfig

Phases, in order:

    warm_up   weights only, all operations at equal weight; by the prototype loss, by a classifier over
              all training classes, or by the meta-learner itself (the paper)
    search    after a prototype warm-up of a search space: the architecture learns too while the
              temperature falls once, then the weights of what is left learn on
    joint     Algorithm 1: the meta-learner on weights and, unless it is fixed, architecture

Defaults of the joint phase: Table 4, for Omniglot.
"""

import json
import math
import re
import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from metanas.errors import InvalidConfigError
from metanas.genotypes import GENOTYPES, named_genotype, random_genotype
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas.space import DEFAULT_OPERATIONS, NO_CELLS, ConvBlocks, Genotype, SearchSpace, Space

WarmUp = Literal["prototype", "supervised", "meta"]
Learner = Literal["reptile", "maml", "first_order_maml"]
Kind = Literal["search", "fixed", "conv_blocks"]
Precision = Literal["float32", "bfloat16", "float16"]
MetaOptimizer = Literal["sgd", "adam"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps of each phase."""

    warm_up: int = 0
    search: int = 0
    fall: int = 0
    """The first so many search steps, in which the architecture learns and the temperature falls."""
    joint: int = 0

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or self.fall > self.search:
            raise InvalidConfigError(f"the plan must have no negative steps and no more fall than search: {self}")

    def phases(self) -> tuple[tuple[str, int], ...]:
        """(name, steps) in order."""
        return (("warm_up", self.warm_up), ("search", self.search), ("joint", self.joint))


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What is trained; the sizes of images come from the data."""

    kind: Kind = "search"
    genotype: str = ""
    """Of kind "fixed": a name of ``metanas.genotypes``, a file that ``meta_evaluate.py`` wrote, or "random:SEED"."""
    channels: int = 28
    cells: int = 4
    reduction_cells: tuple[int, ...] = (1, 3)
    nodes: int = 3
    inputs_per_node: int = 2
    operations: tuple[str, ...] = DEFAULT_OPERATIONS
    stem_multiplier: int = 3
    affine: bool = False
    filters: int = 64
    """Of kind "conv_blocks"."""
    blocks: int = 4
    """Of kind "conv_blocks"."""

    def __post_init__(self) -> None:
        _check_choice("network.kind", self.kind, Kind)
        if (self.kind == "fixed") != bool(self.genotype):
            raise InvalidConfigError(
                f'network.genotype belongs to kind "fixed" and is needed there; got {self.genotype!r} '
                f"with kind {self.kind!r}; known names are {', '.join(GENOTYPES)}, random:SEED"
            )
        of_blocks = ("filters", "blocks")
        for one in fields(NetworkConfig):
            meant = one.name in ("kind", "genotype") or (one.name in of_blocks) == (self.kind == "conv_blocks")
            if not meant and getattr(self, one.name) != one.default:
                raise InvalidConfigError(f"network.{one.name} means nothing to kind {self.kind!r}; leave it out")
        if self.kind == "search" and self.affine:
            raise InvalidConfigError("a search needs batch norms without scale and shift: set network.affine to false")

    def fixed_genotype(self) -> Genotype | None:
        """The architecture where it is fixed; None: it is searched.

        Raises:
            InvalidConfigError: an unknown name, or a file that holds no genotype.
        """
        if self.kind == "search":
            return None
        if self.kind == "conv_blocks":
            return NO_CELLS
        if (drawn := re.fullmatch(r"random:(\d{1,9})", self.genotype)) is not None:
            return random_genotype(
                int(drawn[1]), nodes=self.nodes, inputs_per_node=self.inputs_per_node, operations=self.operations
            )
        if not self.genotype.endswith(".json"):
            return named_genotype(self.genotype)
        try:
            values = json.loads(Path(self.genotype).read_text(encoding="utf-8"))
            return Genotype.from_dict(values["genotype"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidConfigError(
                f"{self.genotype} holds no genotype ({error}); take the genotype.json of meta_evaluate.py"
            ) from error

    def space(self, preprocessing: Preprocessing) -> Space:
        """The sizes, for images as ``preprocessing`` makes them."""
        images: dict[str, Any] = {"in_channels": preprocessing.channels, "image_size": preprocessing.height}
        if self.kind == "conv_blocks":
            return ConvBlocks(filters=self.filters, blocks=self.blocks, **images)
        same = {one.name: getattr(self, one.name) for one in fields(SearchSpace) if one.name not in images}
        return SearchSpace(**same, **images)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Every setting of a run.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    data: str = "glyphs"
    image_size: int | None = None
    grey: bool = False
    seed: int = 0
    device: str = "auto"
    """"cpu", "cuda", or "auto": CUDA where there is one."""
    threads: int = 1
    """Torch threads; the bits of the result depend on it."""
    start: str = ""
    """A meta-model to begin with: its weights by name, the scale of its head, and, where both search, its
    architecture. Empty: random weights."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    task: Schedule = field(default_factory=Schedule)
    """How tasks are learned, in the joint phase (``inner_steps`` of it) and later from the meta-model."""
    plan: Plan | None = None
    """None: chosen from ``minutes`` by measuring first."""
    minutes: float = 10.0
    joint_share: float = 0.18
    """Of the minutes, for the joint phase, where the warm-up is another one."""
    warm_up: WarmUp = "prototype"
    pair_classes: int = 64
    """Classes of a batch of the prototype loss, two drawings each; a supervised batch has as many images."""
    normalised_together: int = 0
    """Images of a batch of pairs that batch norm sees at once; 0: all. A support set is about this small."""
    augmentation: float = 0.0
    """How much the images of pairs are distorted (``metanas.augmentation``); of tasks: ``task.augmentation``."""
    recolouring: float = 0.0
    """How much light, contrast and colours of these images are changed (``metanas.augmentation``)."""
    mirroring: bool = False
    """Whether half of these images are mirrored, which makes another class of no photograph."""
    mirrored_classes: bool = False
    """Whether mirror images of the training classes are more training classes, as of letters."""
    rotated_classes: bool = False
    """Whether the training classes turned by 90, 180 and 270 degrees are more training classes."""
    prototype_batches: int = 1
    """Batches of a step of the prototype or supervised loss; processes share them."""
    prototype_learning_rate: float = 1e-3
    search_architecture_travel: float = 1.0
    """How far an architecture parameter can go while the temperature falls: learning rate times steps."""
    search_temperature_end: float = 0.005
    """Where the temperature of the search phase falls to, geometrically from 1."""
    search_skip_below: float = 1e-3
    """Operations of a smaller weight are not run in the search phase."""
    meta_learner: Learner = "reptile"
    meta_batch_size: int = 10
    n_way: int = 20
    train_shots: int = 10
    train_queries: int = 1
    """Query images a class in meta-training tasks; MAML only."""
    inner_steps: int = 5
    meta_learning_rate: float = 1.0
    """Falls linearly to zero over the joint phase (and over a warm-up by the meta-learner), as in Reptile."""
    meta_architecture_learning_rate: float = 0.6
    meta_optimizer: MetaOptimizer = "sgd"
    """MAML: plain steps (equation 8), or Adam."""
    multi_step_loss: bool = False
    """MAML++: the query loss after every inner step counts, at first."""
    learned_rates: bool = False
    """MAML++: a learning rate for each parameter tensor and inner step is meta-learned."""
    spread_rates: bool = False
    """MAML: whether the rates of the inner steps are in the end divided among all steps of ``task``, so that a task
    goes about as far, in smaller steps; else each later step is as large as the last inner one."""
    step_rate_learning_rate: float = 1e-4
    gradient_clip: float = 0.0
    """MAML: largest norm of a task's meta-gradient; 0: any."""
    drop_path: float = 0.0
    together: bool = False
    """Reptile: learn the tasks of a meta-batch in one go, as on a GPU, in place of one by one."""
    precision: Precision = "float32"
    """Of the forward passes of ``together``; bfloat16 on a GPU also of those of the prototype and supervised loss."""
    checkpoint_minutes: float = 5.0
    validations: int = 10
    """How often accuracy on validation classes is measured, over the whole run."""
    validation_tasks: int = 10
    fit_statistics: bool = False
    """Whether batch norm leans in the end on statistics of training images, as far as validation tasks are
    the better for it (``fitting.fitted_prior``)."""
    fit_scale: bool = False
    """Whether the scale of the head is in the end fitted to validation tasks (``fitting.honest_scale``)."""
    variation_strength: float = 0.0
    """How much steps of adaptation reckon with the variation of features within training classes; 0: not at all
    (``metanas.variation``, ``fitting.measured_variation``). Takes plain steps."""
    variation_softening: float = 2.0
    variation_head_rate: float = 0.3
    eval_tasks: int = 5
    eval_shots: int = 1
    eval_queries: int = 15

    def __post_init__(self) -> None:
        for name in (
            "minutes", "checkpoint_minutes", "meta_learning_rate", "prototype_learning_rate", "step_rate_learning_rate",
            "search_architecture_travel", "search_temperature_end", "meta_architecture_learning_rate",
        ):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidConfigError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        for name, least in (
            ("meta_batch_size", 1), ("train_shots", 1), ("inner_steps", 1), ("eval_tasks", 1), ("eval_shots", 1),
            ("threads", 1), ("prototype_batches", 1), ("train_queries", 1), ("validations", 1), ("validation_tasks", 1),
            ("eval_queries", 1), ("n_way", 2), ("pair_classes", 2), ("image_size", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "image_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.normalised_together < 0 or self.normalised_together == 1:
            raise InvalidConfigError(f"normalised_together must be 0 or at least 2, got {self.normalised_together}")
        for name in ("augmentation", "recolouring"):
            if not 0 <= getattr(self, name) <= 10:
                raise InvalidConfigError(f"{name} must be 0..10, got {getattr(self, name)}")
        for name, least in (("variation_strength", 0), ("variation_softening", 1), ("variation_head_rate", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise InvalidConfigError(f"{name} must be at least {least} and finite, got {getattr(self, name)}")
        if self.variation_strength and self.task.optimizer != "sgd":
            raise InvalidConfigError('variation_strength takes plain steps: set optimizer = "sgd" in [task]')
        if not 0 <= self.seed < 2**63:
            raise InvalidConfigError(f"seed must be 0..2^63 - 1, got {self.seed}")
        if not 0 <= self.search_skip_below < self.task.threshold:
            raise InvalidConfigError(
                f"search_skip_below must be at least 0 and under the threshold {self.task.threshold}, "
                f"got {self.search_skip_below}"
            )
        _check_choice("warm_up", self.warm_up, WarmUp)
        _check_choice("meta_learner", self.meta_learner, Learner)
        _check_choice("meta_optimizer", self.meta_optimizer, MetaOptimizer)
        _check_choice("precision", self.precision, Precision)
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidConfigError(f"device must be auto, cpu or cuda, got {self.device!r}")
        if not 0 <= self.drop_path < 1:
            raise InvalidConfigError(f"drop_path must be at least 0 and under 1, got {self.drop_path}")
        if not 0 <= self.joint_share <= 1:
            raise InvalidConfigError(f"joint_share must be 0..1, got {self.joint_share}")
        maml = self.meta_learner != "reptile"
        if maml and (self.together or self.drop_path):
            raise InvalidConfigError("together and drop_path are for meta_learner reptile")
        if maml and self.task.optimizer != "sgd":
            raise InvalidConfigError('MAML takes plain inner steps: set optimizer = "sgd" in [task]')
        if not self.gradient_clip >= 0:
            raise InvalidConfigError(f"gradient_clip must be at least 0, got {self.gradient_clip}")
        only_maml = ("multi_step_loss", "learned_rates", "gradient_clip")
        if not maml and (any(getattr(self, name) for name in only_maml) or self.meta_optimizer == "adam"):
            raise InvalidConfigError(f"{', '.join(only_maml)} and meta_optimizer adam are for MAML")
        if self.spread_rates and not (maml and self.task.steps >= self.inner_steps):
            raise InvalidConfigError(
                f"spread_rates is for MAML, with no more inner_steps ({self.inner_steps}) than a task has steps "
                f"({self.task.steps})"
            )
        if self.drop_path and self.network.kind == "conv_blocks":
            raise InvalidConfigError("drop_path is for networks of cells; conv_blocks has no paths to drop")
        if self.task.relaxation != "softmax" and self.network.kind != "search":
            raise InvalidConfigError(f"task.relaxation {self.task.relaxation} is for a search; this network is fixed")
        if self.task.relaxation != "softmax" and self.task.strategy == "none":
            raise InvalidConfigError(f"task.relaxation {self.task.relaxation} relaxes nothing with task.strategy none")
        batches = self.precision == "bfloat16" and self.device == "cuda"
        if self.precision != "float32" and not self.together and not batches:
            raise InvalidConfigError(
                f"precision {self.precision} is for together = true; warm-up and search take bfloat16, and that "
                "on a GPU only (--device cuda)"
            )
        if self.plan is not None and self.plan.search and (self.network.kind != "search" or self.warm_up == "meta"):
            raise InvalidConfigError("plan.search is for a search space after a prototype or supervised warm-up")

    @property
    def serving_schedule(self) -> Schedule:
        """How tasks are learned from the meta-model: ``task``, its rates divided if they are to be."""
        if not self.spread_rates:
            return self.task
        share = self.inner_steps / self.task.steps
        return replace(
            self.task,
            learning_rate=share * self.task.learning_rate,
            architecture_learning_rate=share * self.task.architecture_learning_rate,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """The inverse of ``to_dict``; what is missing has its default.

        Raises:
            InvalidConfigError: an unknown key, or a value of the wrong type or out of range.
        """
        values = dict(values)
        for name, kind in (("network", NetworkConfig), ("task", Schedule), ("plan", Plan)):
            if values.get(name) is not None:
                values[name] = _build(kind, values[name], where=f"[{name}]")
        config: TrainingConfig = _build(cls, values, where="the configuration")
        return config


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, as ``TrainingConfig.from_dict`` takes them.

    Raises:
        InvalidConfigError: there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidConfigError(f"{path} is not TOML: {error}") from error


def _build(kind: type[Any], values: Any, *, where: str) -> Any:
    """A dataclass from plain values, each of its field's type."""
    if not isinstance(values, dict):
        raise InvalidConfigError(f"{where} must be a table, got {values!r}")
    defaults = {one.name: getattr(kind(), one.name) for one in fields(kind)}
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        raise InvalidConfigError(f"{where} has no setting {', '.join(unknown)}; there are {', '.join(defaults)}")
    return kind(**{name: _of_type(f"{where} {name}", value, defaults[name]) for name, value in values.items()})


def _of_type(name: str, value: Any, default: Any) -> Any:
    """``value`` as the type of ``default``: whole numbers may stand for floats, lists for tuples."""
    if default is None or is_dataclass(default) or value is None:
        return value
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_of_type(f"{name}, entry {place}", one, default[0]) for place, one in enumerate(value, start=1))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise InvalidConfigError(f"{name} must be {type(default).__name__}, got {value!r}")
    return value


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise InvalidConfigError(f"{name} must be {', '.join(get_args(choices))}, got {value!r}")
