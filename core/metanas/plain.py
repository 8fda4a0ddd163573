"""Settings as plain values, for files: frozen dataclasses to and from dictionaries of JSON types."""

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from metanas.errors import InvalidConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def to_plain(settings: "DataclassInstance") -> dict[str, Any]:
    """A dataclass of plain values as a dictionary; tuples become lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}


def from_plain(kind: type[T], values: dict[str, Any]) -> T:
    """The inverse of ``to_plain``; lists become tuples.

    Raises:
        InvalidConfigError: an unknown key, or a value that ``kind`` refuses.
    """
    unknown = sorted(set(values) - {field.name for field in fields(kind)})
    if unknown:
        raise InvalidConfigError(f"{kind.__name__} has no setting {', '.join(unknown)}")
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return kind(**arguments)
