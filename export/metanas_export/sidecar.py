"""What stands beside a plan, in ``<name>.plan.json``: all that says whether it fits a device.

    sidecar        Plan, task  ->  plain values for JSON
    Sidecar        the same, read back and checked
    read_sidecar   path of the plan  ->  Sidecar
    sidecar_path   path of the plan  ->  path of its sidecar

It names the plan by its hash, so a plan and a sidecar that do not belong together are found out.
The class names, preprocessing and temperature are those of the ONNX file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metanas
from metanas.model import TaskModel
from metanas_export.builder import Precision
from metanas_export.errors import PlanMismatchError
from metanas_export.plan import SIDECAR_VERSION, Plan, PlanOptions, Profile, sha256


def sidecar(plan: Plan, task: TaskModel, *, precision: Precision) -> dict[str, Any]:
    """What a device must know beside the plan, as plain values for JSON."""
    return {
        "format_version": SIDECAR_VERSION,
        "metanas_version": metanas.__version__,
        "plan_sha256": sha256(plan.data),
        "plan_bytes": len(plan.data),
        "onnx_sha256": plan.onnx_sha256,
        "tensorrt": {"flavour": plan.flavour, "version": plan.version},
        "compute_capabilities": list(plan.compute_capabilities) if plan.compute_capabilities is not None else None,
        "built_on": plan.built_on,
        "refittable": plan.options.refittable,
        "version_compatible": plan.options.version_compatible,
        "hardware_compatible": plan.options.hardware_compatible,
        "layers": plan.layers,
        "build_seconds": round(plan.seconds, 3),
        "precision": precision,
        "profile": plan.profile.to_dict(),
        "input": plan.input.to_dict(),
        "output": plan.output.to_dict(),
        "class_names": list(task.class_names),
        "preprocessing": task.preprocessing.to_dict(),
        "preprocessing_steps": task.preprocessing.steps(),
        "temperature": task.trust.temperature,
        "genotype": task.genotype.to_dict(),
    }


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What decides whether a plan can be used; the rest of the file is for the device."""

    plan_sha256: str
    plan_bytes: int
    onnx_sha256: str
    flavour: str
    version: str
    compute_capabilities: tuple[str, ...] | None
    built_on: str | None
    options: PlanOptions
    precision: str
    profile: Profile
    class_names: tuple[str, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Sidecar":
        """Read what ``sidecar`` has written.

        Raises:
            KeyError, TypeError, ValueError: it is incomplete or contradicts itself.
        """
        capabilities = values["compute_capabilities"]
        return cls(
            plan_sha256=str(values["plan_sha256"]),
            plan_bytes=int(values["plan_bytes"]),
            onnx_sha256=str(values["onnx_sha256"]),
            flavour=str(values["tensorrt"]["flavour"]),
            version=str(values["tensorrt"]["version"]),
            compute_capabilities=None if capabilities is None else tuple(str(one) for one in capabilities),
            built_on=values.get("built_on"),
            options=PlanOptions(
                refittable=values["refittable"] is True,
                version_compatible=values["version_compatible"] is True,
                hardware_compatible=values["hardware_compatible"] is True,
            ),
            precision=str(values["precision"]),
            profile=Profile(**values["profile"]),
            class_names=tuple(str(name) for name in values["class_names"]),
        )


def sidecar_path(plan_path: Path) -> Path:
    """Where a plan's sidecar lies."""
    return plan_path.with_name(f"{plan_path.name}.json")


def read_sidecar(plan_path: Path) -> Sidecar:
    """Read the sidecar of a plan.

    Raises:
        PlanMismatchError: it is missing, damaged, or of a newer version.
    """
    path = sidecar_path(plan_path)
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PlanMismatchError(
            f"{path} is missing, so nothing says what {plan_path.name} is for; copy it beside the plan"
        ) from error
    except ValueError as error:
        raise PlanMismatchError(f"{path} is damaged ({error}); copy it again") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise PlanMismatchError(f"{path} is no sidecar of a plan: it has no format_version; export the task again")
    if version > SIDECAR_VERSION:
        raise PlanMismatchError(
            f"{path} has format version {version}, this package reads up to {SIDECAR_VERSION}; upgrade metanas-edge"
        )
    try:
        return Sidecar.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanMismatchError(
            f"{path} is incomplete or contradicts itself: {error!r}; export the task again"
        ) from error
