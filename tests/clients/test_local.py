"""The runner on the device answers as the server and torch do, and says what is wrong with a file."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

from metanas.artifact import load_task, save_meta
from metanas.model import MetaModel, TaskModel
from metanas.preprocessing import picture_from_array, prepare
from metanas_client import (
    FewShotClient,
    InvalidRequestError,
    ModelFileError,
    RuntimeMissingError,
    Task,
    UnsupportedImageError,
)
from metanas_client.cli import main
from metanas_client.local import TaskRunner
from metanas_export import ends
from metanas_serving.application import Application
from metanas_serving.config import ServerConfig

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Change = Callable[[onnx.ModelProto], None]


def drawings(count: int, *, seed: int) -> list[Pixels]:
    """Colour noise on a ground of its own, of all sizes."""
    random = np.random.default_rng(seed)
    sizes = random.integers(20, 40, (count, 2))
    return [random.integers(0, random.integers(60, 256), (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def task(small_meta: MetaModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Task]:
    """A task at a real server, learned in a moment."""
    path = tmp_path_factory.mktemp("meta") / "meta.pt"
    save_meta(path, small_meta)
    application = Application(ServerConfig(meta_path=path, port=0, adapt_workers=1))
    try:
        with FewShotClient(application.start(), timeout_seconds=60) as client:
            # Single shots give no temperature to calibrate: it is 1, whoever answers.
            support = {f"class {seed}": drawings(1, seed=seed) for seed in range(3)}
            yield client.adapt(support)
    finally:
        application.stop(0)


@pytest.fixture(scope="module")
def model(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task's ONNX file, as the server gives it."""
    return task.export(tmp_path_factory.mktemp("model") / "task_model.onnx", format="onnx")


@pytest.fixture(scope="module")
def task_model(task: Task, tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return load_task(task.export(tmp_path_factory.mktemp("model") / "task_model.pt"))


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the ONNX file with a change."""

    def write(change: Change) -> Path:
        proto = onnx.load(model)
        change(proto)
        onnx.save(proto, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    return write


def set_metadata(**values: Any) -> Change:
    """Sets or, by None, removes metadata; other values are written as JSON."""

    def change(proto: onnx.ModelProto) -> None:
        kept = {entry.key: entry.value for entry in proto.metadata_props}
        for key, value in values.items():
            kept[f"metanas.{key}"] = json.dumps(value)
            if value is None:
                del kept[f"metanas.{key}"]
        del proto.metadata_props[:]
        helper.set_model_props(proto, kept)

    return change


def test_answers_are_those_of_the_server(task: Task, model: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(drawings(1, seed=5)[0]).save(png, "PNG")
    queries = [*drawings(37, seed=6), png.getvalue(), Image.fromarray(drawings(1, seed=7)[0])]

    ours, servers = TaskRunner(model).classify(queries), task.classify(queries)

    assert [list(one.probabilities) for one in ours] == [list(one.probabilities) for one in servers]
    for one, other in zip(ours, servers, strict=True):
        assert (one.class_name, type(one)) == (other.class_name, type(other))
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert len({one.class_name for one in ours}) > 1


def test_answers_are_those_of_torch(task_model: TaskModel, model: Path) -> None:
    queries = drawings(20, seed=8)
    pixels = np.stack([prepare(picture_from_array(one), task_model.preprocessing) for one in queries])
    logits = task_model.logits(torch.from_numpy(pixels))

    runner = TaskRunner(model)

    assert runner.class_names == task_model.class_names
    ours = [[one.probabilities[name] for name in runner.class_names] for one in runner.classify(queries)]
    np.testing.assert_allclose(ours, (logits / task_model.trust.temperature).softmax(dim=1), atol=1e-5)


def test_a_file_with_its_preprocessing_in_the_graph_answers_the_same(
    task_model: TaskModel, model: Path, changed: Callable[[Change], Path]
) -> None:
    queries = drawings(20, seed=14)

    path = changed(lambda proto: ends.take_pictures(proto, task_model.preprocessing))

    for one, other in zip(TaskRunner(path).classify(queries), TaskRunner(model).classify(queries), strict=True):
        # Pillow chooses the order of its two passes by the size of a picture, so some pixels differ by 1 of 255.
        assert one.probabilities == pytest.approx(other.probabilities, abs=5e-3)


def test_a_temperature_softens_the_probabilities(model: Path, changed: Callable[[Change], Path]) -> None:
    query = drawings(1, seed=9)
    cold = TaskRunner(changed(set_metadata(temperature=1.0))).classify(query)[0].probabilities
    warm = TaskRunner(changed(set_metadata(temperature=4.0))).classify(query)[0].probabilities

    powers = {name: value**0.25 for name, value in cold.items()}
    assert warm == pytest.approx({name: value / sum(powers.values()) for name, value in powers.items()}, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_size_of_batches_does_not_show(model: Path, batch_size: int) -> None:
    queries = drawings(20, seed=10)
    expected = TaskRunner(model).classify(queries)
    for one, other in zip(TaskRunner(model, batch_size=batch_size).classify(queries), expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_images_are_read_one_batch_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, events = TaskRunner(model, batch_size=2), []
    compute = runner._model.scores
    monkeypatch.setattr(runner._model, "scores", lambda images: (events.append(len(images)), compute(images))[1])

    def camera() -> Iterator[Pixels]:
        for picture in drawings(5, seed=11):
            events.append("read")
            yield picture

    assert len(runner.classify(camera())) == 5
    assert events == ["read", "read", 2, "read", "read", 2, "read", 1]


def test_the_command_runs_a_model_without_a_server(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = drawings(2, seed=12)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")

    assert main(["run", str(model), str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert [one["class_name"] for one in said] == [one.class_name for one in TaskRunner(model).classify(pictures)]
    assert main(["run", str(tmp_path / "0.png"), str(tmp_path / "1.png")]) == 2
    assert "neither an .onnx nor a .plan file" in capsys.readouterr().err


def test_neither_torch_nor_grpc_is_loaded(model: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('grpc', 'google', 'google.protobuf', 'metanas_proto', 'torch', 'onnx', 'metanas'):\n"
        "    sys.modules[name] = None\n"
        "import numpy\n"
        "from metanas_client.cli import main\n"
        "from metanas_client.local import TaskRunner\n"
        f"runner = TaskRunner({str(model)!r})\n"
        "print(runner.classify([numpy.zeros((24, 24, 3), numpy.uint8)])[0].class_name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("class ")


def test_a_missing_onnx_runtime_is_said_with_its_remedy(model: Path) -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        f"from metanas_client.cli import main; sys.exit(main(['run', {str(model)!r}, 'picture.png']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs ONNX Runtime, which is not installed" in done.stderr
    assert "pip install onnxruntime" in done.stderr


@pytest.mark.parametrize("kept", [0, 1, 300, -2000, -1])
def test_a_truncated_file_is_refused(model: Path, tmp_path: Path, kept: int) -> None:
    short = tmp_path / "short.onnx"
    short.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"short\.onnx .*(copy it again|export the task again)"):
        TaskRunner(short)


def test_a_file_of_a_later_version_is_refused(changed: Callable[[Change], Path]) -> None:
    path = changed(set_metadata(format_version=1_000))
    with pytest.raises(ModelFileError, match=r"format version 1000, this package reads up to \d+; upgrade"):
        TaskRunner(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_names": None}, "does not say its class_names; export .* keep tools from dropping the metadata"),
        ({"class_names": None, "preprocessing": None}, "does not say its class_names and preprocessing"),
        ({"class_names": ["cat", "dog"]}, "gives logits: .* but names 2 classes"),
        ({"class_names": "cat"}, "class_names 'cat'; they must be two texts or more"),
        ({"preprocessing": {"channels": 3}}, "a preprocessing that cannot be done .*its keys are channels"),
        ({"temperature": 0}, "temperature 0; it must be above 0"),
        ({"format_version": "new"}, "format version new"),
    ],
)
def test_metadata_that_do_not_serve_are_refused(
    changed: Callable[[Change], Path], values: dict[str, Any], message: str
) -> None:
    path = changed(set_metadata(**values))
    with pytest.raises(ModelFileError, match=message):
        TaskRunner(path)


def test_a_preprocessing_of_another_size_is_refused(changed: Callable[[Change], Path], model: Path) -> None:
    preprocessing = json.loads(_metadata(model)["metanas.preprocessing"])
    path = changed(set_metadata(preprocessing={**preprocessing, "height": 25}))
    with pytest.raises(ModelFileError, match=r"takes images: .*24, 24.* float images of \[3, 25, 24\]"):
        TaskRunner(path)


def test_a_fixed_batch_size_is_refused(changed: Callable[[Change], Path]) -> None:
    def fix(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4

    path = changed(fix)
    with pytest.raises(ModelFileError, match="takes batches of 4 only; export"):
        TaskRunner(path)


def test_scores_that_are_no_numbers_are_no_answer(changed: Callable[[Change], Path]) -> None:
    def break_head(proto: onnx.ModelProto) -> None:
        (bias,) = (one for one in proto.graph.initializer if one.name == "head/bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, dtype=np.float32), "head/bias"))

    runner = TaskRunner(changed(break_head))
    with pytest.raises(ModelFileError, match=r"changed\.onnx gives NaN or infinity"):
        runner.classify(drawings(1, seed=13))


def test_what_cannot_be_asked_is_refused_in_words(model: Path, tmp_path: Path) -> None:
    runner = TaskRunner(model)
    with pytest.raises(InvalidRequestError, match="no images to classify; pass at least one"):
        runner.classify([])
    with pytest.raises(UnsupportedImageError, match=r"one bare .*; pass a list of images"):
        runner.classify(tmp_path / "one.png")
    with pytest.raises(InvalidRequestError, match=r"image 1: .*cannot be read .*; pass a complete PNG or JPEG"):
        runner.classify([drawings(1, seed=1)[0], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        runner.classify([tmp_path / "none.png"])
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        TaskRunner(tmp_path / "none.onnx")
    with pytest.raises(InvalidRequestError, match="batch_size must be 1 or more, got 0"):
        TaskRunner(model, batch_size=0)
    with pytest.raises(InvalidRequestError, match="threads must be 1 or more, got 0"):
        TaskRunner(model, threads=0)
    with pytest.raises(RuntimeMissingError, match=r"has no NoSuchProvider, only .*CPUExecutionProvider"):
        TaskRunner(model, providers=["NoSuchProvider"])


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
