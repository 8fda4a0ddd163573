"""A task from a running server: the only module that knows the client.

fetch_task    host, task id, folder  ->  the path of its ``task_model.pt``
"""

from pathlib import Path

from metanas_client import FewShotClient, MetaNASClientError
from metanas_export.errors import FetchError


def fetch_task(host: str, task_id: str, *, folder: Path) -> Path:
    """Write the task's file into ``folder``, called after the task.

    Args:
        host: ``host:port``. Its certificate and the token are asked of the environment, as every client does.

    Raises:
        FetchError: the server does not answer, or has no such task.
        OSError: the folder cannot be written.
    """
    try:
        with FewShotClient(host) as client:
            return client.task(task_id).export(folder / f"{task_id}.pt")
    except MetaNASClientError as error:
        raise FetchError(str(error)) from error
