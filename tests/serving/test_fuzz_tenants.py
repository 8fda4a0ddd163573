"""Random and mutated requests of one tenant never tell what another has, nor touch it.

Tenant a has a task, an alias, a job and a key, whose labels and names are secret. Tenant b sends cases of
``fuzzing`` made of valid requests for just these, and then the same bytes with names that never were in
their place. It must not be able to tell the two apart: the same status, the same text but for what it quotes,
and no answer holds what b has never said: a's labels, and the id of another task of a's.
"""

import re
from collections.abc import Sequence

import grpc
import pytest
from fuzzing import FILES, METHODS, cases, messages, send
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.tokens import new_token, write_entries

QUICK, SLOW = 8, 200
"""Cases of each method; each is sent twice."""
SECRET, KEY = "secret-of-a", "monday"
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class Plant:
    """A server process with tokens of two tenants, what a has, and b's requests."""

    def __init__(self, server, tokens: Sequence[str]) -> None:
        self._server = server
        self._a, self._b = ((("authorization", f"Bearer {token}"),) for token in tokens)
        stub, support = (
            server.stub,
            [
                pb.LabelledImages(label=f"{SECRET}-{name}", images=[pb.Image(encoded=file)])
                for name, file in zip(("cat", "dog"), FILES, strict=False)
            ],
        )
        keyed = pb.AdaptRequest(support=support, idempotency_key=KEY)
        self._task = stub.Adapt(keyed, metadata=self._a, timeout=120).task.task_id
        started = stub.StartAdapt(pb.AdaptRequest(support=support, seed=1), metadata=self._a, timeout=120)
        self._job, self._alias = started.job_id, "line-of-a"
        watched = stub.WatchAdapt(pb.WatchAdaptRequest(job_id=self._job), metadata=self._a, timeout=120)
        self._other = list(watched)[-1].task.task_id
        stub.SetAlias(pb.SetAliasRequest(alias=self._alias, task_id=self._task), metadata=self._a)
        self._support = support
        self._answer = self._ask()
        self._never = {
            name: bytes(reversed(name.encode())) for name in (self._task, self._job, self._other, self._alias)
        }

    def bytes_for(self, path: str, seed: int) -> list[bytes]:
        """The messages of one case of tenant b."""
        method = METHODS[path]
        return messages(method, self._seeds(method), [self._task, self._job, self._alias], seed=seed)

    def with_names_that_never_were(self, sent: list[bytes]) -> list[bytes]:
        """The same bytes, a's names turned round: as long, and no one's."""
        return [self.turned(message) for message in sent]

    def send(self, path: str, sent: list[bytes]) -> tuple[grpc.StatusCode, str, bytes]:
        """One case of tenant b."""
        return send(self._server.channel, path, sent, metadata=self._b)

    def secrets_in(self, answer: bytes) -> list[bytes]:
        """What of a's is in an answer to b, that b has never said."""
        return [secret for secret in (SECRET.encode(), self._other.encode()) if secret in answer]

    def check_unharmed(self) -> None:
        """All that a has is as it was."""
        stub = self._server.stub
        assert self._ask() == self._answer
        aliases = stub.ListAliases(pb.ListAliasesRequest(), metadata=self._a).aliases
        assert [(one.alias, one.task_id) for one in aliases] == [(self._alias, self._task)]
        tasks = stub.ListTasks(pb.ListTasksRequest(), metadata=self._a).tasks
        assert {one.task_id for one in tasks} == {self._task, self._other}

    def _seeds(self, method: MethodDescriptor) -> list[bytes]:
        """Valid requests for what is a's; one that learns has labels of b's own."""
        kind, name = GetMessageClass(method.input_type), method.input_type.name
        names = {"task_id": self._task, "job_id": self._job, "name": self._task, "alias": self._alias}
        mine = [pb.LabelledImages(label=one.label[-3:], images=one.images) for one in self._support]
        known: dict[str, Message] = {
            "AdaptRequest": pb.AdaptRequest(support=mine, idempotency_key=KEY),
            "UpdateTaskRequest": pb.UpdateTaskRequest(task_id=self._alias, support=mine[:1]),
            "ClassifyRequest": pb.ClassifyRequest(task_id=self._task, images=[pb.Image(encoded=FILES[0])]),
            "ExportTaskRequest": pb.ExportTaskRequest(task_id=self._task, format=1),
        }
        if name not in known:
            there = {field.name: names[field.name] for field in method.input_type.fields if field.name in names}
            if "model_name" in method.input_type.fields_by_name:
                there = {"model_name": self._task}
            known[name] = kind(**there)
        return [known[name].SerializeToString()]

    def turned(self, data: bytes) -> bytes:
        """The same with names that never were."""
        for name, never in self._never.items():
            data = data.replace(name.encode(), never)
        return data

    def _ask(self) -> list[bytes]:
        request = pb.ClassifyRequest(task_id=self._task, images=[pb.Image(encoded=file) for file in FILES])
        answer = self._server.stub.Classify(request, metadata=self._a, timeout=60)
        return [one.SerializeToString() for one in answer.classifications]


@pytest.fixture(scope="module")
def plant(tiny_meta, make_process, tmp_path_factory) -> Plant:
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    made = [new_token(tenant) for tenant in ("a", "b")]
    write_entries(path, [entry for _, entry in made])
    server = make_process("--meta", str(tiny_meta), "--adapt-workers", "1", "--tokens", str(path))
    return Plant(server, [token for token, _ in made])


def check_method(plant: Plant, path: str, count: int) -> None:
    @cases(count)
    @given(seed=st.integers(0, 2**64 - 1))
    def check(seed: int) -> None:
        sent = plant.bytes_for(path, seed)
        never = plant.with_names_that_never_were(sent)
        told, expected = plant.send(path, sent), plant.send(path, never)
        for code, text, answer in (told, expected):
            found = plant.secrets_in(answer + text.encode())
            assert not found, f"{found} in {code.name} {text} {answer!r:.1000} to {sent!r:.1000}"
        if grpc.StatusCode.RESOURCE_EXHAUSTED not in (told[0], expected[0]):  # b has too much under way
            assert told[0] is expected[0], f"{told} to {sent!r:.1000}, but {expected} to names that never were"
            plain = [_QUOTED.sub("", plant.turned(text.encode()).decode()) for _, text, _ in (told, expected)]
            assert plain[0] == plain[1], f"{sent!r:.1000} can be told from names that never were"

    check()
    plant.check_unharmed()


@pytest.mark.parametrize("path", METHODS)
def test_no_bytes_of_one_tenant_tell_or_touch_what_another_has(plant: Plant, path: str):
    check_method(plant, path, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", METHODS)
def test_no_bytes_of_hundreds_a_method_tell_or_touch_what_another_tenant_has(plant: Plant, path: str):
    check_method(plant, path, SLOW)
