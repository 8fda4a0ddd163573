"""Cases for tests that send hostile bytes: random ones, valid requests with accidents, fields filled with anything.

METHODS    all methods of both protocols, by path
cases      how many cases Hypothesis draws: always the same ones
FILES      small good PNG and JPEG files
mutated    what is left of good bytes after some accidents
messages   the bytes of one case for one method
send       a case to a server, past any client that would refuse it
"""

import io
import random
from collections.abc import Iterable, Sequence

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, settings
from PIL import Image

from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.v1 import few_shot_pb2 as pb

METHODS = {
    f"{service.full_name}/{method.name}": method
    for service in (pb.DESCRIPTOR.services_by_name["FewShot"], oip.DESCRIPTOR.services_by_name["GRPCInferenceService"])
    for method in service.methods
}


def cases(count: int) -> settings:
    """So many, always the same ones, without what shrinks them: a failure prints its bytes."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def file_of(kind: str, size: tuple[int, int] = (28, 28), **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


FILES = [file_of("PNG"), file_of("JPEG"), file_of("JPEG", (60, 90), progressive=True), file_of("PNG", (1, 1))]


def mutated(base: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """What is left of a message after one to six accidents."""
    data = bytearray(base)
    for _ in range(chance.randint(1, 6)):
        place = chance.randint(0, len(data))
        end = min(len(data), place + chance.choice((1, 2, 8, 64, 4096)))
        match chance.randrange(7):
            case 0 if data:
                data[min(place, len(data) - 1)] = chance.randrange(256)
            case 1 if data:
                data[min(place, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 2:
                data[place:place] = chance.randbytes(chance.choice((1, 4, 40)))
            case 3:
                del data[place:end]
            case 4:
                data[place:place] = data[place:end]
            case 5:
                del data[place:]
            case _:
                other = chance.choice(others)
                data[place:end] = other[chance.randint(0, len(other)) :]
    return bytes(data[:300_000])


NUMBERS = (0, 1, 2, 3, 255, 256, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
FLOATS = (0.0, -1.0, 0.5, 1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", " ", "images", "probabilities", "FP32", "UINT8", "BYTES", "classification", "../../etc/passwd", "é\0\n")
RANGES = {"INT32": (31, True), "INT64": (63, True), "UINT32": (32, False), "UINT64": (64, False), "ENUM": (31, True)}


def filled(message: Message, words: Sequence[str], chance: random.Random, depth: int = 0) -> Message:
    """Fill some fields of a message with whatever their types can hold."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4 or depth > 5:
            continue
        repeated = field.is_repeated
        for _ in range(chance.choice((1, 1, 2, 4)) if repeated else 1):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                entry = getattr(message, field.name)
                filled(entry[chance.choice((*TEXTS[:-1], *words))], words, chance, depth + 1)
            elif field.message_type is not None:
                inner = getattr(message, field.name)
                filled(inner.add() if repeated else inner, words, chance, depth + 1)
            elif repeated:
                getattr(message, field.name).append(_value(field, words, chance))
            else:
                setattr(message, field.name, _value(field, words, chance))
    return message


def _value(field: FieldDescriptor, words: Sequence[str], chance: random.Random) -> object:
    kind = _TYPE_NAMES[field.type]
    if kind == "STRING":
        return chance.choice((*TEXTS, *words, *words, "x" * 300))
    if kind == "BYTES":
        return chance.choice((*FILES, b"", chance.randbytes(chance.choice((1, 16, 784, 4000)))))
    if kind == "BOOL":
        return chance.random() < 0.5
    if kind in ("DOUBLE", "FLOAT"):
        return chance.choice(FLOATS)
    bits, signed = RANGES[kind]
    lowest, highest = (-(2**bits), 2**bits - 1) if signed else (0, 2**bits - 1)
    return chance.choice([number for number in NUMBERS if lowest <= number <= highest])


_TYPE_NAMES = {getattr(FieldDescriptor, name): name[5:] for name in dir(FieldDescriptor) if name.startswith("TYPE_")}


def messages(method: MethodDescriptor, seeds: Sequence[bytes], words: Sequence[str], *, seed: int) -> list[bytes]:
    """The messages of one case: one, or up to three where the caller streams.

    Args:
        seeds: valid requests of the method.
        words: names that fields of text may have.
    """
    chance = random.Random(seed)
    found = []
    for _ in range(chance.choice((1, 2, 3)) if method.client_streaming else 1):
        match chance.randrange(8):
            case 0:
                found.append(chance.randbytes(chance.choice((0, 1, 5, 60, 2000))))
            case 1 | 2 | 3:
                found.append(filled(GetMessageClass(method.input_type)(), words, chance).SerializeToString())
            case 4:
                found.append(chance.choice(seeds))
            case _:
                found.append(mutated(chance.choice(seeds), [*seeds, *FILES], chance))
    return found


def send(
    channel: grpc.Channel, path: str, sent: Sequence[bytes], *, metadata: Iterable[tuple[str, str]] = ()
) -> tuple[grpc.StatusCode, str, bytes]:
    """One case: its status, its text, and the bytes of its answers."""
    method = METHODS[path]
    kind = "_".join("stream" if side else "unary" for side in (method.client_streaming, method.server_streaming))
    call = getattr(channel, kind)(f"/{path}")
    try:
        answer = call(iter(sent) if method.client_streaming else sent[0], timeout=120, metadata=tuple(metadata))
        return grpc.StatusCode.OK, "", b"".join(answer) if method.server_streaming else answer
    except grpc.RpcError as error:
        return error.code(), error.details(), b""
