"""One process of many clients under load; run by ``load.py`` over ``measuring.child``.

    Caller    one client: its own tasks, what it does next, what it found
    main      so many of them, a thread each, until the end

A caller draws what it does from its own seed: it learns tasks in both ways, asks them by both protocols,
watches, cancels, leaves in haste, sends what is malformed or too large, and looks whether its tasks
are there. Its labels begin with its number, so an answer of another's task would be seen; answers have
to repeat to the bit. Where the server says RESOURCE_EXHAUSTED and when to come again, it obeys.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np
from measuring.child import Parent
from numpy.typing import NDArray

from enduring.patterns import SHORT, Support, drawn_support
from metanas_client import FewShotClient, Task
from metanas_client.errors import MetaNASClientError
from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.inference import open_inference_pb2_grpc
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc

Result = TypeVar("Result")

TIMEOUT_SECONDS = 300.0
MOST_TASKS = 2
OVERSIZED_BYTES = 3 * 512 * 1024
"""Of a request to a server that takes 1 MiB."""
_OK, _BUSY, _LATE = "OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
_INVALID, _UNKNOWN, _TAKEN = "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS"
_FEW_SHOT, _OPEN = "metanas.v1.FewShot", "inference.GRPCInferenceService"


@dataclass(slots=True)
class Kept:
    """A task that this caller was told of."""

    task: Task
    support: Support
    answers: list[dict[str, float]] | None = None
    """The first ones."""

    @property
    def images(self) -> list[NDArray[np.uint8]]:
        """One of each class, in the task's order."""
        return [self.support[name][0] for name in self.task.class_names]


@dataclass(slots=True)
class Findings:
    """What one caller has to tell."""

    calls: list[tuple[str, str, float]] = field(default_factory=list)
    """What was asked, the status, milliseconds."""
    undocumented: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    jobs: int = 0
    """Started."""
    checked: int = 0
    """Answers compared."""


class Caller:
    """One client; in one thread."""

    def __init__(self, number: int, address: str, *, seed: int) -> None:
        self._name = f"c{number}"
        self._chance = random.Random(f"{seed}/{number}")
        self._client = FewShotClient(address, timeout_seconds=TIMEOUT_SECONDS)
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self._few_shot = few_shot_pb2_grpc.FewShotStub(self._channel)
        self._open = open_inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._kept: list[Kept] = []
        self._end = 0.0
        self.found = Findings()

    def go(self, seconds: float) -> Findings:
        """Call for so long; then see whether every task is there and answers as ever, and delete it."""
        self._end = time.monotonic() + seconds
        actions: dict[Callable[[], None], int] = {
            self._adapt: 3,
            self._start_and_watch: 3,
            self._start_and_cancel: 2,
            self._adapt_in_haste: 1,
            self._classify: 8,
            self._infer: 5,
            self._look_for_task: 2,
            self._malformed: 4,
            self._oversized: 1,
        }
        while time.monotonic() < self._end:
            self._chance.choices(list(actions), list(actions.values()))[0]()
        for kept in list(self._kept):
            self._ask(kept)
            self._delete(kept)
        self._client.close()
        self._channel.close()
        return self.found

    # What it does.

    def _adapt(self) -> None:
        support = self._draw()
        self._keep(self._call("Adapt", {_OK, _BUSY}, lambda: self._client.adapt(support, options=SHORT)), support)

    def _adapt_in_haste(self) -> None:
        support, seconds = self._draw(), self._chance.uniform(0.02, 1.0)
        task = self._call(
            "Adapt, short deadline",
            {_OK, _BUSY, _LATE},
            lambda: self._client.adapt(support, options=SHORT, timeout_seconds=seconds),
        )
        self._keep(task, support)

    def _start_and_watch(self) -> None:
        support, key = self._draw(), f"{self._name}/{self._chance.getrandbits(64):x}"

        def start() -> Any:
            return self._client.start_adapt(support, options=SHORT, idempotency_key=key)

        job = self._call("StartAdapt", {_OK, _BUSY}, start)
        if job is None:
            return
        self.found.jobs += 1
        again = self._call("StartAdapt, same key", {_OK}, start) if self._chance.random() < 0.3 else None
        statuses = self._call("WatchAdapt", {_OK, _BUSY}, lambda: list(job.watch()))
        while statuses is None and time.monotonic() < self._end + TIMEOUT_SECONDS:
            statuses = self._call("WatchAdapt", {_OK, _BUSY}, lambda: list(job.watch()))
        if not statuses or statuses[-1].state != "succeeded":
            self.found.lost.append(f"{self._name}: job {job.job_id} ended as {statuses and statuses[-1]}")
            return
        if again is not None and again.job_id != job.job_id:
            self.found.wrong.append(f"{self._name}: one key, two jobs: {job.job_id}, {again.job_id}")
        other = self._draw()
        if self._chance.random() < 0.3:
            self._call(
                "StartAdapt, key of another request",
                {_TAKEN},
                lambda: self._client.start_adapt(other, options=SHORT, idempotency_key=key),
            )
        self._keep(self._call("GetTask", {_OK}, lambda: self._client.task(statuses[-1].task.task_id)), support)

    def _start_and_cancel(self) -> None:
        support = self._draw()
        job = self._call("StartAdapt", {_OK, _BUSY}, lambda: self._client.start_adapt(support, options=SHORT))
        if job is None:
            return
        self.found.jobs += 1
        time.sleep(self._chance.choice((0.0, 0.0, self._chance.uniform(0, 0.5))))
        status = self._call("CancelAdapt", {_OK}, job.cancel)
        if status is None or status.state not in ("cancelled", "succeeded"):
            self.found.lost.append(f"{self._name}: cancelled job {job.job_id} ended as {status}")
        elif status.task is not None:  # it was faster
            task_id = status.task.task_id
            self._keep(self._call("GetTask", {_OK}, lambda: self._client.task(task_id)), support)

    def _classify(self) -> None:
        if self._kept:
            self._ask(self._chance.choice(self._kept))

    def _infer(self) -> None:
        if not self._kept:
            return
        kept = self._chance.choice(self._kept)
        if kept.answers is None:
            self._ask(kept)
        pixels = np.stack(kept.images)[..., None]
        request = oip.ModelInferRequest(model_name=kept.task.task_id, raw_input_contents=[pixels.tobytes()])
        request.inputs.add(name="images", datatype="UINT8", shape=pixels.shape)
        answer = self._call("ModelInfer", {_OK}, lambda: self._open.ModelInfer(request, timeout=TIMEOUT_SECONDS))
        if answer is None or kept.answers is None:
            return
        shape = tuple(answer.outputs[0].shape)
        rows = np.frombuffer(answer.raw_output_contents[0], dtype="<f4").reshape(shape).tolist()
        self._compare(kept, [dict(zip(kept.task.class_names, row, strict=True)) for row in rows])

    def _look_for_task(self) -> None:
        if self._kept:
            kept = self._chance.choice(self._kept)
            task = self._call("GetTask", {_OK}, lambda: self._client.task(kept.task.task_id))
            if task is None or task.class_names != kept.task.class_names:
                self.found.lost.append(f"{self._name}: task {kept.task.task_id} is {task}")

    def _malformed(self) -> None:
        name = self._kept[0].task.task_id if self._kept else "0" * 32
        known = {_INVALID} if self._kept else {_INVALID, _UNKNOWN}
        junk = self._chance.randbytes(200)
        shape = oip.ModelInferRequest(model_name=name, raw_input_contents=[junk])
        shape.inputs.add(name="images", datatype="FP32", shape=[1, 1, 28, 28])
        one_class = pb.AdaptRequest(support=[pb.LabelledImages(label="one", images=[pb.Image(encoded=junk)])])
        steps = pb.AdaptRequest(options=pb.AdaptOptions(architecture_steps=10**9))
        picture = pb.ClassifyRequest(task_id=name, images=[pb.Image(encoded=junk)])
        unknown = pb.ClassifyRequest(task_id=f"{self._chance.getrandbits(128):032x}", images=picture.images)
        few_shot, channel = self._few_shot, self._channel
        case: tuple[str, set[str], Callable[..., Any], Any] = self._chance.choice(
            (
                ("Classify, bytes that are no picture", known, few_shot.Classify, picture),
                ("Classify, unknown task", {_UNKNOWN}, few_shot.Classify, unknown),
                (
                    "Classify, bytes that are no message",
                    {_INVALID},
                    channel.unary_unary(f"/{_FEW_SHOT}/Classify"),
                    b"\xff",
                ),
                ("Adapt, one class", {_INVALID, _BUSY}, few_shot.Adapt, one_class),
                ("StartAdapt, too many steps", {_INVALID, _BUSY}, few_shot.StartAdapt, steps),
                ("CancelAdapt, unknown job", {_UNKNOWN}, few_shot.CancelAdapt, pb.CancelAdaptRequest(job_id=name)),
                ("ModelInfer, wrong shape", known, self._open.ModelInfer, shape),
                (
                    "ModelInfer, bytes that are no message",
                    {_INVALID},
                    channel.unary_unary(f"/{_OPEN}/ModelInfer"),
                    b"\xff",
                ),
            )
        )
        what, codes, call, request = case
        self._call(what, codes, lambda: call(request, timeout=TIMEOUT_SECONDS))

    def _oversized(self) -> None:
        blank = b"\0" * OVERSIZED_BYTES
        request = pb.ClassifyRequest(task_id="0" * 32, images=[pb.Image(encoded=blank)])
        infer = oip.ModelInferRequest(model_name="0" * 32, raw_input_contents=[blank])
        what, call, message = self._chance.choice(
            (
                ("Classify, oversized", self._few_shot.Classify, request),
                ("ModelInfer, oversized", self._open.ModelInfer, infer),
            )
        )
        self._call(what, {_BUSY}, lambda: call(message, timeout=TIMEOUT_SECONDS))

    # What it stands on.

    def _draw(self) -> Support:
        return drawn_support(self._name, classes=self._chance.choice((2, 3)), seed=self._chance.getrandbits(31))

    def _keep(self, task: Task | None, support: Support) -> None:
        if task is None:
            return
        if set(task.class_names) != set(support):
            self.found.wrong.append(f"{self._name}: a task of {sorted(support)} has classes {task.class_names}")
            return
        self._kept.append(Kept(task, support))
        self._ask(self._kept[-1])
        if len(self._kept) > MOST_TASKS:
            self._delete(self._kept[0])

    def _ask(self, kept: Kept) -> None:
        answers = self._call("Classify", {_OK}, lambda: kept.task.classify(kept.images))
        if answers is not None:
            self._compare(kept, [answer.probabilities for answer in answers])

    def _compare(self, kept: Kept, answers: list[dict[str, float]]) -> None:
        self.found.checked += 1
        named = [max(answer, key=lambda name: answer[name]) for answer in answers]
        if named != list(kept.task.class_names):
            self.found.wrong.append(f"{self._name}: images of {kept.task.class_names} were called {named}")
        kept.answers = kept.answers or answers
        if answers != kept.answers:
            self.found.wrong.append(f"{self._name}: task {kept.task.task_id}: {answers}, before {kept.answers}")

    def _delete(self, kept: Kept) -> None:
        self._call("DeleteTask", {_OK}, kept.task.delete)
        self._kept.remove(kept)
        self._call("Classify, deleted task", {_UNKNOWN}, lambda: kept.task.classify(kept.images[:1]))

    def _call(self, what: str, documented: set[str], call: Callable[[], Result]) -> Result | None:
        """One call: its result, or None where it ended with a status that may be."""
        begin, result, cause, text = time.perf_counter(), None, None, ""
        try:
            result, code = call(), _OK
        except MetaNASClientError as error:
            cause, text = error.__cause__, str(error)
            code = "(client)" if error.code is None else error.code.name
        except grpc.RpcError as error:
            cause, text, code = error, str(error.details()), error.code().name
        self.found.calls.append((what, code, 1000 * (time.perf_counter() - begin)))
        if code not in documented:
            self.found.undocumented.append(f"{self._name}: {what} ended with {code}: {text[:500]}")
        self._wait_as_told(cause)
        return result

    def _wait_as_told(self, cause: BaseException | None) -> None:
        if not isinstance(cause, grpc.Call):
            return
        for key, value in cause.trailing_metadata() or ():
            if key == "retry-after-ms":
                seconds = int(value) / 1000 * self._chance.uniform(1.0, 1.2)
                time.sleep(max(0.0, min(seconds, self._end - time.monotonic())))


def main(order: Mapping[str, Any]) -> None:
    """Make the callers, wait for the word, let them call, tell what they found."""
    numbers: Sequence[int] = order["numbers"]
    callers = [Caller(number, order["address"], seed=order["seed"]) for number in numbers]
    Parent.wait_for_start()
    with ThreadPoolExecutor(len(callers)) as threads:
        running = [threads.submit(caller.go, order["seconds"]) for caller in callers]
    Parent.tell_done()
    found = []
    for caller, one in zip(callers, running, strict=True):
        with suppress(Exception):
            one.result()
        if (error := one.exception()) is not None:
            caller.found.undocumented.append(f"{type(error).__name__}: {error}")
        found.append({name: getattr(caller.found, name) for name in Findings.__slots__})
    Parent.tell(found)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
