"""The command as a user runs it: files, exit codes, messages."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from metanas.artifact import load_task, save_task
from metanas_export import build_onnx, card, cli, engine, exporting
from metanas_export.plan import sha256

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
    assert sidecar["plan_sha256"] == sha256(plan)
    assert sidecar["onnx_sha256"] == sha256((task_path.parent / "task_model.onnx").read_bytes())
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
    assert cli.main([str(task_path)]) == 5
    error = capsys.readouterr().err
    assert "ONNX Runtime is not installed" in error
    assert 'pip install "metanas-edge[cpu]"' in error
    assert files(task_path.parent) == ["task_model.pt"]


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        ("openvino", "openvino", "openvino"),
        ("litert", "ai_edge_litert", "litert"),
        ("executorch", "executorch", "executorch"),
    ],
)
def test_without_a_runtime_the_others_are_written_and_the_exit_code_is_6(
    task_path, capsys, monkeypatch, kind, module, extra
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main([str(task_path), "--format", f"{kind},onnx"]) == 6
    assert f'pip install "metanas-edge[{extra}]"' in capsys.readouterr().err
    assert files(task_path.parent) == ["task_model.onnx", "task_model.pt"]


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
    assert cli.main([str(task_path), "--output", str(task_path)]) == 1
    assert "task_model.pt: File exists" in capsys.readouterr().err


def test_onnx_is_what_is_written_unless_told_otherwise(task_path, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(engine, "find_tensorrt", lambda flavour=None: pytest.fail("looked for TensorRT"))
    folder = tmp_path / "new" / "folder"
    assert cli.main([str(task_path), "--output", str(folder)]) == 0
    assert files(folder) == ["task_model.onnx"]
    assert files(task_path.parent) == ["task_model.pt"]
    model = onnx.load(folder / "task_model.onnx")
    assert card.read(model)["class_names"] == list(load_task(task_path).class_names)
    assert "same class" in capsys.readouterr().out


def test_several_formats_are_compared_in_one_table(task_path, capsys) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    assert cli.main([str(task_path), "--format", "litert", "--format", "onnx,triton", "--precision", "fp16"]) == 0
    assert files(task_path.parent) == ["task_model.onnx", "task_model.pt", "task_model.tflite", "triton"]
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("torch / ")]) == 2
    assert any(line.startswith("kept in float32: ") for line in lines)


@pytest.fixture
def full_size_path(tmp_path, build_task, build_cell) -> Path:
    """A 20-way task of a larger network than those of Omniglot: two convolutions a node."""
    cell = build_cell(*[[(0, "sep_conv_3x3"), (1, "conv_1x5_5x1")]] * 3)
    task = build_task(cell, channels=28, image_size=28, n_way=20, shots=1)
    assert task.report.parameter_count > 80_000
    save_task(tmp_path / "task_model.pt", task)
    return tmp_path / "task_model.pt"


def test_an_onnx_export_with_its_check_takes_under_a_second_of_processor_time(full_size_path) -> None:
    cli.main([str(full_size_path)])  # imports
    started = time.process_time()
    assert cli.main([str(full_size_path)]) == 0
    assert time.process_time() - started < 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc; tensorrt-rtx has no wheel for macOS")
def test_an_export_to_all_quick_formats_checked_on_200_pictures_stays_under_700_mb(full_size_path, tmp_path) -> None:
    for package in ("openvino", "ai_edge_litert", "tensorrt_rtx"):
        pytest.importorskip(package)
    noise = np.random.default_rng(0)
    for name in load_task(full_size_path).class_names:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            picture = Image.fromarray(noise.integers(0, 256, (105, 105), dtype=np.uint8))
            picture.save(tmp_path / "pictures" / name / f"{number}.png")
    # Not getrusage: what it counts on Linux begins with the memory of the process that started this one.
    code = (
        "import re, sys; from metanas_export.cli import main; code = main(sys.argv[1:]); "
        "print(int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) * 1024 / 1e6); sys.exit(code)"
    )
    arguments = ["--format", "onnx,openvino,litert,tensorrt-rtx,triton", "--verify", str(tmp_path / "pictures")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(full_size_path), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    assert len(re.findall(r", verify images +200 ", done.stdout)) == 3
    assert float(done.stdout.split()[-1]) < 700


def test_the_ends_are_in_the_onnx_file_and_are_checked_with_it(task_path, capsys) -> None:
    assert cli.main([str(task_path), "--preprocess", "--softmax"]) == 0
    assert re.search("support images as pictures +10 +100.0%", capsys.readouterr().out)
    graph = onnx.load(task_path.parent / "task_model.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [one.name for one in graph.output] == ["logits", "probabilities"]


def test_files_are_as_readable_as_any_other_new_file(task_path) -> None:
    (task_path.parent / "plain").touch()
    assert cli.main([str(task_path)]) == 0
    assert (task_path.parent / "task_model.onnx").stat().st_mode == (task_path.parent / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform == "darwin", reason="tensorrt-rtx has no wheel for macOS")
def test_a_gpu_that_is_not_built_for_keeps_the_onnx_file_and_exits_with_4(task_path, capsys) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert cli.main([str(task_path), "--format", "onnx,tensorrt-rtx", "--target", "sm_90"]) == 4
    assert "TensorRT-RTX does not build for sm_90" in capsys.readouterr().err
    assert files(task_path.parent) == ["task_model.onnx", "task_model.pt"]


@pytest.mark.skipif(sys.platform == "darwin", reason="tensorrt-rtx has no wheel for macOS")
def test_a_build_past_its_limit_keeps_the_onnx_file_and_exits_with_4(task_path, capsys, monkeypatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("METANAS_CACHE", str(task_path.parent / "cache"))
    both = [str(task_path), "--format", "onnx,tensorrt-rtx"]
    assert cli.main([*both, "--max-build-seconds", "0.001"]) == 4
    assert "its limit is 0.001 s" in capsys.readouterr().err
    assert cli.main([*both, "--max-build-mb", "1"]) == 4
    assert "its limit is" in capsys.readouterr().err
    assert files(task_path.parent) == ["task_model.onnx", "task_model.pt"]


@pytest.mark.skipif(sys.platform == "darwin", reason="tensorrt-rtx has no wheel for macOS")
def test_a_repository_says_that_it_holds_no_plan_of_tensorrt_rtx(task_path, capsys) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert cli.main([str(task_path), "--format", "tensorrt-rtx,triton"]) == 0
    assert "The plan of TensorRT-RTX is not among them" in capsys.readouterr().out
    assert files(task_path.parent / "triton") == ["task_model_onnx"]


@pytest.mark.parametrize("option", ["--version-compatible", "--hardware-compatible"])
def test_compatibility_that_tensorrt_rtx_does_not_have_is_refused(task_path, capsys, option) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert cli.main([str(task_path), "--format", "tensorrt-rtx", option]) == 4
    assert f"a {option[2:]} plan is asked for, and TensorRT-RTX" in capsys.readouterr().err


def test_a_graph_that_answers_otherwise_is_not_written_and_exits_with_5(
    task_path, capsys, monkeypatch, build_task
) -> None:
    other = build_onnx(build_task(seed=5))
    monkeypatch.setattr(exporting, "build_onnx", lambda task, *, precision: other)
    assert cli.main([str(task_path)]) == 5
    captured = capsys.readouterr()
    assert "same class" in captured.out
    assert "of 10 images get the same class, at least 99.5% must" in captured.err
    assert files(task_path.parent) == ["task_model.pt"]


def test_a_lower_limit_of_agreement_lets_another_precision_pass(task_path, capsys, monkeypatch, build_task) -> None:
    other = build_onnx(build_task(seed=5))
    monkeypatch.setattr(exporting, "build_onnx", lambda task, *, precision: other)
    assert cli.main([str(task_path), "--precision", "int8", "--min-agreement", "98"]) == 5
    assert "at least 98.0% must; export with --precision fp32, or lower --min-agreement" in capsys.readouterr().err
    assert cli.main([str(task_path), "--precision", "int8", "--min-agreement", "0"]) == 0


def test_a_task_model_of_a_newer_version_is_refused(task_path, capsys) -> None:
    content = torch.load(task_path, weights_only=True)
    torch.save({**content, "version": 99}, task_path)
    assert cli.main([str(task_path)]) == 1
    assert "has format version 99, this package reads up to" in capsys.readouterr().err


def test_a_plan_of_an_earlier_export_is_pointed_out(task_path, capsys) -> None:
    (task_path.parent / "task_model.plan").write_bytes(b"an old plan")
    assert cli.main([str(task_path)]) == 0
    assert "task_model.plan is from an earlier export, not of this ONNX file" in capsys.readouterr().err
    sidecar = {"onnx_sha256": sha256((task_path.parent / "task_model.onnx").read_bytes())}
    (task_path.parent / "task_model.plan.json").write_text(json.dumps(sidecar))
    assert cli.main([str(task_path)]) == 0
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
    for code in range(7):
        assert f"\n    {code}   " in text


@pytest.mark.parametrize("profile", ["1,2", "4,2,8", "0,1,2", "a,b,c", "1,1,9999"])
def test_a_profile_that_makes_no_sense_is_a_usage_error(capsys, profile) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["task_model.pt", "--profile", profile])
    assert caught.value.code == 2
    assert f"got '{profile}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task_model.pt", "--target", "pascal"], "'pascal' names no GPU; write it as sm_86"),
        (["task_model.pt", "--format", "onnx,caffe"], "there is no format 'caffe'; choose from onnx, openvino"),
        (["task_model.pt", "--max-build-seconds", "nan"], "must be a number above 0, got 'nan'"),
        (["task_model.pt", "--min-agreement", "101"], "must be a percentage from 0 to 100, got '101'"),
        ([], "name one of task_model.pt and --server HOST --task ID"),
        (["--server", "localhost:1"], "--server and --task go together"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_said(capsys) -> None:
    assert cli.main(["--server", "127.0.0.1:1", "--task", "0" * 32]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_verify_compares_on_pictures_of_the_classes(task_path, tmp_path, capsys, precision) -> None:
    generator = np.random.default_rng(0)
    for name in ("class 0", "class 3"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    assert (
        cli.main(
            [
                str(task_path),
                "--verify",
                str(tmp_path / "pictures"),
                "--preprocess",
                "--precision",
                precision,
                "--min-agreement",
                "80",
            ]
        )
        == 0
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("torch / ")]
    assert [line.split(f"{precision}, ")[1].split("  ")[0] for line in rows] == [
        "support images", "verify images", "support images as pictures", "verify images as pictures",
    ]  # fmt: skip
    assert rows[1].split()[-5:-3] == ["6", "100.0%"]


def test_a_broken_picture_is_named_and_nothing_is_written(task_path, tmp_path, capsys) -> None:
    (tmp_path / "pictures" / "class 1").mkdir(parents=True)
    (tmp_path / "pictures" / "class 1" / "broken.png").write_bytes(b"no picture")
    assert cli.main([str(task_path), "--verify", str(tmp_path / "pictures")]) == 1
    assert "broken.png cannot be used" in capsys.readouterr().err
    assert files(task_path.parent) == ["task_model.pt"]


def test_pictures_of_a_class_that_the_task_does_not_have_are_refused(task_path, tmp_path, capsys) -> None:
    (tmp_path / "pictures" / "giraffe").mkdir(parents=True)
    assert cli.main([str(task_path), "--verify", str(tmp_path / "pictures")]) == 1
    assert "'giraffe' is no class of the task, whose classes are 'class 0', 'class 1'" in capsys.readouterr().err
    (tmp_path / "pictures" / "giraffe").rmdir()
    assert cli.main([str(task_path), "--verify", str(tmp_path / "pictures")]) == 1
    assert "has no picture in a folder of a class" in capsys.readouterr().err
