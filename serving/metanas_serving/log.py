"""The server's log on stderr, for people or for a collector.

    set_up           once, at the start
    TextFormatter    one line a record, the call's id in brackets at its end
    JsonFormatter    one JSON object a line: time (UTC), level, logger, message, request_id, tenant, exception

A line that a call writes carries the id of that call (``request_id``) and its tenant, if that has a name.
"""

import json
import logging
import sys
from datetime import UTC, datetime

from metanas_serving import request_id, tenants
from metanas_serving.config import LogFormat


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, without a traceback."""
        line = super().formatMessage(record)
        told = " ".join(filter(None, (request_id.current(), _tenant(record))))
        return f"{line} [{told}]" if told else line


class JsonFormatter(logging.Formatter):
    """Objects for a collector; what does not apply to a record is left out of its object."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, on one line."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.current(),
            "tenant": _tenant(record) or None,
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({key: value for key, value in values.items() if value is not None}, ensure_ascii=False)


def _tenant(record: logging.LogRecord) -> str:
    """That of the call, or the one that the record names as ``extra``."""
    return str(getattr(record, "tenant", "") or tenants.shown())


def set_up(format_: LogFormat) -> None:
    """Write the process's log to stderr, from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
