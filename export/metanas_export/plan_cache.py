"""Plans that were built before, found again by all that decides whether they are the right ones.

    Key            genotype, weights, TensorRT, device, precision, profile
    make_key       what is to be built  ->  Key
    PlanCache      look_up, store, and plans of the same structure to refit

Networks of one genotype look alike and answer otherwise, so the weights' hash is part of the key, and
so is the whole ONNX file's. An entry is two files: the plan, named by its own hash, and an entry that
names the plan and repeats the key in full. The entry is written last and whole, so an interrupted or a
second process leaves an entry that is right or none. What is found is compared with the whole key, and
the plan with its hash, before it is used.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from metanas.artifact import write_atomically
from metanas.native.library import cache_folder
from metanas_export import card
from metanas_export.builder import Precision
from metanas_export.plan import Plan, PlanOptions, Profile, TensorInfo, sha256
from metanas_export.plan_loading import Machine

logger = logging.getLogger(__name__)

MAX_BYTES = 512 * 1024**2
"""Of all plans of a cache together; the ones stored longest ago go first."""


@dataclass(frozen=True, slots=True)
class Key:
    """What decides whether a plan is the right one."""

    structure: str
    """Hash of the graph without its numbers: equal for networks that can be refitted into each other."""
    genotype: str
    """Hash of the architecture, mixture weights included."""
    weights_sha256: str
    """Of the float32 network, as the ONNX file's metadata say."""
    onnx_sha256: str
    flavour: str
    version: str
    device: str
    """Name and compute capability of the GPU that builds; "none" without one."""
    targets: tuple[str, ...] | None
    precision: str
    profile: Profile
    options: PlanOptions

    @property
    def digest(self) -> str:
        """Names the entry."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode())

    def refits(self, other: "Key") -> bool:
        """Whether a plan of the other key becomes one of this key by exchanging its weights."""
        own = (self.structure, self.flavour, self.version, self.device, self.targets, self.precision)
        its = (other.structure, other.flavour, other.version, other.device, other.targets, other.precision)
        return (
            own == its and self.profile == other.profile and self.options == other.options and self.options.refittable
        )


def make_key(
    onnx_model: bytes,
    machine: Machine,
    *,
    precision: Precision,
    profile: Profile,
    targets: tuple[str, ...] | None,
    options: PlanOptions,
) -> Key:
    """The key of a plan that would be built from an exported ONNX file on this machine.

    Raises:
        KeyError: the file was not exported by this package: it has no genotype and weights hash.
    """
    model = onnx.load_model_from_string(onnx_model)
    said = card.read(model)
    return Key(
        structure=structure_digest(model),
        genotype=sha256(json.dumps(said["genotype"], sort_keys=True).encode()),
        weights_sha256=said["weights_sha256"],
        onnx_sha256=sha256(onnx_model),
        flavour=machine.flavour,
        version=machine.version,
        device="none" if machine.device is None else machine.device.slug,
        targets=targets,
        precision=precision,
        profile=profile,
        options=options,
    )


def structure_digest(model: onnx.ModelProto) -> str:
    """Hash of a graph without the numbers of its constants and without metadata."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.ClearField("metadata_props")
    for tensor in bare.graph.initializer:
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
    return sha256(bare.SerializeToString(deterministic=True))


class PlanCache:
    """Plans in a folder; any number of processes may use it at a time."""

    def __init__(self, folder: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        """``folder`` None: in ``METANAS_CACHE`` or ``~/.cache/metanas-edge``."""
        self.folder = folder or cache_folder() / "plans"
        self._max_bytes = max_bytes

    def look_up(self, key: Key) -> Plan | None:
        """The plan of exactly this key, or None."""
        return self._read(self._entry(key), key)

    def refittable(self, key: Key) -> Iterator[Plan]:
        """Plans of other tasks that this key's weights fit into, the latest first."""
        for path in _latest_first(self.folder.glob(f"{key.structure[:16]}-*.json")):
            values = _load(path)
            other = None if values is None else _key(values)
            if other is None or not key.refits(other) or other == key:
                continue
            plan = self._read(path, other)
            if plan is not None:
                yield plan

    def store(self, key: Key, plan: Plan) -> None:
        """Keep a plan.

        Raises:
            ArtifactError: the folder cannot be written.
            ValueError: the plan is not what the key says.
        """
        if (plan.onnx_sha256, plan.profile, plan.options) != (key.onnx_sha256, key.profile, key.options):
            raise ValueError("the plan was built from another ONNX file, profile or options than its key says")
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = sha256(plan.data)
        write_atomically(self.folder / f"{digest}.plan", plan.data)
        values = {name: value for name, value in asdict(plan).items() if name != "data"}
        entry = {"key": asdict(key), "plan": values, "plan_sha256": digest}
        write_atomically(self._entry(key), (json.dumps(entry, indent=2) + "\n").encode())
        self._shrink()

    def _entry(self, key: Key) -> Path:
        return self.folder / f"{key.structure[:16]}-{key.digest}.json"

    def _read(self, path: Path, key: Key) -> Plan | None:
        values = _load(path)
        if values is None:
            return None
        try:
            data = (self.folder / f"{values['plan_sha256']}.plan").read_bytes()
            if _key(values) == key and sha256(data) == values["plan_sha256"]:
                return _plan(values["plan"], data)
        except FileNotFoundError:
            return None  # given up by another process meanwhile
        except (KeyError, TypeError, ValueError):
            pass
        logger.warning("the plan of %s is damaged or not what its name says; it is built again", path)
        return None

    def _shrink(self) -> None:
        """Give up the plans that were stored longest ago until the rest fits."""
        total = 0
        for path in _latest_first(self.folder.glob("*.plan")):
            total += _size(path)
            if total > self._max_bytes:
                path.unlink(missing_ok=True)
        plans = {path.stem for path in self.folder.glob("*.plan")}
        for path in self.folder.glob("*.json"):
            values = _load(path)
            if values is not None and values.get("plan_sha256") not in plans:
                path.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("the entry %s is damaged; its plan is built again", path)
        return None
    return values if isinstance(values, dict) else None


def _key(values: dict[str, Any]) -> Key | None:
    try:
        given = dict(values["key"])
        targets = given.pop("targets")
        return Key(
            targets=None if targets is None else tuple(targets),
            profile=Profile(**given.pop("profile")),
            options=PlanOptions(**given.pop("options")),
            **given,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _plan(values: dict[str, Any], data: bytes) -> Plan:
    given = dict(values)
    capabilities = given.pop("compute_capabilities")
    ends = {name: given.pop(name) for name in ("input", "output")}
    return Plan(
        data=data,
        compute_capabilities=None if capabilities is None else tuple(capabilities),
        profile=Profile(**given.pop("profile")),
        options=PlanOptions(**given.pop("options")),
        input=TensorInfo(**{**ends["input"], "shape": tuple(ends["input"]["shape"])}),
        output=TensorInfo(**{**ends["output"], "shape": tuple(ends["output"]["shape"])}),
        **given,
    )


def _latest_first(paths: Iterator[Path]) -> list[Path]:
    def stored(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    return sorted(paths, key=stored, reverse=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
