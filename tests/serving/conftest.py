"""Real servers on free ports, in this process and as processes of their own, with small meta-models.

tiny_meta, slow_meta   files: learnt in a moment; never finished in a test's time
fixed_metas            files: learnt in a moment, their architecture fixed
server                 one server in this process for all tests that only ask it things
start_server           a server in this process, as a test wants it
start_process          a server as a user starts it
certificates           of a server, a client and a stranger, made for the tests
"""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from PIL import Image

from metanas.artifact import save_meta
from metanas.backbone import build_backbone
from metanas.genotypes import named_genotype
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import NO_CELLS, ConvBlocks, Genotype, SearchSpace, Space
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc
from metanas_serving.application import Application
from metanas_serving.config import ServerConfig

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(Path(__file__).parent))  # for ``fuzzing``, which two files of tests share

Pixels = NDArray[np.uint8]


SMALL_SPACE = SearchSpace(
    channels=8, cells=2, reduction_cells=(1,), nodes=2, operations=("max_pool_3x3", "skip_connect", "sep_conv_3x3")
)


def make_meta(space: Space, schedule: Schedule, *, genotype: Genotype | None = None) -> MetaModel:
    """A meta-model with random weights; one that searches unless a genotype is given."""
    torch.manual_seed(0)
    weights = {name: value.detach() for name, value in build_backbone(space, genotype).named_parameters()}
    return MetaModel(
        space=space,
        weights=weights,
        architecture=initial_architecture(space) if genotype is None else {},
        genotype=genotype,
        head_scale=10.0,
        preprocessing=Preprocessing(invert=True),
        schedule=schedule,
        provenance={"data_set": "noise"},
    )


@pytest.fixture(scope="session")
def build_meta() -> Callable[..., MetaModel]:
    return make_meta


@pytest.fixture(scope="session")
def tiny_meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meta") / "tiny.pt"
    save_meta(path, make_meta(SMALL_SPACE, Schedule(architecture_steps=3, weight_steps=3)))
    return path


@pytest.fixture(scope="session")
def fixed_metas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of meta-models whose architecture is fixed: AutoMeta's cells, and plain blocks."""
    folder, schedule = tmp_path_factory.mktemp("fixed"), Schedule(architecture_steps=3, weight_steps=3)
    metas = {
        "autometa": make_meta(
            SearchSpace(channels=4, cells=2, reduction_cells=(1,), nodes=5, affine=True),
            schedule,
            genotype=named_genotype("autometa"),
        ),
        "blocks": make_meta(ConvBlocks(filters=8), schedule, genotype=NO_CELLS),
    }
    paths = {name: folder / f"{name}.pt" for name in metas}
    for name, meta in metas.items():
        save_meta(paths[name], meta)
    return paths


@pytest.fixture(scope="session")
def slow_meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meta") / "slow.pt"
    save_meta(path, make_meta(SMALL_SPACE, Schedule(architecture_steps=10_000, weight_steps=10_000)))
    return path


@pytest.fixture(scope="session")
def full_size_meta(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    return make_meta(SearchSpace(), Schedule())


class Client:
    """Stubs to a server, and requests in the words of a test."""

    def __init__(self, address: str, *, channel: grpc.Channel | None = None) -> None:
        self.address = address
        self.channel = channel or grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        )
        self.stub = few_shot_pb2_grpc.FewShotStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    def health(self, service: str = "metanas.v1.FewShot") -> str:
        answer = self._health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def adapt(self, support: Mapping[str, Sequence[pb.Image]], *, seed: int = 0) -> pb.Task:
        return self.stub.Adapt(self.request(support, seed=seed), timeout=60).task

    def begin_adapt(self, support: Mapping[str, Sequence[pb.Image]], *, timeout: float = 120) -> grpc.Future:
        return self.stub.Adapt.future(self.request(support), timeout=timeout)

    @staticmethod
    def request(support: Mapping[str, Sequence[pb.Image]], *, seed: int = 0) -> pb.AdaptRequest:
        return pb.AdaptRequest(
            support=[pb.LabelledImages(label=label, images=images) for label, images in support.items()], seed=seed
        )

    def classify(self, task_id: str, images: Sequence[pb.Image]) -> list[dict[str, float]]:
        answer = self.stub.Classify(pb.ClassifyRequest(task_id=task_id, images=images), timeout=20)
        return [{one.class_name: one.probability for one in image.classes} for image in answer.classifications]

    def export(self, task_id: str, format_: int = pb.ExportTaskRequest.FORMAT_TASK_MODEL) -> bytes:
        request = pb.ExportTaskRequest(task_id=task_id, format=format_)
        return b"".join(chunk.data for chunk in self.stub.ExportTask(request, timeout=20))

    def close(self) -> None:
        self.channel.close()


class Server(Client):
    """A server in this process, and a client of it."""

    def __init__(self, config: ServerConfig) -> None:
        self.application = Application(config)
        super().__init__(self.application.start())

    def stop(self, drain_seconds: float = 0) -> None:
        self.application.stop(drain_seconds)
        self.close()


@contextmanager
def running(config: ServerConfig) -> Iterator[Server]:
    server = Server(config)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server(tiny_meta: Path) -> Iterator[Server]:
    config = ServerConfig(
        meta_path=tiny_meta,
        port=0,
        max_support_images=60,
        max_classes=40,
        max_classify_images=150,
        max_message_mb=8,
        max_loaded_tasks=2,
        adapt_workers=1,
    )
    with running(config) as server:
        yield server


@pytest.fixture
def start_server() -> Iterator[Callable[[ServerConfig], Server]]:
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(running(config))


@pytest.fixture(scope="module")
def make_server() -> Iterator[Callable[[ServerConfig], Server]]:
    """As ``start_server``, for a module."""
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(running(config))


class ServerProcess(Client):
    """A server as a user starts it, and a client of it."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.log_path = folder / "server.log"
        self._log = self.log_path.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "serving" / "server.py"), "--port", "0", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("serving on 127.0.0.1:"), (folder / "server.log").read_text()
        super().__init__(line.removeprefix("serving on ").strip())

    def end(self) -> None:
        self.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    with ExitStack() as stack:

        def start(*arguments: str) -> ServerProcess:
            process = ServerProcess(arguments, tmp_path)
            stack.callback(process.end)
            return process

        yield start


@pytest.fixture(scope="module")
def make_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ServerProcess]]:
    """As ``start_process``, for a module."""
    with ExitStack() as stack:

        def start(*arguments: str) -> ServerProcess:
            process = ServerProcess(arguments, tmp_path_factory.mktemp("server"))
            stack.callback(process.end)
            return process

        yield start


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: an authority, what it signed for a server and a client, and another authority's client."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger: Path
    stranger_key: Path

    @property
    def flags(self) -> list[str]:
        """Of a server that speaks TLS."""
        return ["--tls-cert", str(self.server), "--tls-key", str(self.server_key)]


def _certificate(
    folder: Path, name: str, *, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Write ``name.pem`` and ``name.key``; without an issuer an authority's own."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    certificate = builder.sign(key if issuer is None else issuer[1], hashes.SHA256())
    encoding = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(encoding))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority = _certificate(folder, "authority", issuer=None)
    _certificate(folder, "server", issuer=authority)
    _certificate(folder, "client", issuer=authority)
    _certificate(folder, "stranger", issuer=_certificate(folder, "other-authority", issuer=None))
    return Certificates(
        authority=folder / "authority.pem",
        server=folder / "server.pem",
        server_key=folder / "server.key",
        client=folder / "client.pem",
        client_key=folder / "client.key",
        stranger=folder / "stranger.pem",
        stranger_key=folder / "stranger.key",
    )


@pytest.fixture(scope="session")
def job_server(tiny_meta: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server process with a store, one worker and low limits, for all tests that leave it idle."""
    folder = tmp_path_factory.mktemp("job_server")
    process = ServerProcess(["--meta", str(tiny_meta), "--store", str(folder / "store"), *JOB_SERVER], folder)
    yield process
    process.end()


JOB_SERVER = (
    *("--adapt-workers", "1", "--max-queue", "3", "--max-adapt-steps", "20000"),
    *("--max-message-mb", "1", "--max-upload-mb", "3", "--max-learning-rate", "0.5"),
)


def drawings(count: int, seed: int) -> list[Pixels]:
    """Pictures of noise, 28 x 28, dark on white."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (28, 28), dtype=np.uint8) for _ in range(count)]


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def support() -> dict[str, list[pb.Image]]:
    """Three classes with one, two and three images, as files."""
    return {
        name: [pb.Image(encoded=png(pixels)) for pixels in drawings(shots, seed=shots)]
        for name, shots in (("cat", 2), ("dog", 3), ("hen", 1))
    }


@pytest.fixture
def queries() -> list[pb.Image]:
    return [pb.Image(encoded=png(pixels)) for pixels in drawings(5, seed=10)]


@pytest.fixture
def refuses() -> Callable[..., None]:
    """Check that a call fails with a status and a text that holds all the words."""

    def check(code: grpc.StatusCode, words: Sequence[str], call: Callable[[], object]) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is code, caught.value.details()
        for word in words:
            assert word in caught.value.details()

    return check


@pytest.fixture
def png_of() -> Callable[[Pixels], bytes]:
    return png
