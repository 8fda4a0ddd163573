"""Everything that can go wrong in an export, with the exit code that the command gives it.

    MetaNASError (of the core)              1
    └── ExportError                         1
        ├── UnsupportedOperationError       1   an operation that has no translation
        ├── Float16RangeError               1   a value that float16 cannot hold
        ├── TensorRTMissingError            3   no usable TensorRT
        ├── TensorRTBuildError              4   TensorRT refused the network
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


class Float16RangeError(ExportError):
    """A folded weight lies outside of what float16 can hold."""


class TensorRTMissingError(ExportError):
    """Neither ``tensorrt`` nor ``tensorrt_rtx`` is installed and usable."""

    exit_code = 3


class TensorRTBuildError(ExportError):
    """TensorRT could not read the network or build a plan."""

    exit_code = 4


class RuntimeMissingError(ExportError):
    """ONNX Runtime is not installed, so nothing can be checked."""

    exit_code = 5


class DisagreementError(ExportError):
    """ONNX Runtime and torch do not give the same answers."""

    exit_code = 5
