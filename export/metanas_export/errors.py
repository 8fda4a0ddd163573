"""Everything that can go wrong in an export, with the exit code that the command gives it.

    MetaNASError (of the core)              1
    └── ExportError                         1
        ├── UnsupportedOperationError       1   an operation that has no translation
        ├── FormatError                     1   a precision that a format does not have
        ├── PictureError                    1   pictures for the check that cannot be used
        ├── FetchError                      1   a server that does not give the task
        ├── FormatMissingError              6   no runtime of a format that was asked for
        ├── TensorRTMissingError            3   no usable TensorRT
        ├── TensorRTBuildError              4   TensorRT refused the network
        │   ├── BuildLimitError             4   a build takes more time or memory than it may
        │   ├── UnsupportedTargetError      4   a GPU that this TensorRT does not build for
        │   └── RefitError                  4   a plan does not take the weights of another task
        ├── PlanMismatchError               1   a plan that does not fit this machine, or its sidecar
        ├── ModelRepositoryError            1   a model repository for Triton that cannot be written
        ├── RuntimeMissingError             5   no ONNX Runtime to check with
        └── DisagreementError               5   ONNX Runtime answers otherwise than torch

A message says what was wrong with the numbers seen, then what to do.
"""

from metanas.errors import MetaNASError


class ExportError(MetaNASError):
    """Root of all errors of this package."""

    exit_code = 1


class UnsupportedOperationError(ExportError):
    """The network holds an operation that this package cannot write as ONNX."""


class FormatError(ExportError):
    """A format cannot hold what was asked for."""


class PictureError(ExportError):
    """The pictures to check with are unreadable, or of no class of the task."""


class FetchError(ExportError):
    """The task could not be fetched from a server."""


class FormatMissingError(ExportError):
    """OpenVINO, ExecuTorch or LiteRT is asked for and not installed."""

    exit_code = 6


class TensorRTMissingError(ExportError):
    """Neither ``tensorrt`` nor ``tensorrt_rtx`` is installed and usable."""

    exit_code = 3


class TensorRTBuildError(ExportError):
    """TensorRT could not read the network or build a plan."""

    exit_code = 4


class BuildLimitError(TensorRTBuildError):
    """A build was stopped at its limit of time or memory."""


class UnsupportedTargetError(TensorRTBuildError):
    """The plan is asked for a GPU that this TensorRT does not build for."""


class RefitError(TensorRTBuildError):
    """The weights of a task could not be put into a plan of another one, or answer wrongly there."""


class PlanMismatchError(ExportError):
    """A plan does not fit this machine, what is asked of it, or its sidecar."""


class ModelRepositoryError(ExportError):
    """A model repository for Triton cannot be written as it was asked for."""


class RuntimeMissingError(ExportError):
    """ONNX Runtime is not installed, so nothing can be checked."""

    exit_code = 5


class DisagreementError(ExportError):
    """ONNX Runtime and torch do not give the same answers."""

    exit_code = 5
