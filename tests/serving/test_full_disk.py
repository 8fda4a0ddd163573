"""A store on a disk that is full, and on one that cannot be written, under a real server process."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb

SERVER = Path(__file__).parents[2] / "serving" / "server.py"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one and a half megabytes; what mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )

    if mount("size=1536k").returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder, mount
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_said_and_nothing_is_lost_and_a_read_only_one_is_refused(
    small_disk, tmp_path, fixed_metas, start_process, support, queries, refuses
):
    disk, mount = small_disk
    arguments = ("--meta", str(fixed_metas["blocks"]), "--store", str(disk / "store"), "--adapt-workers", "1")
    server = start_process(*arguments)
    first = server.adapt(support).task_id
    server.stub.SetAlias(pb.SetAliasRequest(alias="line", task_id=first))
    # All that is left but some kilobytes, as if others had filled the disk.
    file_size = next((disk / "store" / "weights").iterdir()).stat().st_size
    (disk / "filler").touch()
    free = int(subprocess.run(["stat", "-f", "-c", "%a", disk], capture_output=True, text=True).stdout) * 4096
    (disk / "filler").write_bytes(bytes(free - file_size // 2))
    answers = server.classify(first, queries)
    refuses(
        grpc.StatusCode.INTERNAL,
        ["was learnt but cannot be kept", "No space left on device", "make room in the store"],
        lambda: server.adapt(support, seed=1),
    )
    assert server.classify("line", queries) == answers
    assert [task.task_id for task in server.stub.ListTasks(pb.ListTasksRequest()).tasks] == [first]
    assert len(list((disk / "store" / "weights").iterdir())) == 1
    (disk / "filler").unlink()
    second = server.adapt(support, seed=1).task_id
    server.process.kill()
    server.process.wait()

    assert mount("remount,ro").returncode == 0
    refused = subprocess.run(
        [sys.executable, SERVER, *arguments, "--port", "0"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "as a store: Read-only file system; make room in it or allow writing" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert mount("remount,rw").returncode == 0
    again = start_process(*arguments)
    assert [task.task_id for task in again.stub.ListTasks(pb.ListTasksRequest()).tasks] == [first, second]
    assert again.classify("line", queries) == answers
