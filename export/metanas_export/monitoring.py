"""A build that can be watched and stopped.

    watch     TensorRT, limits, who wants to hear of it  ->  a Monitor for the builder's config
    Monitor   forwards TensorRT's phases as BuildProgress; stops the build past a limit

TensorRT asks between the steps of a phase whether to go on, from any of its threads. An exception
must not travel through its C++ code: it stops the build, and is raised once that has returned.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from metanas_export.errors import BuildLimitError
from metanas_export.plan import BuildLimits, BuildProgress

_STATUS = Path("/proc/self/status")


class Monitor(Protocol):
    """What a build is watched by: an object of TensorRT's own class with these besides."""

    stopped: BaseException | None
    """Why it stopped the build."""


def watch(
    trt: ModuleType,
    limits: BuildLimits,
    *,
    layers: int,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> Monitor:
    """Watch the build that begins now.

    Args:
        layers: of the network, for the progress.
        on_progress: called at the beginning and after each step of each phase, from TensorRT's threads.

    Raises:
        BuildLimitError: a memory limit where the system does not tell a process its memory.
    """
    if limits.memory_bytes is not None and resident_bytes() is None:
        raise BuildLimitError("this system does not say how much memory a process has; leave memory_bytes out")
    started = time.perf_counter()

    class BuildMonitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stopped: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> bool:
            if self.stopped is None:
                seconds = time.perf_counter() - started
                progress = BuildProgress(phase, done, self._steps.get(phase, done), layers, seconds)
                try:
                    _require(limits, progress)
                    if on_progress is not None:
                        on_progress(progress)
                except BaseException as error:  # kept for the caller of the build, KeyboardInterrupt too
                    self.stopped = error
            return self.stopped is None

    monitor: Monitor = BuildMonitor()
    return monitor


def _require(limits: BuildLimits, progress: BuildProgress) -> None:
    if limits.seconds is not None and progress.seconds > limits.seconds:
        raise BuildLimitError(
            f"the build was stopped after {progress.seconds:.1f} s in {progress}: its limit is {limits.seconds:g} s; "
            "give it more time, or build on a faster machine of the same GPU"
        )
    if limits.memory_bytes is not None and (resident := resident_bytes()) and resident > limits.memory_bytes:
        raise BuildLimitError(
            f"the build was stopped in {progress}: the process takes {_mebibytes(resident)}, "
            f"its limit is {_mebibytes(limits.memory_bytes)}; give it more, close other programs, or build with a "
            "smaller largest batch"
        )


def explain(limits: BuildLimits, problems: list[str]) -> BuildLimitError | None:
    """The error of a build that failed for its workspace limit; None: it failed for something else."""
    if limits.workspace_bytes is None or not any("workspace" in problem.lower() for problem in problems):
        return None
    return BuildLimitError(
        f"no kernel of a layer fits the workspace of {_mebibytes(limits.workspace_bytes)} ({'; '.join(problems)}); "
        "give it more, or build with a smaller largest batch"
    )


def resident_bytes() -> int | None:
    """Memory of this process; None where the system does not say."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def attach(config: Any, monitor: Monitor) -> None:
    """Let a builder's config report to a monitor, which must outlive the build."""
    config.progress_monitor = monitor
