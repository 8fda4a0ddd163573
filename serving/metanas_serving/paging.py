"""Lists in pages: where the next one begins.

    page_size     what a request asks for  ->  how many tasks its page may have
    token_after   the last task of a page  ->  the token of the next page
    read_token    that token               ->  the place behind which the page begins

A token names a place in the order of all tasks, not a page that the server remembers: it outlives the
server, and the task that it was made from.
"""

import base64
import binascii

from metanas_serving.errors import InvalidRequestError
from metanas_serving.record import Record

MAX_PAGE_SIZE = 500
"""Tasks; a description takes some kilobytes, and a client takes answers of a few megabytes."""


def page_size(asked: int) -> int:
    """How many tasks a page may have; 0 asks for as many as possible."""
    return min(asked, MAX_PAGE_SIZE) or MAX_PAGE_SIZE


def token_after(record: Record) -> str:
    """The token of the page that begins behind a task."""
    created, task_id = record.place
    return base64.urlsafe_b64encode(f"{created.hex()} {task_id}".encode()).decode()


def read_token(token: str) -> tuple[float, str] | None:
    """The inverse of ``token_after``; None for the empty token, of the first page.

    Raises:
        InvalidRequestError: no server made it.
    """
    if not token:
        return None
    try:
        created, task_id = base64.b64decode(token, altchars=b"-_", validate=True).decode().split(" ")
        return float.fromhex(created), task_id
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidRequestError(
            f"page_token {token[:80]!r} is not one; send the next_page_token of the page before, or none"
        ) from error
