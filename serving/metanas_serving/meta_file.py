"""The file of the meta-model that a server starts from: the one that was asked for, or the bundled one.

It reads bytes and does not know what is in them, so it needs no torch.
"""

from importlib.resources import files

from metanas_serving.config import ServerConfig
from metanas_serving.errors import StartupError

BUNDLED_META = "models/omniglot.pt"
"""The meta-model that comes with this package."""


def read_meta(config: ServerConfig) -> tuple[str, bytes]:
    """The name and content of the meta-model's file.

    Raises:
        StartupError: it cannot be read.
    """
    if config.meta_path is None:
        bundled = files("metanas_serving") / BUNDLED_META
        if not bundled.is_file():
            raise StartupError(f"this installation holds no meta-model ({bundled} is missing); pass --meta meta.pt")
        return str(bundled), bundled.read_bytes()
    try:
        return str(config.meta_path), config.meta_path.read_bytes()
    except OSError as error:
        raise StartupError(
            f"cannot read the meta-model {config.meta_path}: {error.strerror or error}; pass another --meta"
        ) from error
