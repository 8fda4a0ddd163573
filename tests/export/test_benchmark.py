"""Files are measured by the runtime that they are for, in processes without torch, and compared with torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from metanas.cost import multiply_adds
from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export import benchmark, benchmark_process, benchmark_report, build_onnx, ends, onnx_bytes
from metanas_export.benchmark import Benchmark, Target, of_task
from metanas_export.product_rate import product_gflops

SHORT = 0.02
"""Seconds of calls."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, adapted_task: TaskModel) -> Path:
    """The ONNX file of a task, one of another task with as many classes, and one that is damaged."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "task.onnx").write_bytes(onnx_bytes(adapted_task))
    other = onnx.load(folder / "task.onnx")
    (head,) = (one for one in other.graph.initializer if one.name == "head/weight")
    head.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(head), 1, axis=0), head.name))
    onnx.save(other, folder / "other.onnx")
    (folder / "damaged.onnx").write_bytes(onnx_bytes(adapted_task)[:1000])
    return folder


@pytest.fixture(scope="module")
def found(adapted_task: TaskModel, folder: Path) -> Benchmark:
    """Good files and bad ones, really measured."""
    targets = [
        Target("a file", "onnx", folder / "task.onnx"),
        Target("another task's", "onnx", folder / "other.onnx"),
        Target("a damaged one", "onnx", folder / "damaged.onnx"),
        Target("a repository", "triton", folder),
        Target("on OpenVINO", "openvino", folder / "task.onnx"),
    ]
    return of_task(targets, adapted_task, max_batch=8, seconds=SHORT, products=1)


def test_a_file_is_measured_and_answers_as_torch_does(found: Benchmark, folder: Path):
    row = found.rows[0]
    assert row.file_bytes == (folder / "task.onnx").stat().st_size
    measured = row.measured
    assert measured is not None
    assert measured.runtime.startswith("onnxruntime ")
    assert measured.same_class == 1.0
    assert measured.largest_difference < 1e-4
    assert (measured.single.batch, measured.largest.batch) == (1, 8)
    for latency in (measured.single, measured.largest):
        assert latency.calls >= benchmark_process.LEAST_CALLS
        assert 0 < latency.p50_ms <= latency.p99_ms
        assert latency.share_of_limit > 0
        assert 0 < latency.processor_ms < 10_000
    assert 10 < measured.runtime_mb < measured.peak_mb
    assert min(measured.import_seconds, measured.load_seconds, measured.first_answer_seconds) > 0


def test_the_share_of_the_limit_is_flop_over_the_matrix_products_rate(found: Benchmark, adapted_task: TaskModel):
    assert found.flop == 2 * multiply_adds(adapted_task.space, adapted_task.genotype, n_way=3)
    single = found.rows[0].measured.single
    assert single.share_of_limit == pytest.approx(found.flop * single.images_per_second / (1e9 * found.product_gflops))


def test_another_tasks_file_does_not_agree(found: Benchmark):
    measured = found.rows[1].measured
    assert measured.same_class < 1.0
    assert measured.largest_difference > 0.01


def test_what_does_not_run_says_why(found: Benchmark):
    damaged, repository = found.rows[2], found.rows[3]
    assert damaged.measured is None
    assert damaged.problem.startswith("InvalidProtobuf: ")
    assert (repository.measured, repository.problem) == (None, "a repository is run by a Triton server")


def test_other_runtimes_answer_the_same(found: Benchmark):
    pytest.importorskip("openvino")
    measured = found.rows[4].measured
    assert measured is not None, found.rows[4].problem
    assert measured.runtime.startswith("openvino ")
    assert measured.same_class == 1.0
    assert measured.largest_difference < 1e-4


def test_the_measuring_process_needs_neither_torch_nor_this_project(
    folder: Path, tmp_path: Path, adapted_task: TaskModel
):
    images = scale(adapted_task.support.images, adapted_task.preprocessing).numpy()
    np.save(tmp_path / "images.npy", images)
    order = {
        "kind": "onnx",
        "path": str(folder / "task.onnx"),
        "images": str(tmp_path / "images.npy"),
        "batches": [1],
        "seconds": SHORT,
        "threads": 1,
        "scores": str(tmp_path / "scores.npy"),
    }
    script = (
        "import runpy, sys\n"
        "for name in ('torch', 'metanas', 'metanas_export', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['process', {json.dumps(order)!r}]\n"
        f"runpy.run_path({benchmark_process.__file__!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_bytes"] > 10_000_000
    expected = adapted_task.logits(adapted_task.support.images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, atol=1e-4)


def test_latencies_are_quantiles_and_throughput_counts_all_calls():
    taken = [0.010] * 98 + [0.020, 0.510]  # 1.51 s in all
    latency = benchmark._latency(4, taken, processor_seconds=0.012, limit=1000.0)
    assert latency.processor_ms == pytest.approx(12.0)
    assert latency.p50_ms == pytest.approx(10.0)
    assert 20.0 < latency.p99_ms < 510.0
    assert latency.images_per_second == pytest.approx(4 * 100 / 1.51)
    assert latency.share_of_limit == pytest.approx(4 * 100 / 1.51 / 1000)


def test_the_table_names_every_target(found: Benchmark):
    text = benchmark_report.table(found)
    lines = text.splitlines()
    assert "8 images" in lines[0]
    assert " ".join(lines[1].split()) == "kB ms p50 ms p99 ms ms limit p50 ms p99 ms a second limit MB class difference"
    assert [line.split("  ")[0] for line in lines[2:5]] == ["a file", "another task's", "on OpenVINO"]
    assert "a repository: not measured: a repository is run by a Triton server" in lines
    assert f"{found.flop / 1e6:.1f} MFLOP an image" in lines[-1]
    assert "on 1 thread;" in lines[-1]


def test_the_picture_has_a_bar_for_each_measured_target(found: Benchmark):
    axes = benchmark_report.draw(found).axes
    assert len(axes) == 4
    measured = [row for row in found.rows if row.measured]
    for axis, per_target in zip(axes, (2, 1, 2, 1), strict=True):
        assert len(axis.patches) == per_target * len(measured)
    widths = [bar.get_width() for bar in axes[3].patches]
    assert widths == [row.file_bytes / 1e3 for row in reversed(measured)]


def test_files_of_the_results_hold_what_was_found(found: Benchmark, tmp_path: Path):
    written = benchmark_report.write(found, tmp_path)
    assert [path.name for path in written] == ["benchmark.json", "benchmark.png", "benchmark.svg"]
    assert json.loads(written[0].read_text()) == json.loads(json.dumps(found.to_dict()))
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in written[2].read_text()


def test_without_matplotlib_the_missing_picture_is_told(
    found: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert benchmark_report.write(found, tmp_path) == [tmp_path / "benchmark.json"]
    assert "no picture: matplotlib is not installed; pip install" in capsys.readouterr().out


def test_the_command_lines_part_prints_and_writes(
    adapted_task: TaskModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    paths = {"onnx": folder / "task.onnx", "triton": folder}
    benchmark.run_cli(paths, adapted_task, folder=tmp_path, max_batch=4, seconds=SHORT, products=1)
    said = capsys.readouterr().out
    assert "triton: not measured: a repository is run by a Triton server" in said
    assert f"wrote {tmp_path / 'benchmark.svg'}" in said
    (onnx_row, triton_row) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert onnx_row["measured"]["largest"]["batch"] == 4
    assert triton_row["file_bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_a_file_that_takes_pictures_is_measured_with_pictures(adapted_task: TaskModel, tmp_path: Path):
    model = build_onnx(adapted_task)
    ends.take_pictures(model, adapted_task.preprocessing)
    (tmp_path / "task.onnx").write_bytes(model.SerializeToString())
    benchmark.run_cli(
        {"onnx": tmp_path / "task.onnx"},
        adapted_task,
        folder=tmp_path,
        takes_pictures=True,
        max_batch=2,
        seconds=SHORT,
        products=1,
    )
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert (row["problem"], row["measured"]["same_class"]) == ("", 1.0)


def test_openvinos_weights_count_as_part_of_its_file(tmp_path: Path):
    (tmp_path / "task.xml").write_bytes(b"x" * 10)
    (tmp_path / "task.bin").write_bytes(b"x" * 300)
    assert benchmark._file_bytes(tmp_path / "task.xml") == 310


def test_the_matrix_products_rate_leaves_torchs_threads_as_they_were():
    before = torch.get_num_threads()
    (rate,) = product_gflops(2, products=1)
    assert rate > 0.5
    assert torch.get_num_threads() == before
