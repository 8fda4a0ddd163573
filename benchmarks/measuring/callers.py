"""Many concurrent callers of Classify, in processes apart from the server's.

    together      so many callers for so many seconds  ->  calls a second, latencies, their own processor time
    alone         the same ONNX file in ONNX Runtime, in this process, one thread a core

Each caller has one call on its way at any time, of one image. The callers share the machine with the
server, so they are as light as Python can make them: requests are serialised once, answers are not
parsed, and one thread a process waits for all of its callers. What they use of the processor all the
same is measured and told.
"""

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from measuring.child import Child
from measuring.machine import CORES
from metanas_client.images import encode_images
from metanas_proto.v1 import few_shot_pb2 as pb

PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Throughput:
    """What callers got together."""

    calls_per_second: float
    p50_ms: float
    p99_ms: float
    processor_share: float
    """Processor seconds of the callers a second: 1.0 is one core."""


def together(address: str, task_id: str, images: list[Any], *, callers: int, seconds: float) -> Throughput:
    """Let ``callers`` ask for ``seconds``, after a warm-up."""
    requests = [
        pb.ClassifyRequest(task_id=task_id, images=encode_images([image], where="images")).SerializeToString().hex()
        for image in images
    ]
    order = {"address": address, "requests": requests, "callers": callers // PROCESSES, "seconds": seconds}
    with ExitStack() as stack:
        children = [stack.enter_context(Child("measuring.callers_process", order)) for _ in range(PROCESSES)]
        for child in children:
            child.start()
        for child in children:
            child.wait()
        answers = [child.answer() for child in children]
    milliseconds = [value for answer in answers for value in answer["milliseconds"]]
    return Throughput(
        calls_per_second=sum(len(answer["milliseconds"]) / answer["seconds"] for answer in answers),
        p50_ms=float(np.percentile(milliseconds, 50)),
        p99_ms=float(np.percentile(milliseconds, 99)),
        processor_share=sum(answer["processor_seconds"] / answer["seconds"] for answer in answers),
    )


def alone(onnx: bytes, inputs: NDArray[np.float32], *, seconds: float) -> float:
    """Images a second of ONNX Runtime at batch 1: a session and a thread on each core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"]) for _ in range(CORES)]
    counts = [0] * CORES
    end = 0.0

    def work(number: int) -> None:
        batch, session = inputs[:1], sessions[number]
        while time.perf_counter() < end:
            session.run(None, {"images": batch})
            counts[number] += 1

    for session in sessions:
        session.run(None, {"images": inputs[:1]})
    threads = [threading.Thread(target=work, args=(number,)) for number in range(CORES)]
    end = time.perf_counter() + seconds
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)
