"""What one server is told at its start, checked once and never changed."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from metanas.errors import InvalidConfigError
from metanas_serving.exposure import check_exposure

Device = Literal["auto", "cpu", "cuda"]
LogFormat = Literal["text", "json"]
RequestProcessors = Literal["one", "any"]

# Ten years.
MAX_TTL_SECONDS = 315_360_000.0

MIN_WORKER_MB = 384

DEFAULT_MAX_BATCH = 16

# Threads that adaptations never hold, so that Classify and health always find one.
_SPARE_THREADS = 4


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of one server.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    meta_path: Path | None = None
    """The meta-model; None: the bundled one."""
    host: str = "127.0.0.1"
    """Address to listen on. The default answers this machine only; beyond it, TLS and tokens are needed."""
    port: int = 50051
    """0 picks a free one."""
    tls_cert: Path | None = None
    """PEM, the server's certificate and those up to its authority; None: plain text."""
    tls_key: Path | None = None
    """PEM, the key of that certificate, without a password."""
    tls_client_ca: Path | None = None
    """PEM, authorities: callers have to show a certificate of one of them. None: they need none."""
    tokens_path: Path | None = None
    """File of ``metanas-tokens``: callers have to show one of its tokens. None: they need none."""
    max_tenant_jobs: int | None = None
    """Adaptations of one tenant at a time, waiting or running; None: as many as there are places."""
    max_tenant_requests_per_second: float | None = None
    """Calls of one tenant, and requests within its streams; after a rest, as many at once. None: any number."""
    max_tenant_adapts_per_minute: float | None = None
    """Likewise, tasks that one tenant has learnt."""
    max_tenant_tasks: int | None = None
    """Tasks that one tenant may keep; None: any number."""
    max_tenant_mb: int | None = None
    """MiB of their files: no task is learnt for a tenant that has as much. None: any number."""
    insecure: bool = False
    """Listen beyond this machine even without TLS or tokens."""
    store_path: Path | str | None = None
    """Folder of learnt tasks, or a URL of fsspec that several servers share; None: they are lost when the server
    stops."""
    device: Device = "auto"
    """Where Classify computes. Adaptation runs on the CPU."""
    adapt_workers: int = field(default_factory=lambda: min(2, os.cpu_count() or 1))
    """Adaptation processes, so adaptations at a time; each holds some 400 MB."""
    max_queue: int = 8
    """Adaptations that may wait for a worker."""
    torch_threads: int = 1
    """Of each adaptation process. Another number may give other bits."""
    request_threads: int = 32
    """Calls answered at a time. An adaptation holds one, waiting or running."""
    request_processors: RequestProcessors = "one"
    """Where requests are read and answered: on ``one``, that on which the server starts, which leaves networks of small
    images the others; or on ``any``."""
    max_support_images: int = 1000
    """Images of one Adapt."""
    max_classes: int = 1000
    """Classes of one task."""
    max_classify_images: int = 1000
    """Images of one Classify."""
    max_batch: int = DEFAULT_MAX_BATCH
    """Images of concurrent calls for one task that are run together where it pays; 1: each by itself."""
    max_message_mb: int = 64
    """Largest request, in MiB."""
    max_upload_mb: int = 512
    """Largest UploadAdapt, all its pieces together, in MiB."""
    max_adapt_steps: int = 1000
    """Gradient steps, of both phases together, that a request may ask for."""
    max_learning_rate: float = 1.0
    """That a request may ask for."""
    max_finished_jobs: int = 1000
    """Jobs that are over and remembered; each takes some kilobytes."""
    finished_job_seconds: float = 3600.0
    """How long a job that is over is remembered."""
    max_loaded_mb: int = 256
    """Memory of the networks that are kept, those of the tasks that were asked last, in MiB."""
    max_loaded_tasks: int = 1000
    """Tasks whose network is kept, the last asked. One takes 0.6 MB at 84,000 parameters; to load one again
    when its task is asked takes some 30 ms of a processor."""
    metrics_host: str = "127.0.0.1"
    """Address of the Prometheus metrics, which have neither TLS nor tokens."""
    task_ttl_seconds: float = 0.0
    """After what time a task is deleted whose request does not say; 0: it is kept for good."""
    worker_memory_mb: int | None = None
    """Memory that each adaptation process may take, in MiB; None: no bound."""
    metrics_port: int | None = None
    """Port of the Prometheus metrics; 0 picks a free one, None: not shown."""
    otlp_endpoint: str | None = None
    """Where OpenTelemetry traces go, OTLP over gRPC: ``http://HOST:PORT`` or ``https://...``; None: nowhere."""
    otlp_headers: str | None = field(default=None, repr=False)
    """Sent with them, ``name=value,name=value``: often a key, so never shown."""
    log_format: LogFormat = "text"
    """Of the log on stderr."""
    drain_seconds: float = 30.0
    """How long running calls may go on after SIGTERM."""

    @property
    def worker_memory_bytes(self) -> int | None:
        """``worker_memory_mb`` in bytes."""
        return None if self.worker_memory_mb is None else self.worker_memory_mb * 1024 * 1024

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidConfigError(f"port must be 0..65535, got {self.port}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise InvalidConfigError(f"metrics_port must be 0..65535, got {self.metrics_port}")
        if self.log_format not in ("text", "json"):
            raise InvalidConfigError(f"log_format must be text or json, got {self.log_format!r}")
        if self.request_processors not in ("one", "any"):
            raise InvalidConfigError(f"request_processors must be one or any, got {self.request_processors!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidConfigError(f"device must be auto, cpu or cuda, got {self.device!r}")
        for name in (
            "adapt_workers",
            "torch_threads",
            "max_classify_images",
            "max_batch",
            "max_loaded_tasks",
            "max_loaded_mb",
            "max_upload_mb",
            "max_adapt_steps",
        ):
            if getattr(self, name) < 1:
                raise InvalidConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_queue < 0:
            raise InvalidConfigError(f"max_queue must be at least 0, got {self.max_queue}")
        for name in ("max_support_images", "max_classes"):
            if getattr(self, name) < 2:
                raise InvalidConfigError(f"{name} must be at least 2, got {getattr(self, name)}")
        for name in ("max_tenant_jobs", "max_tenant_tasks", "max_tenant_mb"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise InvalidConfigError(f"{name} must be at least 1, got {count}")
        for name in ("max_tenant_requests_per_second", "max_tenant_adapts_per_minute"):
            if (rate := getattr(self, name)) is not None and not 0 < rate <= 1e6:
                raise InvalidConfigError(f"{name} must be above 0 and at most 1,000,000, got {rate}")
        if not 1 <= self.max_message_mb <= 2047:
            # gRPC counts the bytes of a message in 31 bits.
            raise InvalidConfigError(f"max_message_mb must be 1..2047, got {self.max_message_mb}")
        if not 0 < self.max_learning_rate <= 100:
            raise InvalidConfigError(f"max_learning_rate must be above 0 and at most 100, got {self.max_learning_rate}")
        if self.max_finished_jobs < 0:
            raise InvalidConfigError(f"max_finished_jobs must be at least 0, got {self.max_finished_jobs}")
        if not self.finished_job_seconds >= 0:  # written so that NaN is refused too
            raise InvalidConfigError(f"finished_job_seconds must be at least 0, got {self.finished_job_seconds}")
        if not 0 <= self.task_ttl_seconds <= MAX_TTL_SECONDS:
            raise InvalidConfigError(f"task_ttl_seconds must be 0..{MAX_TTL_SECONDS:g}, got {self.task_ttl_seconds}")
        if self.worker_memory_mb is not None and self.worker_memory_mb < MIN_WORKER_MB:
            raise InvalidConfigError(
                f"worker_memory_mb must be at least {MIN_WORKER_MB}, what a process takes before it learns anything, "
                f"got {self.worker_memory_mb}"
            )
        if not 0 <= self.drain_seconds <= 86_400:
            raise InvalidConfigError(f"drain_seconds must be 0..86400, got {self.drain_seconds}")
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise InvalidConfigError(
                f"otlp_endpoint must start with http:// or https://, got {self.otlp_endpoint!r}; for example "
                "http://localhost:4317"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidConfigError("tls_cert and tls_key go together; pass both (--tls-cert, --tls-key) or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidConfigError(
                "tls_client_ca asks callers for certificates, which needs TLS; pass --tls-cert and --tls-key too"
            )
        check_exposure(
            self.host,
            has_tls=self.tls_cert is not None,
            has_tokens=self.tokens_path is not None,
            insecure=self.insecure,
        )
        needed = self.adapt_workers + self.max_queue + _SPARE_THREADS
        if self.request_threads < needed:
            raise InvalidConfigError(
                f"request_threads must be at least adapt_workers + max_queue + {_SPARE_THREADS} = {needed}, so that "
                f"Classify and health find a thread while adaptations wait, got {self.request_threads}; "
                "raise request_threads or lower max_queue"
            )
