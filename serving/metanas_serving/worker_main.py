"""The adaptation process: learns the tasks that the server sends over a pipe.

    python -m metanas_serving.worker_main DESCRIPTOR    started by ``worker``, not by hand

It lives until the pipe closes, so it does not outlive its server, however that ends. Before every
gradient step it looks into the pipe: whatever is there, a ``Stop`` or the end, ends the adaptation;
after every step it says how far it has got.

It knows the core, the export and the pipe; nothing of gRPC, the store or other workers.
"""

import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import cast

import numpy as np
import torch

from metanas import native
from metanas.artifact import meta_from_bytes, task_to_bytes
from metanas.errors import MetaNASError
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.network import count_parameters
from metanas.snapshots import AdaptationTrace
from metanas.tasks import SupportSet
from metanas_export import onnx_bytes
from metanas_serving.errors import WorkerError
from metanas_serving.facts import ServerFacts
from metanas_serving.memory import bound_memory, is_out_of_memory
from metanas_serving.work import Done, Failed, Order, Pipe, Pruned, Ready, Start

_log = logging.getLogger(__name__)

# Answers go before adaptations. On two cores with two other busy programs it took the median
# Classify from 62 to 19 ms; where a core is free it changes nothing.
_NICENESS = 5


def main(descriptor: int) -> int:
    """Take orders from the pipe until it closes."""
    # Ctrl-C and service managers signal all processes at once; the server alone decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe: Pipe = Connection(descriptor)
    try:
        start = cast(Start, pipe.recv())
        torch.set_num_threads(start.torch_threads)
        if start.memory_bytes is not None:
            bound_memory(start.memory_bytes)
        try:
            meta = meta_from_bytes(start.meta, name=start.meta_name)
            warm_up = _warm_up(meta)
        except MetaNASError as error:
            pipe.send(Failed(error))
            return 1
        pipe.send(Ready(warm_up))
        os.nice(_NICENESS)  # not before: the server, or a job, waits for the warm-up
        while True:
            message = pipe.recv()
            if isinstance(message, Order):  # a Stop here came too late: its order is done
                pipe.send(_work(meta, message, pipe=pipe))
    except (EOFError, ConnectionError):
        return 0


def _warm_up(meta: MetaModel) -> Done:
    """One step of each kind on noise: loads what torch loads late, and shows that the meta-model works."""
    size = (meta.preprocessing.channels, meta.preprocessing.height, meta.preprocessing.width)
    noise = np.random.default_rng(0).integers(0, 256, (2, *size), dtype=np.uint8)
    support = SupportSet(torch.from_numpy(noise), torch.tensor([0, 1]), ("0", "1"))
    schedule = dataclasses.replace(meta.schedule, architecture_steps=1, weight_steps=1)
    return _done(adapt(meta, support, schedule=schedule), ServerFacts("warm-up", 0.0, 0.0))


def _work(meta: MetaModel, order: Order, *, pipe: Pipe) -> Done | Failed:
    try:
        return _learn(meta, order, pipe=pipe)
    except MetaNASError as error:
        return Failed(error)
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # whatever it is, the process is fit for the next order
        if is_out_of_memory(error):
            return Failed(
                WorkerError(
                    f"adaptation to {len(order.images)} images took more memory than its process may have "
                    "(--worker-memory-mb); send fewer images"
                )
            )
        _log.exception("adaptation of task %s failed", order.task_id)
        return Failed(WorkerError(f"adaptation failed with {type(error).__name__}: {error}"))


def _learn(meta: MetaModel, order: Order, *, pipe: Pipe) -> Done:
    support = SupportSet(
        torch.from_numpy(order.images), torch.tensor(order.labels, dtype=torch.int64), order.class_names
    )
    native.set_threads(order.threads)
    begin = time.perf_counter()

    def tell_pruned(trace: AdaptationTrace) -> None:
        pipe.send(Pruned(trace.pruned.genotype, count_parameters(trace.pruned)))

    task = adapt(
        meta,
        support,
        schedule=order.schedule,
        seed=order.seed,
        on_step=pipe.send,
        # The server sends one order at a time, so what comes meanwhile is a Stop, or the pipe's end.
        should_stop=lambda: pipe.poll() and bool(pipe.recv()),
        on_trace=tell_pruned,
    )
    now = time.time()
    facts = ServerFacts(
        task_id=order.task_id,
        created_unix_seconds=now,
        adapt_seconds=time.perf_counter() - begin,
        warnings=(*order.warnings, *_slower(), *_unlike(task)),
        request_sha256=order.request_sha256,
        tenant=order.tenant,
        expires_unix_seconds=now + order.ttl_seconds if order.ttl_seconds else 0.0,
        **({} if order.lineage is None else dataclasses.asdict(order.lineage)),
    )
    return _done(task, facts)


def _slower() -> Iterator[str]:
    state = native.state()
    if not state.used:
        yield f"learnt slower than it could be, without the compiled engine: {state.reason}"


def _unlike(task: TaskModel) -> Iterator[str]:
    if task.report.is_unlike_training:
        yield (
            "the pictures are unlike those that the meta-model learned from, so the steps did not reckon with how "
            "those vary; expect less of this task, try pictures inverted, or another meta-model"
        )


def _done(task: TaskModel, facts: ServerFacts) -> Done:
    told = facts.written_into(task)
    return Done(data=task_to_bytes(told), onnx=onnx_bytes(told))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
