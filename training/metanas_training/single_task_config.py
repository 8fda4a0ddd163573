"""One single-task search, as a value.

    SingleTaskConfig   every setting of a TOML file; saved beside what the search produced
    read_config        a TOML file  ->  SingleTaskConfig

The defaults are those of DARTS. What is compared, the sparsification strategy, and the seed are
no settings: all runs of one table share one configuration.

Sources: Liu et al. (DARTS), ICLR 2019, appendix A.1.1; Elsken et al., CVPR 2020, appendix A.1.
"""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanas.errors import InvalidConfigError
from metanas.plain import from_plain, to_plain
from metanas.space import SearchSpace

DARTS_OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


@dataclass(frozen=True, slots=True)
class SingleTaskConfig:
    """Every setting of a search but strategy and seed.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    image_size: int = 32
    """Pixels a side; the images are resized where it is not 32."""
    train_images: int = 0
    """Training images of all classes together, half of them for the architecture; 0: all."""
    test_images: int = 0
    """0: all."""
    crop_padding: int = 4
    """Black pixels on each side before the random crop."""

    channels: int = 16
    cells: int = 8
    reduction_cells: tuple[int, ...] = (2, 5)
    nodes: int = 4
    inputs_per_node: int = 2
    operations: tuple[str, ...] = DARTS_OPERATIONS

    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 0.025
    learning_rate_end: float = 0.001
    """Where the cosine ends."""
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0
    """Largest norm of the gradient of all weights together."""
    head_scale: float = 10.0
    """What the head's rows, the prototypes of the classes, are multiplied by before the first step."""

    architecture_learning_rate: float = 3e-4
    architecture_betas: tuple[float, ...] = (0.5, 0.999)
    architecture_weight_decay: float = 1e-3
    temperature_end: float = 0.05
    """Where the temperature ends that starts at 1, of whatever the strategy makes sparse."""
    fall_epochs: int = 50
    """The temperature has ended its fall after so many epochs."""
    skip_below: float = 0.0
    """While the search runs, operations of a smaller weight are left out, which saves their time."""

    threshold: float = 0.01
    """Of "operations_and_inputs": what has a smaller weight is pruned."""
    statistics_images: int = 1000
    """Training images, not augmented, that the batch-norm statistics of evaluation are measured on."""
    threads: int = 1
    """Torch threads; the bits of the result depend on it."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images", "crop_padding"):
            _check_whole(name, getattr(self, name), least=0)
        for name in ("image_size", "epochs", "fall_epochs", "threads"):
            _check_whole(name, getattr(self, name), least=1)
        for name in ("batch_size", "statistics_images"):
            _check_whole(name, getattr(self, name), least=2)  # batch norm of one image is constant after pooling to 1x1
        for name in ("learning_rate", "learning_rate_end", "gradient_clip", "head_scale", "architecture_learning_rate"):
            _check_number(name, getattr(self, name), above=True)
        for name in ("momentum", "weight_decay", "architecture_weight_decay", "skip_below"):
            _check_number(name, getattr(self, name), above=False)
        if not self.momentum < 1:
            raise InvalidConfigError(f"momentum must be below 1, got {self.momentum}")
        for name, kind, title in (
            ("reduction_cells", int, "whole numbers"),
            ("operations", str, "names"),
            ("architecture_betas", int | float, "numbers"),
        ):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
                raise InvalidConfigError(f"{name} must be a list of {title}, got {values!r}")
        betas = self.architecture_betas
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InvalidConfigError(f"architecture_betas must be two numbers in [0, 1), got {list(betas)}")
        _check_number("temperature_end", self.temperature_end, above=True)
        _check_number("threshold", self.threshold, above=True)
        if not (self.temperature_end <= 1 and self.threshold < 1):
            raise InvalidConfigError(
                f"temperature_end must be at most 1 and threshold below 1, got {self.temperature_end} and "
                f"{self.threshold}"
            )
        if self.fall_epochs > self.epochs:
            raise InvalidConfigError(
                f"fall_epochs must be at most epochs, {self.epochs}, got {self.fall_epochs}: the temperature that is "
                "pruned at must have been reached"
            )
        if self.skip_below >= self.threshold**2:
            raise InvalidConfigError(
                f"skip_below must be under the square of threshold, {self.threshold**2:g}, got {self.skip_below:g}: "
                "what would survive must be run"
            )
        self.space()

    def space(self) -> SearchSpace:
        """The search space of RGB images that the settings describe."""
        return SearchSpace(
            channels=self.channels,
            in_channels=3,
            image_size=self.image_size,
            cells=self.cells,
            reduction_cells=self.reduction_cells,
            nodes=self.nodes,
            inputs_per_node=self.inputs_per_node,
            operations=self.operations,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SingleTaskConfig":
        """The inverse of ``to_dict``.

        Raises:
            InvalidConfigError: an unknown key or a value out of range.
        """
        return from_plain(cls, values)


def read_config(path: Path) -> SingleTaskConfig:
    """Read a TOML file; a setting that it leaves out has the value of DARTS.

    Raises:
        InvalidConfigError: no TOML, an unknown key, or a value out of range.
        OSError: the file cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfigError(f"{path} is no TOML file: {error}") from error
    try:
        return SingleTaskConfig.from_dict(values)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"{path}: {error}") from error


def _check_whole(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_number(name: str, value: Any, *, above: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
        raise InvalidConfigError(f"{name} must be a finite number, got {value!r}")
    if value < 0 or (above and value == 0):
        raise InvalidConfigError(f"{name} must be {'above 0' if above else 'at least 0'}, got {value!r}")
