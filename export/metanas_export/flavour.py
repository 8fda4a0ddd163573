"""Which TensorRT it is: words for people, a log that keeps errors, an error that quotes them.

    title      "tensorrt_rtx"       ->  "TensorRT-RTX"
    describe   TensorRT             ->  "TensorRT-RTX 1.7"
    is_rtx     TensorRT             ->  whether it is TensorRT-RTX
    new_log    TensorRT             ->  a logger whose ``errors`` can be quoted
    failure    TensorRT, what failed, the log  ->  TensorRTBuildError

TensorRT is a module that ``engine`` has imported; nothing is imported here.
"""

from types import ModuleType
from typing import Any

from metanas_export.errors import TensorRTBuildError


def title(flavour: str) -> str:
    """A flavour for people."""
    return "TensorRT-RTX" if flavour == "tensorrt_rtx" else "TensorRT"


def describe(trt: ModuleType) -> str:
    """The TensorRT that was found, for people."""
    return f"{title(trt.__name__)} {trt.__version__}"


def is_rtx(trt: ModuleType) -> bool:
    """Whether it is TensorRT-RTX."""
    return trt.__name__ == "tensorrt_rtx"


def new_log(trt: ModuleType) -> Any:
    """A logger that keeps errors for the message instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def failure(trt: ModuleType, what: str, *, problems: list[str]) -> TensorRTBuildError:
    """The error of a build that TensorRT refused."""
    seen = "; ".join(problems) or "no reason was logged"
    advice = "use the ONNX file"
    if not is_rtx(trt):
        advice += ", or check that this machine has an NVIDIA GPU and driver"
    return TensorRTBuildError(f"{describe(trt)} {what}: {seen}. You can {advice}")
