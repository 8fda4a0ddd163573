"""How much of a server one tenant may take.

    TokenBucket            so many a second, and so many at once after a rest
    Allowance.request      a call, or RateError with when to try again
    Allowance.adaptation   the same for a task to be learnt, or QuotaError if too much is kept already

How many adaptations of a tenant wait and run at a time is up to ``jobs``, which counts them. It knows nothing of
gRPC; one lock guards the buckets.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from metanas_serving.errors import QuotaError, RateError
from metanas_serving.usage import Usage


class TokenBucket:
    """Fills at an even rate up to its size; starts full. Not safe to share between threads."""

    def __init__(self, *, per_second: float, size: float, now: float) -> None:
        self._per_second = per_second
        self._size = size
        self._level = size
        self._at = now

    def take(self, now: float) -> float:
        """Take one out.

        Args:
            now: seconds of a clock that only goes forward.

        Returns:
            0.0; or, if there is none and none was taken, in how many seconds there will be one.
        """
        self._level = min(self._size, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self._per_second
        self._level -= 1
        return 0.0


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What each tenant may take; None: as much as it likes."""

    requests_per_second: float | None = None
    adapts_per_minute: float | None = None
    max_tasks: int | None = None
    max_bytes: int | None = None


class Allowance:
    """What each tenant has taken of what it may; safe to share between threads."""

    def __init__(
        self,
        limits: TenantLimits,
        *,
        usage: Callable[[str], Usage],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Let each tenant start with all it may have.

        Args:
            usage: what is kept of a tenant now.
        """
        self._limits = limits
        self._usage = usage
        self._clock = clock
        self._lock = threading.Lock()
        # A bucket for each tenant that has called: there are no more of them than tokens.
        self._requests: dict[str, TokenBucket] = {}
        self._adapts: dict[str, TokenBucket] = {}

    def request(self, tenant: str) -> None:
        """Count a call.

        Raises:
            RateError: it is one too many for now.
        """
        rate = self._limits.requests_per_second
        if rate is not None and (wait := self._take(self._requests, tenant, per_second=rate, size=max(1.0, rate))):
            raise RateError(
                f"more than {rate:g} requests a second, what this server allows a tenant "
                f"(--max-tenant-requests-per-second); try again in {wait:.3f} s",
                retry_after_seconds=wait,
            )

    def adaptation(self, tenant: str, *, present: int) -> None:
        """Count a task to be learnt.

        Args:
            present: adaptations of the tenant that wait, run or come in, this one too: each may become a task.

        Raises:
            QuotaError: the tenant keeps as much as it may.
            RateError: it is one too many for now.
        """
        self._check_quota(tenant, present)
        rate = self._limits.adapts_per_minute
        if rate is None:
            return
        if wait := self._take(self._adapts, tenant, per_second=rate / 60, size=max(1.0, rate)):
            raise RateError(
                f"more than {rate:g} adaptations a minute, what this server allows a tenant "
                f"(--max-tenant-adapts-per-minute); try again in {wait:.1f} s",
                retry_after_seconds=wait,
            )

    def _take(self, buckets: dict[str, TokenBucket], tenant: str, *, per_second: float, size: float) -> float:
        now = self._clock()
        with self._lock:
            bucket = buckets.setdefault(tenant, TokenBucket(per_second=per_second, size=size, now=now))
            return bucket.take(now)

    def _check_quota(self, tenant: str, present: int) -> None:
        max_tasks, max_bytes = self._limits.max_tasks, self._limits.max_bytes
        if max_tasks is None and max_bytes is None:
            return
        usage = self._usage(tenant)
        if max_tasks is not None and usage.tasks + present > max_tasks:
            raise QuotaError(
                f"{usage.tasks} tasks kept and {present} asked for, this server allows a tenant {max_tasks} "
                "(--max-tenant-tasks); delete some with DeleteTask"
            )
        if max_bytes is not None and usage.bytes >= max_bytes:
            raise QuotaError(
                f"{usage.bytes} bytes of tasks kept, this server allows a tenant {max_bytes} (--max-tenant-mb); "
                "delete some with DeleteTask"
            )
