"""Few-shot data: classes of prepared images, held in memory.

    ImageClasses   the classes of one split

Every data set becomes this; what reads it does not know where it came from.
"""

from dataclasses import dataclass

from torch import Tensor

from metanas.preprocessing import Preprocessing
from metanas_training.errors import DatasetError

ROTATIONS = 4
"""By quarters of a turn."""


@dataclass(frozen=True, slots=True)
class ImageClasses:
    """The classes of one split of a data set.

    Raises:
        DatasetError: fewer than two classes, or a class with fewer than two images.
    """

    name: str
    """Of the data set and split, for messages and provenance."""
    class_names: tuple[str, ...]
    images: tuple[Tensor, ...]
    """For each class uint8 ``(images, channels, height, width)``, as ``preprocessing.prepare`` makes them."""
    preprocessing: Preprocessing
    rotations: int = 1
    """4: each class turned by 90, 180 and 270 degrees is a class of its own, as is usual for Omniglot."""
    mirrored: bool = False
    """Whether the mirror image of each class, turned or not, is one more class."""

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise DatasetError(f"{self.name} has {len(self.images)} classes; meta-learning needs at least two")
        for name, images in zip(self.class_names, self.images, strict=True):
            if len(images) < 2:
                raise DatasetError(
                    f"class {name!r} of {self.name} has {len(images)} image; it needs one for the support set and "
                    "one to classify"
                )

    def __len__(self) -> int:
        """Number of classes, rotated and mirrored ones included."""
        return len(self.images) * self.rotations * (2 if self.mirrored else 1)

    @property
    def smallest(self) -> int:
        """Number of images of the smallest class."""
        return min(len(images) for images in self.images)
