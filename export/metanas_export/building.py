"""One build, from ONNX bytes to a plan, step by step through TensorRT's builder.

    Building       everything that is decided before a build
    Building.run   ONNX bytes  ->  Plan

What the versions from 10.13 to 11 and TensorRT-RTX do not have in common is decided here: targets,
timing cache and compatibility. TensorRT is a module that ``engine`` has imported.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from metanas_export import monitoring, targets, timing_cache
from metanas_export.device import Device
from metanas_export.errors import TensorRTBuildError
from metanas_export.flavour import describe, failure, is_rtx
from metanas_export.plan import BuildLimits, BuildProgress, Plan, PlanOptions, Profile, TensorInfo, sha256


@dataclass(frozen=True, slots=True)
class Building:
    """Everything that is decided before a build; ``engine.build_plan`` says what each is."""

    trt: ModuleType
    log: Any
    profile: Profile
    targets: tuple[str, ...] | None
    options: PlanOptions
    timing_cache: Path | None
    limits: BuildLimits
    on_progress: Callable[[BuildProgress], None] | None
    device: Device | None
    """The GPU of this machine."""

    def run(self, onnx_model: bytes) -> Plan:
        """Build.

        Raises:
            TensorRTBuildError, TypeError, RuntimeError: it failed.
        """
        trt, started = self.trt, time.perf_counter()
        builder = trt.Builder(self.log)
        network = builder.create_network(_strongly_typed(trt))
        # The parser keeps only a reference: the network must live until it has been built.
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse(onnx_model):
            problems = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            raise failure(trt, "cannot read the ONNX graph", problems=problems or self.log.errors)
        config = builder.create_builder_config()
        self._set_profile(builder, network, config=config)
        capabilities = self._set_targets(config)
        self._set_options(config)
        if self.limits.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.limits.workspace_bytes)
        monitor = monitoring.watch(trt, self.limits, layers=network.num_layers, on_progress=self.on_progress)
        monitoring.attach(config, monitor)
        path = self.timing_cache or timing_cache.location(trt, self.device)
        cache = timing_cache.attach(config, path) if timing_cache.used_by(trt) else None

        data = builder.build_serialized_network(network, config)
        if monitor.stopped is not None:
            raise monitor.stopped
        if data is None:
            raise monitoring.explain(self.limits, self.log.errors) or self._build_failure()
        kept = "none: TensorRT-RTX times no kernels"
        if cache is not None:
            kept = f"{timing_cache.keep(config, cache, path=path):,} bytes in {path.name}"
        return Plan(
            data=bytes(data),
            flavour=trt.__name__,
            version=trt.__version__,
            compute_capabilities=capabilities,
            profile=self.profile,
            onnx_sha256=sha256(onnx_model),
            input=_tensor(network.get_input(0)),
            output=_tensor(network.get_output(0)),
            options=self.options,
            built_on=None if self.device is None else self.device.name,
            layers=network.num_layers,
            seconds=time.perf_counter() - started,
            timing_cache=kept,
        )

    def _set_profile(self, builder: Any, network: Any, *, config: Any) -> None:
        if network.num_inputs != 1 or network.num_outputs != 1:
            raise failure(
                self.trt,
                "is given a graph of another kind",
                problems=[
                    f"{network.num_inputs} inputs and {network.num_outputs} outputs, an exported task has one each"
                ],
            )
        images = network.get_input(0)
        batch, *shape = images.shape
        if batch != -1:
            raise failure(
                self.trt,
                "is given a graph without a free batch size",
                problems=[
                    f"its input {images.name} is {tuple(images.shape)}, so no profile fits it; export the task again"
                ],
            )
        optimisation = builder.create_optimization_profile()
        optimisation.set_shape(
            images.name,
            min=(self.profile.min_batch, *shape),
            opt=(self.profile.opt_batch, *shape),
            max=(self.profile.max_batch, *shape),
        )
        config.add_optimization_profile(optimisation)

    def _set_targets(self, config: Any) -> tuple[str, ...] | None:
        """Name the GPUs, where a build is not simply for the one at hand; returns their capabilities."""
        if not is_rtx(self.trt):
            own = None if self.device is None else self.device.compute_capability
            targets.for_own_gpu(self.targets, own=own)
            return None if own is None or self.options.hardware_compatible else (own,)
        wanted = targets.for_rtx(self.targets, known=self.trt.ComputeCapability.__members__)
        config.num_compute_capabilities = len(wanted)
        for index, one in enumerate(wanted):
            name = targets.flag(one).replace("_", "").upper()
            if not config.set_compute_capability(getattr(self.trt.ComputeCapability, name), index):
                raise failure(self.trt, f"refuses the target {targets.flag(one)}", problems=self.log.errors)
        return wanted

    def _set_options(self, config: Any) -> None:
        flags = self.trt.BuilderFlag
        # On by default, and then float32 is multiplied with 10 bits: fp16 is what asks for that.
        if "TF32" in flags.__members__:
            config.clear_flag(flags.TF32)
        if self.options.refittable:
            config.set_flag(flags.REFIT)
        if self.options.version_compatible:
            self._refuse_on_rtx("version-compatible", "has no lean runtime")
            config.set_flag(flags.VERSION_COMPATIBLE)
        if self.options.hardware_compatible:
            self._refuse_on_rtx("hardware-compatible", "builds plans that run on all their targets as they are")
            config.hardware_compatibility_level = self.trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def _refuse_on_rtx(self, option: str, reason: str) -> None:
        if is_rtx(self.trt):
            raise TensorRTBuildError(f"a {option} plan is asked for, and {describe(self.trt)} {reason}; leave it out")

    def _build_failure(self) -> TensorRTBuildError:
        what = "cannot build the network"
        if is_rtx(self.trt) and self.options.refittable and self.device is None:
            what = "cannot build a refittable plan without a GPU"
        return failure(self.trt, what, problems=self.log.errors)


def _strongly_typed(trt: ModuleType) -> int:
    """The flag of a network whose types are those of its graph; 0 where there are no others."""
    kind = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    return 0 if kind is None else 1 << int(kind)


def _tensor(tensor: Any) -> TensorInfo:
    kind = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}.get(tensor.dtype.name, tensor.dtype.name.lower())
    return TensorInfo(name=tensor.name, type=kind, shape=tuple(tensor.shape))
