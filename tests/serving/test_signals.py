"""A signal stops the server whichever of its threads the system hands it to."""

import ctypes
import os
import signal
from pathlib import Path


def test_sigterm_to_another_thread_than_the_main_one_stops_the_server(start_process, tiny_meta):
    process = start_process("--meta", str(tiny_meta))
    process_id = process.process.pid
    others = [int(task.name) for task in Path(f"/proc/{process_id}/task").iterdir() if int(task.name) != process_id]
    # The system does that by itself now and then; this does it every time.
    failed = ctypes.CDLL(None, use_errno=True).tgkill(process_id, others[0], signal.SIGTERM)
    assert not failed, os.strerror(ctypes.get_errno())
    assert process.process.wait(timeout=20) == 0
    assert "stopping: running calls have" in process.log_path.read_text()
