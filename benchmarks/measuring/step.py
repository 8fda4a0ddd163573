"""One gradient step of an Adapt, taken apart.

    Step         which network, which operations, which path
    Profile      seconds of its parts, of its operations and, on PyTorch's path, of its kernels

    parts        relaxation, forward, loss, backward, optimiser: by the clock
    operations   what a step gains where one candidate operation is left out, with its FLOP
    kernels      what PyTorch itself says it computed, by kind

The steps are those of ``metanas.steps.gradient_step``, spelt out so that a clock fits between.
``step_process`` runs them.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from measuring import engine
from measuring.child import Child

Kind = Literal["dense", "sparse", "task"]
"""An architecture step of an untrained meta-model; one of the bundled; a weight step of its task network."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to take apart."""

    kind: Kind = "dense"
    shape: Literal["omniglot", "colour"] = "omniglot"
    path: engine.Path = "native"
    threads: int = 1
    repeats: int = 10
    """The fastest of so many is told: what else runs on the machine can only slow one down."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a step."""

    name: str
    seconds: float
    gflop: float | None = None
    """Forward and backward; None where it is not counted."""

    def to_row(self, total: float) -> str:
        """Milliseconds, per cent, GFLOP, GFLOP/s."""
        gflop = "" if self.gflop is None else f"{self.gflop:.2f}"
        rate = "" if self.gflop is None or self.seconds <= 0 else f"{self.gflop / self.seconds:.0f}"
        share = 100 * self.seconds / total
        return f"| {self.name} | {1000 * self.seconds:.1f} | {share:.0f} % | {gflop} | {rate} |"


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one step goes."""

    engine: str
    seconds: float
    gflop: float
    parts: list[Share]
    operations: list[Share]
    """Of an architecture step; empty for a task network."""
    kernels: list[Share]
    """Of PyTorch; what a native engine computes is one line of it."""


def profile(step: Step) -> Profile:
    """Take a step apart, in a process of its own."""
    with Child("measuring.step_process", asdict(step), engine.settings(step.path)) as child:
        child.start()
        child.wait()
        values = child.answer()
    for name in ("parts", "operations", "kernels"):
        values[name] = [Share(**share) for share in values[name]]
    return Profile(**values)
