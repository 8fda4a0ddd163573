"""What a server is like at the moment that Prometheus asks.

    ServerState   adaptations that wait and run, tasks that are loaded, memory of the processes

Memory is read from ``/proc``; where there is none, it is left out.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from metanas_serving.engine import Engine
from metanas_serving.jobs import Adaptations

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ServerState(Collector):
    """Reads the state of one server; register it with its ``Metrics``."""

    def __init__(self, adaptations: Adaptations, engine: Engine) -> None:
        self._adaptations = adaptations
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read everything."""
        adaptations = GaugeMetricFamily("metanas_adaptations", "Adaptations, by state.", labels=("state",))
        adaptations.add_metric(("waiting",), self._adaptations.waiting_count)
        adaptations.add_metric(("running",), self._adaptations.running_count)
        yield adaptations
        yield GaugeMetricFamily(
            "metanas_loaded_tasks", "Tasks whose network is in memory.", value=len(self._engine.loaded)
        )
        yield GaugeMetricFamily(
            "metanas_loaded_task_bytes",
            "Memory that the loaded tasks take, without what they share.",
            value=self._engine.loaded_bytes,
        )
        memory = GaugeMetricFamily(
            "metanas_resident_memory_bytes",
            "Resident memory of the server and of all its adaptation processes.",
            labels=("process",),
        )
        processes = {"server": [os.getpid()], "adaptation": self._adaptations.process_ids}
        for name, ids in processes.items():
            if sizes := [size for process_id in ids if (size := resident_bytes(process_id)) is not None]:
                memory.add_metric((name,), sum(sizes))
        yield memory


def resident_bytes(process_id: int) -> int | None:
    """Resident memory of a process; None if it has ended or this system does not say."""
    with suppress(OSError):
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * _PAGE_BYTES
    return None
