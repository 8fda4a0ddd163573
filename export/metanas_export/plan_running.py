"""A plan, run on this machine's GPU: what tells whether it answers as ONNX does.

    PlanRunner   TensorRT, OpenedPlan  ->  images to scores

Memory and stream come from a CUDA build of torch. A device without torch runs plans with
``metanas_client.local``.
"""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metanas_export.errors import RuntimeMissingError
from metanas_export.plan_loading import OpenedPlan

Array = NDArray[Any]


class PlanRunner:
    """Runs a plan; one thread at a time."""

    def __init__(self, trt: ModuleType, plan: OpenedPlan) -> None:
        """Make ready.

        Raises:
            RuntimeMissingError: torch has no CUDA, or the GPU no memory left.
        """
        require_cuda()
        engine = plan.engine
        self._plan, self._context = plan, engine.create_execution_context()
        if self._context is None:
            raise RuntimeMissingError("the GPU has no memory left for this plan; close what else runs on it")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._input = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        self._output = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
        self.max_batch = int(engine.get_tensor_profile_shape(self._input, 0)[2][0])
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, images: Array) -> NDArray[np.float32]:
        """Score images as the plan's input takes them, ``(batch, ...)``; ``(batch, classes)``. Any number of them."""
        parts = [self._run(images[first : first + self.max_batch]) for first in range(0, len(images), self.max_batch)]
        return np.concatenate(parts)

    def _run(self, images: Array) -> NDArray[np.float32]:
        given = torch.from_numpy(np.ascontiguousarray(images)).cuda()
        self.enqueue(given, scores := self.output_for(given))
        self.wait()
        return scores.cpu().numpy()

    def output_for(self, images: torch.Tensor) -> torch.Tensor:
        """Memory for the scores of a batch on the GPU."""
        if not self._context.set_input_shape(self._input, tuple(images.shape)):
            raise ValueError(f"this plan does not take images of {tuple(images.shape)}")
        return torch.empty(tuple(self._context.get_tensor_shape(self._output)), dtype=torch.float32, device="cuda")

    def enqueue(self, images: torch.Tensor, scores: torch.Tensor) -> None:
        """Start on a batch that ``output_for`` has sized ``scores`` for.

        Raises:
            RuntimeMissingError: TensorRT did not start.
        """
        self._context.set_tensor_address(self._input, images.data_ptr())
        self._context.set_tensor_address(self._output, scores.data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeMissingError("TensorRT did not run the plan; check the GPU with nvidia-smi")

    def wait(self) -> None:
        """Until all that was enqueued is done."""
        self._stream.synchronize()


def require_cuda() -> None:
    """Make sure that torch can hold what a plan reads and writes.

    Raises:
        RuntimeMissingError: it cannot.
    """
    if not torch.cuda.is_available():
        raise RuntimeMissingError(
            f"running a plan here takes an NVIDIA GPU and a CUDA build of torch, this is torch {torch.__version__}; "
            "install one with: pip install torch --index-url https://download.pytorch.org/whl/cu130"
        )
