"""What one request to learn a task may ask for.

LearningLimits   of the server; ``check_memory`` tells whether an adaptation process has the memory
"""

from dataclasses import dataclass

from metanas_serving.errors import SupportTooLargeError
from metanas_serving.memory import BASE_BYTES
from metanas_serving.options import OptionLimits
from metanas_serving.support import SupportLimits


@dataclass(frozen=True, slots=True)
class LearningLimits:
    """What one request may ask for."""

    options: OptionLimits
    support: SupportLimits
    max_upload_bytes: int
    memory_bytes: int | None = None
    """Of an adaptation process; None: no bound."""
    image_bytes: int = 0
    """What each image of a support set takes of it while it is learnt."""

    def check_memory(self, images: int) -> None:
        """Return if an adaptation process has the memory for so many images.

        Raises:
            SupportTooLargeError: it has not.
        """
        if self.memory_bytes is None:
            return
        most = max(0, (self.memory_bytes - BASE_BYTES) // self.image_bytes)
        if images > most:
            mega = 1024 * 1024
            raise SupportTooLargeError(
                f"{images} support images would take some {(BASE_BYTES + images * self.image_bytes) // mega} MiB to "
                f"learn, an adaptation process of this server may have {self.memory_bytes // mega} "
                f"(--worker-memory-mb), enough for {most}; send fewer images"
            )
