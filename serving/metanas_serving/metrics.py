"""What happens in one server, counted for Prometheus.

    Metrics.answered     a call went out: its name, its status, how long it took
    Metrics.classified   a batch of images was classified
    Metrics.asked        a task was to classify: it was loaded or not
    Metrics.adapted      a phase of an adaptation is over: its name, how long it took
    Metrics.registry     what ``metrics_server`` shows

Each server has a registry of its own, so that several run in one process. What can be read at any time
(queues, memory) is not counted here but read when it is asked for: ``metrics_state``.
"""

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

# Classify is answered in milliseconds, Adapt in seconds to minutes.
_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_PHASE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counts of one server; safe to share between threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "metanas_requests",
            "Calls that were answered, by call and gRPC status.",
            ("call", "code"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "metanas_request_seconds",
            "From the moment a thread takes a call to its answer or the end of its stream.",
            ("call",),
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._batch_images = Histogram(
            "metanas_classify_batch_images",
            "Images run together, of one call or of several.",
            buckets=_BATCH_IMAGES,
            registry=self.registry,
        )
        self._lookups = Counter(
            "metanas_loaded_task_lookups",
            "Calls by whether their task was loaded (hit) or had to be loaded from its file (miss).",
            ("result",),
            registry=self.registry,
        )
        self._adapt_seconds = Histogram(
            "metanas_adapt_seconds",
            "Seconds of adaptations by phase.",
            ("phase",),
            buckets=_PHASE_SECONDS,
            registry=self.registry,
        )
        self._hits, self._misses = (self._lookups.labels(result) for result in ("hit", "miss"))
        # Those of an end, found at once: looking for them takes longer than counting.
        self._ends: dict[tuple[str, grpc.StatusCode], tuple[Counter, Histogram]] = {}

    def answered(self, call: str, code: grpc.StatusCode, *, seconds: float) -> None:
        """Count a call by its end.

        Args:
            call: service and method, for example ``metanas.v1.FewShot/Classify``.
        """
        end = self._ends.get((call, code))
        if end is None:
            end = self._requests.labels(call, code.name), self._request_seconds.labels(call)
            self._ends[call, code] = end
        requests, request_seconds = end
        requests.inc()
        request_seconds.observe(seconds)

    def classified(self, images: int) -> None:
        """Count a batch of images, of one call or of several."""
        self._batch_images.observe(images)

    def asked(self, *, was_loaded: bool) -> None:
        """Count a look for a task by whether it was loaded already."""
        (self._hits if was_loaded else self._misses).inc()

    def adapted(self, phase: str, seconds: float) -> None:
        """Count one phase of an adaptation."""
        self._adapt_seconds.labels(phase).observe(seconds)
