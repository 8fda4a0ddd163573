"""An ``.onnx`` file on ONNX Runtime.

    OnnxModel   the file  ->  its Card, and scores of images

ONNX Runtime is imported when a model is opened. Its session computes on ``threads`` threads and may
be asked by several at once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanas_client.errors import ModelFileError, RuntimeMissingError
from metanas_client.local_card import KEYS, read_card

PREFIX = "metanas."
"""Of our keys in the metadata of an ONNX file."""


class OnnxModel:
    """An opened model; safe to share between threads."""

    def __init__(self, path: Path, *, threads: int, providers: Sequence[str]) -> None:
        """Open a model.

        Raises:
            RuntimeMissingError: no ONNX Runtime, or none with these providers.
            ModelFileError: the file is damaged, no export of ours, or of a later version.
            OSError: the file cannot be read.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeMissingError(
                f"{path} needs ONNX Runtime, which is not installed ({error}); install it with: pip install onnxruntime"
            ) from error
        data = path.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        available = onnxruntime.get_available_providers()
        if missing := [name for name in providers if name not in available]:
            raise RuntimeMissingError(
                f"this ONNX Runtime has no {', '.join(missing)}, only {', '.join(available)}; pass one of these as "
                "providers, or install the build that has it"
            )
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=list(providers))
        except Exception as error:  # ONNX Runtime has a class for each of its statuses, and no common root
            raise ModelFileError(
                f"{path} ({len(data)} bytes) is no ONNX file that ONNX Runtime {onnxruntime.__version__} can read "
                f"({_first_line(error)}); copy it again, or export the task again"
            ) from error
        # Asked for a GPU that does not start, ONNX Runtime falls back and only logs it.
        if providers[0] not in self._session.get_providers():
            raise RuntimeMissingError(
                f"{providers[0]} does not start on this machine; pass another one as providers: {', '.join(available)}"
            )
        self.card = read_card(
            _values(self._session.get_modelmeta().custom_metadata_map, name=str(path)), name=str(path)
        )
        self.takes_pictures = False
        """Whether the preprocessing is in the graph."""
        self._input, self._output = self._check(str(path))
        self.batch_limit: int | None = None

    def scores(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Score network inputs, float32 ``(batch, channels, height, width)``; returns ``(batch, classes)``.

        Where ``takes_pictures``, uint8 ``(batch, height, width, 3)`` of any size.
        """
        scores: NDArray[np.float32] = self._session.run([self._output], {self._input: images})[0]
        return scores

    def close(self) -> None:
        """Nothing to give back: the session goes with the object."""

    def _check(self, name: str) -> tuple[str, str]:
        """The names of input and output, which must fit what the file says about itself."""
        (images, *others), outputs, recipe = self._session.get_inputs(), self._session.get_outputs(), self.card.recipe
        sizes = list(images.shape[1:])
        expected = [recipe.channels, recipe.height, recipe.width]
        self.takes_pictures = images.type == "tensor(uint8)" and len(sizes) == 3 and sizes[2] == 3
        if others or not (self.takes_pictures or (images.type == "tensor(float)" and sizes == expected)):
            raise ModelFileError(
                f"{name} takes {images.name}: {images.type} {images.shape}, but its preprocessing makes float images "
                f"of {expected}; export the task again"
            )
        if isinstance(images.shape[0], int):
            raise ModelFileError(f"{name} takes batches of {images.shape[0]} only; export the task again")
        classes = len(self.card.class_names)
        if outputs[0].type != "tensor(float)" or list(outputs[0].shape[1:]) != [classes]:
            raise ModelFileError(
                f"{name} gives {outputs[0].name}: {outputs[0].type} {outputs[0].shape}, but names {classes} classes; "
                "export the task again"
            )
        return images.name, outputs[0].name


def _values(metadata: dict[str, str], *, name: str) -> dict[str, Any]:
    """What is needed of a file's metadata, as plain values."""
    values = {}
    for key in KEYS:
        text = metadata.get(f"{PREFIX}{key}")
        if text is not None:
            try:
                values[key] = json.loads(text)
            except ValueError as error:
                raise ModelFileError(
                    f"{name} has unreadable metadata {key} ({error}); export the task again"
                ) from error
    return values


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
