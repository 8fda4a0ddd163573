"""One server from bind to drain.

    Application.start   listen, load, warm up, then say SERVING
    Application.stop    NOT_SERVING, let running calls finish, cancel what is left, end

Between the two it is an ordinary object: tests run several in one process. It listens before it is
ready, so that a port in use is found at once and health can say NOT_SERVING of its services
meanwhile. What a killed server left half done in the store is removed after that.
"""

import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from metanas.artifact import meta_from_bytes
from metanas_proto.inference import open_inference_pb2_grpc
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc
from metanas_serving import processors
from metanas_serving.aliases import Aliases
from metanas_serving.allowance import Allowance, TenantLimits
from metanas_serving.around import AroundCalls
from metanas_serving.arrival import ArrivalClock
from metanas_serving.classifying import Classifier
from metanas_serving.config import ServerConfig
from metanas_serving.engine import Engine
from metanas_serving.errors import StartupError
from metanas_serving.gate import Gate
from metanas_serving.housekeeping import Housekeeper
from metanas_serving.jobs import Adaptations, prepare_adaptations
from metanas_serving.keeping import Keeper
from metanas_serving.keys import Keys
from metanas_serving.learning import Learner
from metanas_serving.ledger import Ledger
from metanas_serving.limits import LearningLimits
from metanas_serving.memory import image_bytes
from metanas_serving.metrics import Metrics
from metanas_serving.metrics_calls import counting
from metanas_serving.metrics_server import MetricsServer
from metanas_serving.metrics_state import ServerState
from metanas_serving.open_inference import SERVICE_NAME as OPEN_INFERENCE
from metanas_serving.open_inference import OpenInferenceService, pool_with
from metanas_serving.options import OptionLimits
from metanas_serving.placing import Placing
from metanas_serving.readiness import Readiness
from metanas_serving.request_id import named
from metanas_serving.service import FewShotService
from metanas_serving.store import TaskStore
from metanas_serving.support import SupportLimits
from metanas_serving.tenants import Authentication
from metanas_serving.tokens import FileTokens
from metanas_serving.traces import open_traces
from metanas_serving.transport import server_credentials
from metanas_serving.unreadable import UnreadableRequests

_log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["FewShot"].full_name
_SERVICES = (SERVICE_NAME, OPEN_INFERENCE)

# What cancelled calls have for their way out.
_LEAVE_SECONDS = 5.0


class Application:
    """One server."""

    def __init__(self, config: ServerConfig, adaptations: Adaptations | None = None) -> None:
        """Read the meta-model and make the parts; nothing new runs yet, but the store is taken.

        Args:
            adaptations: of the same configuration, perhaps started before; None: makes them.

        Raises:
            StartupError: no meta-model, CUDA asked for but missing, or a store, certificate or token file that
                cannot be used.
            ArtifactError: the meta-model's file cannot be used.
        """
        self._config = config
        self._credentials = server_credentials(config.tls_cert, config.tls_key, config.tls_client_ca)
        self._tokens = None if config.tokens_path is None else FileTokens(config.tokens_path)
        self._traces = open_traces(config.otlp_endpoint, config.otlp_headers)
        self.adaptations = adaptations or prepare_adaptations(config)
        name = self.adaptations.start_values.meta_name
        meta = meta_from_bytes(self.adaptations.start_values.meta, name=name)
        self._preprocessing = meta.preprocessing
        _log.info("meta-model %s, trained on %s", name, meta.provenance.get("data", "data it does not name"))
        self._engine = Engine(
            device=config.device,
            max_loaded=config.max_loaded_tasks,
            max_bytes=config.max_loaded_mb * 1024 * 1024,
            max_batch=config.max_batch,
        )
        self._gate = Gate()
        self._store = TaskStore.memory() if config.store_path is None else TaskStore.open(config.store_path)
        if config.store_path is None:
            _log.info("no --store: tasks are kept in memory and are lost when the server stops")
        self._metrics = Metrics()
        self._allowance = Allowance(
            TenantLimits(
                requests_per_second=config.max_tenant_requests_per_second,
                adapts_per_minute=config.max_tenant_adapts_per_minute,
                max_tasks=config.max_tenant_tasks,
                max_bytes=None if config.max_tenant_mb is None else config.max_tenant_mb * 1024 * 1024,
            ),
            usage=self._store.usage,
        )
        ledger = Ledger(max_finished=config.max_finished_jobs, keep_seconds=config.finished_job_seconds)
        learner = Learner(
            meta,
            self.adaptations,
            ledger=ledger,
            keys=Keys(self._store.index.secret()),
            store=self._store,
            keeper=Keeper(self._store, self._engine, metrics=self._metrics),
            limits=LearningLimits(
                options=OptionLimits(
                    max_steps=config.max_adapt_steps,
                    max_learning_rate=config.max_learning_rate,
                    ttl_seconds=config.task_ttl_seconds,
                ),
                support=SupportLimits(config.max_support_images, config.max_classes),
                max_upload_bytes=config.max_upload_mb * 1024 * 1024,
                memory_bytes=config.worker_memory_bytes,
                image_bytes=image_bytes(meta),
            ),
            allowance=self._allowance,
            traces=self._traces,
        )
        aliases = Aliases(self._store, max_pinned_bytes=config.max_loaded_mb * 1024 * 1024 // 2)
        self._health = Readiness(
            _SERVICES,
            tokens=self._tokens,
            find=lambda name, tenant: self._store.owned(aliases.resolve(name, tenant=tenant), tenant=tenant),
        )
        classifier = Classifier(self._store, self._engine, metrics=self._metrics)
        self._housekeeper = Housekeeper(self._store, self._engine, aliases=aliases, classifier=classifier)
        self._service = FewShotService(
            self._gate,
            learner,
            ledger=ledger,
            aliases=aliases,
            store=self._store,
            engine=self._engine,
            classifier=classifier,
            max_classify_images=config.max_classify_images,
            allowance=self._allowance,
            traces=self._traces,
        )
        self._open_inference = OpenInferenceService(
            self._gate,
            self._store,
            aliases=aliases,
            classifier=classifier,
            max_images=config.max_classify_images,
            traces=self._traces,
        )
        self._metrics.registry.register(ServerState(self.adaptations, self._engine))
        self._processor = processors.current() if config.request_processors == "one" else None
        if self._processor is not None:
            _log.info(
                "requests are read and answered on processor %d, networks of small images run on the others "
                "(--request-processors)",
                self._processor,
            )
        self._metrics_server: MetricsServer | None = None
        self._server: grpc.Server | None = None

    def start(self, *, should_stop: Callable[[], bool] = lambda: False) -> str:
        """Listen, warm up, open.

        Returns:
            The address, ``host:port``.

        Raises:
            StartupError: the port cannot be had, or the adaptation process does not start.
            AdaptationCancelledError: ``should_stop`` said so.
        """
        with processors.tied(self._processor):  # gRPC's threads, that which reads what arrives among them
            self._server, address = self._listen()
            self._server.start()
        if (port := self._config.metrics_port) is not None:
            self._metrics_server = MetricsServer.start(
                self._metrics.registry, host=self._config.metrics_host, port=port
            )
        self.adaptations.start()
        self._engine.warm_up(self.adaptations.warm_up(should_stop=should_stop).onnx, self._preprocessing)
        self._gate.open()
        self._health.set_ready(True)
        self._housekeeper.start()
        return address

    def stop(self, drain_seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Take no new calls, let running ones finish, cancel the rest, end.

        Args:
            drain_seconds: how long running calls may go on.
            hurry: asked meanwhile; true: cancel at once.
        """
        self._health.set_ready(False)
        self._gate.close()
        begin = time.monotonic()
        left = self._gate.wait_empty(drain_seconds, hurry=hurry)
        if left:
            _log.warning("%d calls still run after %.1f s; cancelling them", left, time.monotonic() - begin)
        left = self.adaptations.wait_idle(drain_seconds - (time.monotonic() - begin), hurry=hurry)
        if left:
            _log.warning("%d jobs are not over after %.1f s; cancelling them", left, time.monotonic() - begin)
        self._gate.cut_off()
        self.adaptations.close()
        self._gate.wait_empty(_LEAVE_SECONDS)
        if self._server is not None:
            self._server.stop(grace=None).wait()
        self._housekeeper.stop()
        self._store.close()
        if self._metrics_server is not None:
            self._metrics_server.stop()
        self._traces.close()

    def _listen(self) -> tuple[grpc.Server, str]:
        config, placing = self._config, Placing(self._processor)
        server = grpc.server(
            ThreadPoolExecutor(max_workers=config.request_threads, thread_name_prefix="request"),
            interceptors=[
                ArrivalClock(),
                placing,
                AroundCalls(
                    _SERVICES,
                    placing.enter,
                    named,
                    counting(self._metrics),
                    *([self._traces.call] if self._traces.is_on else []),
                ),
                Authentication(self._tokens, allowance=self._allowance, services=_SERVICES),
                UnreadableRequests(_SERVICES),
            ],
            options=[
                ("grpc.max_receive_message_length", config.max_message_mb * 1024 * 1024),
                ("grpc.max_send_message_length", -1),
                # With it, the default on Linux, a second server would share the port in silence.
                ("grpc.so_reuseport", 0),
            ],
        )
        few_shot_pb2_grpc.add_FewShotServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._open_inference, server)
        reflection.enable_server_reflection(
            (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME),
            server,
            pool=pool_with((pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)),
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        at = f"{host}:{config.port}"
        try:
            if self._credentials is None:
                port = server.add_insecure_port(at)
            else:
                port = server.add_secure_port(at, self._credentials)
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {at}: {_why_not(config.host, config.port)}; "
                "choose another --port (0 picks a free one) or --host"
            ) from error
        return server, f"{host}:{port}"


def _why_not(host: str, port: int) -> str:
    # gRPC says only that it failed.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "gRPC could not bind it"
