"""The GPUs that a plan is built for, in the three ways they are written.

    sm_86   the command line          8.6   sidecars and CUDA          SM86   TensorRT's enumeration

    capability     any of the three  ->  "8.6"
    flag           "8.6"  ->  "sm_86"
    for_rtx        what was asked for, what this TensorRT-RTX knows  ->  capabilities to build for
    for_own_gpu    what was asked for, the GPU of this machine       ->  nothing, or an error

TensorRT-RTX builds for any of its targets on any machine. TensorRT builds for the GPU of its machine.
"""

import re
from collections.abc import Iterable

from metanas_export.errors import UnsupportedTargetError

RTX_TARGETS = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX builds for unless told otherwise. 1.7 names 7.5 too, but has no float32 matrix product for it."""

AMPERE = "8.0"
"""The first generation that a hardware-compatible plan of TensorRT runs on."""


def capability(text: str) -> str:
    """A GPU's compute capability, such as "8.6", from any of its spellings.

    Raises:
        UnsupportedTargetError: it is none.
    """
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
    if found is None:
        raise UnsupportedTargetError(f"{text!r} names no GPU; write it as sm_86, which is compute capability 8.6")
    return f"{int(found[1])}.{found[2]}"


def flag(compute_capability: str) -> str:
    """As the command line takes it."""
    return f"sm_{compute_capability.replace('.', '')}"


def generation(compute_capability: str) -> tuple[int, int]:
    """Major and minor number, to compare by."""
    major, minor = compute_capability.split(".")
    return int(major), int(minor)


def for_rtx(asked: Iterable[str] | None, *, known: Iterable[str]) -> tuple[str, ...]:
    """What to build for.

    Args:
        asked: in any spelling; None: all of ``RTX_TARGETS`` that are known.
        known: names of TensorRT-RTX's enumeration, such as "SM86".

    Raises:
        UnsupportedTargetError: this TensorRT-RTX does not know one of them.
    """
    names = [capability(name) for name in known if re.fullmatch(r"SM\d+", name)]
    if asked is None:
        return tuple(one for one in RTX_TARGETS if one in names)
    wanted = tuple(dict.fromkeys(capability(one) for one in asked))
    if not wanted:
        raise UnsupportedTargetError("no target is named; leave the option out to build for all of TensorRT-RTX's")
    for one in wanted:
        if one not in names:
            raise UnsupportedTargetError(
                f"TensorRT-RTX does not build for {flag(one)}, only for {', '.join(flag(name) for name in names)}; "
                "for another GPU (Jetson, data centre) build on its machine: --format tensorrt"
            )
    return wanted


def for_own_gpu(asked: Iterable[str] | None, *, own: str | None) -> None:
    """Make sure that a build for the GPU of this machine is what is asked for.

    Args:
        asked: in any spelling; None: whatever is here.
        own: its compute capability; None: there is no GPU.

    Raises:
        UnsupportedTargetError: another GPU is asked for.
    """
    for one in asked or ():
        if capability(one) != own:
            here = "and there is none here" if own is None else f"here {flag(own)}"
            raise UnsupportedTargetError(
                f"TensorRT builds for the GPU of its machine, {here}, not for {flag(capability(one))}; build on a "
                "machine with that GPU, or for RTX GPUs anywhere: --format tensorrt-rtx"
            )
