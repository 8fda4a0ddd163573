"""The command as a user runs it: files, exit codes, messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from metanas.artifact import load_task
from metanas_export import cli, engine, onnx_bytes

SCRIPT = Path(__file__).parents[2] / "export" / "to_tensorrt.py"


def command(*arguments: object, cwd: Path, shadow: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own, perhaps with a folder in front of its import path."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if shadow is not None:
        environment["PYTHONPATH"] = str(shadow)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def hide(folder: Path, *packages: str) -> Path:
    """Packages that fail to import as missing ones do, for a process that has ``folder`` in front."""
    folder.mkdir()
    for package in packages:
        (folder / f"{package}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n"
        )
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(sys.platform == "darwin", reason="tensorrt-rtx has no wheel for macOS")
def test_one_command_writes_onnx_plan_and_sidecar_beside_the_task_model(task_path, tmp_path) -> None:
    done = command("task/task_model.pt", "--precision", "fp16", "--max-batch", 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(task_path.parent) == [
        "task_model.onnx", "task_model.plan", "task_model.plan.json", "task_model.pt",
    ]  # fmt: skip
    plan = (task_path.parent / "task_model.plan").read_bytes()
    sidecar = json.loads((task_path.parent / "task_model.plan.json").read_text())
    assert sidecar["plan_sha256"] == engine.sha256(plan)
    assert sidecar["onnx_sha256"] == engine.sha256((task_path.parent / "task_model.onnx").read_bytes())
    assert sidecar["profile"]["max_batch"] == 4
    assert "torch / ONNX Runtime fp16" in done.stdout
    assert "100.0%" in done.stdout
    assert "built, not run" in done.stdout


def test_without_tensorrt_the_onnx_file_stays_and_the_exit_code_is_3(task_path, tmp_path) -> None:
    shadow = hide(tmp_path / "shadow", *engine.FLAVOURS)
    done = command(task_path, cwd=tmp_path, shadow=shadow)
    assert done.returncode == 3
    assert "tensorrt is not installed; tensorrt_rtx is not installed" in done.stderr
    assert "pip install tensorrt-rtx" in done.stderr
    assert "task_model.onnx is complete without it" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(task_path.parent) == ["task_model.onnx", "task_model.pt"]


def test_without_onnx_runtime_nothing_is_written_and_the_exit_code_is_5(task_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # Python's own way to make an import fail
    assert cli.main([str(task_path), "--onnx-only"]) == 5
    error = capsys.readouterr().err
    assert "ONNX Runtime is not installed" in error
    assert 'pip install "metanas-edge[cpu]"' in error
    assert files(task_path.parent) == ["task_model.pt"]


def test_a_truncated_file_is_one_line_on_standard_error(task_path, tmp_path) -> None:
    task_path.write_bytes(task_path.read_bytes()[:5000])
    done = command(task_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "truncated or damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"this is no task model", "is not a file of MetaNAS Edge")],
)
def test_a_file_of_another_kind_is_refused(tmp_path, capsys, content, message) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    assert cli.main([str(tmp_path / "other.pt")]) == 1
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path, capsys) -> None:
    assert cli.main([str(tmp_path / "absent.pt")]) == 1
    error = capsys.readouterr().err
    assert "absent.pt: No such file or directory" in error
    assert cli.main([str(tmp_path)]) == 1
    assert "Is a directory" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_refused(task_path, capsys) -> None:
    assert cli.main([str(task_path), "--onnx-only", "--output", str(task_path)]) == 1
    assert "task_model.pt: File exists" in capsys.readouterr().err


def test_onnx_only_writes_the_onnx_file_and_needs_no_tensorrt(task_path, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(engine, "find_tensorrt", lambda: pytest.fail("looked for TensorRT"))
    folder = tmp_path / "new" / "folder"
    assert cli.main([str(task_path), "--onnx-only", "--output", str(folder)]) == 0
    assert files(folder) == ["task_model.onnx"]
    assert files(task_path.parent) == ["task_model.pt"]
    model = onnx.load(folder / "task_model.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["metanas.class_names"] == json.dumps(
        list(load_task(task_path).class_names)
    )
    assert "same class" in capsys.readouterr().out


def test_files_are_as_readable_as_any_other_new_file(task_path) -> None:
    (task_path.parent / "plain").touch()
    assert cli.main([str(task_path), "--onnx-only"]) == 0
    assert (task_path.parent / "task_model.onnx").stat().st_mode == (task_path.parent / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform == "darwin", reason="tensorrt-rtx has no wheel for macOS")
def test_a_build_that_fails_keeps_the_onnx_file_and_exits_with_4(task_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(engine, "find_tensorrt", lambda: pytest.importorskip("tensorrt_rtx"))
    # A real failure: TensorRT-RTX builds no float32 matrix product for Turing.
    monkeypatch.setattr(engine, "RTX_TARGETS", ("SM75",))
    assert cli.main([str(task_path)]) == 4
    assert "cannot build the network: " in capsys.readouterr().err
    assert files(task_path.parent) == ["task_model.onnx", "task_model.pt"]


def test_a_graph_that_answers_otherwise_is_not_written_and_exits_with_5(
    task_path, capsys, monkeypatch, build_task
) -> None:
    other = onnx_bytes(build_task(seed=5))
    monkeypatch.setattr(cli, "onnx_bytes", lambda task, *, precision: other)
    assert cli.main([str(task_path), "--onnx-only"]) == 5
    captured = capsys.readouterr()
    assert "same class" in captured.out
    assert "of 10 support images get the same class" in captured.err
    assert files(task_path.parent) == ["task_model.pt"]


def test_a_plan_of_an_earlier_export_is_pointed_out(task_path, capsys) -> None:
    (task_path.parent / "task_model.plan").write_bytes(b"an old plan")
    assert cli.main([str(task_path), "--onnx-only"]) == 0
    assert "task_model.plan is from an earlier export, not of this ONNX file" in capsys.readouterr().err
    sidecar = {"onnx_sha256": engine.sha256((task_path.parent / "task_model.onnx").read_bytes())}
    (task_path.parent / "task_model.plan.json").write_text(json.dumps(sidecar))
    assert cli.main([str(task_path), "--onnx-only"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("batch", ["0", "-1", "many", "4097"])
def test_a_batch_size_that_makes_no_sense_is_a_usage_error(capsys, batch) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["task_model.pt", "--max-batch", batch])
    assert caught.value.code == 2
    assert f"must be a whole number from 1 to 4096, got '{batch}'" in capsys.readouterr().err


def test_help_lists_every_exit_code(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for code in range(6):
        assert f"\n    {code}   " in text
