"""How one task is learnt: what its request asks for, within what the server allows.

    OptionLimits   what the server allows
    apply_options  AdaptOptions, the meta-model's schedule  ->  the task's schedule
    time_to_live   AdaptOptions                             ->  how long the task is kept

Pure; what a schedule may hold at all is the core's to say.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from metanas.model import MetaModel
from metanas.schedule import Schedule
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import MAX_TTL_SECONDS
from metanas_serving.errors import InvalidRequestError

_TTL = "ttl_seconds"
_RATES = ("learning_rate", "architecture_learning_rate")


@dataclass(frozen=True, slots=True)
class OptionLimits:
    """What a request may ask for."""

    max_steps: int
    """Of both phases together."""
    max_learning_rate: float
    ttl_seconds: float = 0.0
    """Of a task whose request says nothing; 0: it is kept for good."""


def apply_options(options: pb.AdaptOptions, meta: MetaModel, limits: OptionLimits) -> Schedule:
    """The schedule of a task: the meta-model's, changed as the request says.

    Raises:
        InvalidRequestError: a value is over a limit or makes no sense; the message names both.
    """
    asked: dict[str, Any] = {field.name: value for field, value in options.ListFields() if field.name != _TTL}
    for name in _RATES:
        # Written so that NaN is refused too.
        if name in asked and not 0 < asked[name] <= limits.max_learning_rate:
            raise InvalidRequestError(
                f"{name} must be above 0 and at most {limits.max_learning_rate:g}, the limit of this server "
                f"(--max-learning-rate), got {asked[name]:g}"
            )
    if meta.step_rates and (rates := [name for name in _RATES if name in asked]):
        raise InvalidRequestError(
            f"{rates[0]} cannot be chosen: this meta-model has learned the rate of every step; leave it out"
        )
    lowest = meta.schedule.skip_below
    if "threshold" in asked and not lowest < asked["threshold"] < 1:
        raise InvalidRequestError(
            f"threshold must be above {lowest:g} (operations below it are not even run) and below 1, "
            f"got {asked['threshold']:g}"
        )
    architecture_steps = asked.get("architecture_steps", meta.schedule.architecture_steps)
    weight_steps = asked.get("weight_steps", meta.schedule.weight_steps)
    if {"architecture_steps", "weight_steps"} & asked.keys() and architecture_steps + weight_steps > limits.max_steps:
        raise InvalidRequestError(
            f"{architecture_steps} architecture_steps and {weight_steps} weight_steps are more than "
            f"{limits.max_steps}, the limit of this server (--max-adapt-steps); ask for fewer"
        )
    return dataclasses.replace(meta.schedule, **asked)


def time_to_live(options: pb.AdaptOptions, limits: OptionLimits) -> float:
    """How long a task is kept, in seconds; 0: for good.

    Raises:
        InvalidRequestError: the request asks for what is no time.
    """
    if not options.HasField("ttl_seconds"):
        return limits.ttl_seconds
    if not 0 <= options.ttl_seconds <= MAX_TTL_SECONDS:  # written so that NaN is refused too
        raise InvalidRequestError(
            f"ttl_seconds must be 0 (the task is kept for good) or at most {MAX_TTL_SECONDS:g}, got "
            f"{options.ttl_seconds:g}"
        )
    return options.ttl_seconds
