"""Names that callers give to tasks.

    Aliases.resolve   an alias or a task's id    ->  the task's id
    Aliases.set, remove, list
    Aliases.without   with aliases.without(task_id): no alias points at the task, nor will one

They are kept in the store's index, each change as a whole, so an alias that moves points at the old task or
the new one, whenever the server is killed. Each tenant has names of its own.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from metanas_serving.errors import (
    AliasNotFoundError,
    InvalidRequestError,
    QuotaError,
    StoreFaultError,
    StoreWriteError,
    TaskInUseError,
)
from metanas_serving.record import Alias
from metanas_serving.store import TaskStore

MAX_ALIASES = 10_000
"""Of one tenant."""

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TASK_ID = re.compile(r"[0-9a-f]{32}")


class Aliases:
    """The aliases of one store; safe to share between threads."""

    def __init__(self, store: TaskStore, *, max_pinned_bytes: int | None = None) -> None:
        """Take the aliases of a store.

        Args:
            max_pinned_bytes: of the files of tasks that have a pinned alias, all tenants together; None: no limit.
        """
        self._store = store
        self._max_pinned_bytes = max_pinned_bytes

    def resolve(self, name: str, *, tenant: str = "") -> str:
        """The id of the task that has this alias; what is no alias of the tenant comes back as it is."""
        if not _is_alias(name):
            return name
        alias = self._store.index.alias(tenant, name)
        return name if alias is None else alias.task_id

    def list(self, *, tenant: str = "") -> list[Alias]:
        """All aliases of a tenant by name."""
        return self._store.index.aliases(tenant)

    def pinned(self) -> frozenset[str]:
        """Ids of the tasks that are to stay in memory: those with a pinned alias, of whatever tenant."""
        return frozenset(alias.task_id for alias in self._store.index.aliases(None) if alias.is_pinned)

    def set(self, alias: str, task_id: str, *, tenant: str = "", is_pinned: bool = False) -> str:
        """Give a task of a tenant an alias, or move the alias to it.

        Args:
            task_id: of the task, or another alias of it.
            is_pinned: whether the task is to stay in memory for as long as it has this alias.

        Returns:
            The id of the task.

        Raises:
            InvalidRequestError: the alias cannot be one.
            TaskNotFoundError: the tenant has no such task.
            QuotaError: more would be pinned than the server pins.
            StoreWriteError: it cannot be kept; all is as before.
        """
        if not _is_alias(alias):
            raise InvalidRequestError(
                f"{alias[:80]!r} cannot be an alias: take 1 to 64 letters, digits, dots, hyphens or underscores, the "
                "first a letter or digit, and not what a task id looks like (32 digits of 0-9, a-f)"
            )
        index = self._store.index
        with self._store.changing:
            if index.alias(tenant, alias) is None and index.alias_count(tenant) >= MAX_ALIASES:
                raise InvalidRequestError(f"there are {MAX_ALIASES} aliases, as many as a server keeps; delete some")
            target = self._store.owned(self.resolve(task_id, tenant=tenant), tenant=tenant).task_id
            new = Alias(tenant, alias, target, is_pinned=is_pinned)
            if is_pinned:
                self._check_pinned(new)
            with _keeping():
                index.put_alias(new)
            return target

    def remove(self, alias: str, *, tenant: str = "") -> None:
        """Take an alias of a tenant away.

        Raises:
            AliasNotFoundError: there is none of that name.
            StoreWriteError: the change cannot be kept; all is as before.
        """
        with self._store.changing:
            if not _is_alias(alias) or self._store.index.alias(tenant, alias) is None:
                raise AliasNotFoundError(f"no alias {alias[:64]!r} on this server; ListAliases names yours")
            with _keeping():
                self._store.index.remove_alias(tenant, alias)

    @contextmanager
    def without(self, task_id: str) -> Iterator[None]:
        """Inside, no alias points at a task.

        Raises:
            TaskInUseError: one does.
        """
        with self._store.changing:
            alias = self._store.index.alias_of(task_id)
            if alias is not None:
                raise TaskInUseError(
                    f"task {task_id} has the alias {alias.name!r}; move the alias to another task or delete it first"
                )
            yield

    def _check_pinned(self, new: Alias) -> None:
        limit = self._max_pinned_bytes
        others = {
            alias.task_id
            for alias in self._store.index.aliases(None)
            if alias.is_pinned and (alias.tenant, alias.name) != (new.tenant, new.name)
        }
        records = [record for task_id in {*others, new.task_id} if (record := self._store.index.get(task_id))]
        size = sum(record.size for record in records)
        if limit is not None and size > limit:
            # Not how much others have pinned: that is theirs.
            raise QuotaError(
                f"there is no room for this task among the files of the pinned tasks, which may have {limit} bytes "
                "together, half of --max-loaded-mb; take the pin from another alias, or set this one without"
            )


def _is_alias(name: str) -> bool:
    return bool(_ALIAS.fullmatch(name)) and not _TASK_ID.fullmatch(name)


@contextmanager
def _keeping() -> Iterator[None]:
    try:
        yield
    except StoreFaultError as error:
        raise StoreWriteError(
            f"the alias cannot be kept: {error}; make room in the store or allow writing, then try again"
        ) from error
