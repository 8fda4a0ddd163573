"""Installed without extras, the client works and nothing heavy came with it.

With a runtime beside it, and neither grpcio nor protobuf, a device answers from an exported file.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.tasks import SupportSet
from metanas_client.local import TaskRunner
from metanas_export import onnx_bytes

REPOSITORY = Path(__file__).resolve().parents[2]

CHECKS = """
import importlib.util
from pathlib import Path

import metanas_client

here = Path(metanas_client.__file__).resolve()
assert here.is_relative_to(Path({environment!r}).resolve()), f"imported from {{here}}, not from the bare environment"
for heavy in ("torch", "onnx", "onnxruntime", "grpc_health"):
    assert importlib.util.find_spec(heavy) is None, f"{{heavy}} came with the base install"
with metanas_client.FewShotClient({address!r}, timeout_seconds=10) as client:
    assert not client.is_ready()
    try:
        client.adapt({{"cat": [b"png"], "dog": [b"png"]}})
    except metanas_client.ServerUnavailableError as error:
        print(error)
"""

ON_A_DEVICE = """
import sys
from pathlib import Path

for left_out in ("grpc", "google", "metanas_proto"):
    sys.modules[left_out] = None
folder = Path({folder!r})
sys.path.insert(0, str(folder / "runtime"))

import metanas_client
from metanas_client.local import TaskRunner

assert Path(metanas_client.__file__).resolve().is_relative_to(Path({environment!r}).resolve())
(answer,) = TaskRunner(folder / "task_model.onnx").classify([folder / "picture.png"])
print(answer.class_name, answer.probability)
files = [Path(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)]
installed = {{file.parts[file.parts.index("site-packages") + 1] for file in files if "site-packages" in file.parts}}
assert installed == {{"metanas_client", "numpy", "PIL"}}, installed
"""

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(*command: str | Path) -> str:
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the base install and nothing else."""
    environment = tmp_path_factory.mktemp("environment") / "bare"
    # No pip in it: the one at hand installs into it, which saves the seconds of a second pip.
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    run(*PIP, "--python", environment / "bin" / "python", "install", "--no-compile", REPOSITORY)
    return environment


@pytest.mark.timeout(600)  # pip may have to fetch the four base dependencies
def test_the_base_install_is_a_client_without_torch(bare: Path, closed_address: str) -> None:
    said = run(bare / "bin" / "python", "-I", "-c", CHECKS.format(environment=str(bare), address=closed_address))

    assert f"adapt at {closed_address}: " in said
    assert "check the address and that the server runs" in said
    assert "classify" in run(bare / "bin" / "metanas-client", "--help")


@pytest.mark.timeout(600)
def test_numpy_pillow_and_a_runtime_are_all_that_a_device_needs(
    bare: Path, small_meta: MetaModel, tmp_path: Path
) -> None:
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    task = adapt(small_meta, SupportSet(images, torch.tensor([0, 0, 1, 1]), ("cat", "dog")))
    (tmp_path / "task_model.onnx").write_bytes(onnx_bytes(task))
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    # Without its dependencies and beside the environment, which stays bare for the other test.
    runtime = tmp_path / "runtime"
    run(*PIP, "install", "--no-deps", "--no-compile", "--target", runtime, f"onnxruntime=={onnxruntime.__version__}")

    said = run(bare / "bin" / "python", "-I", "-c", ON_A_DEVICE.format(environment=str(bare), folder=str(tmp_path)))

    (expected,) = TaskRunner(tmp_path / "task_model.onnx").classify([picture])
    name, probability = said.split()
    assert name == expected.class_name
    assert float(probability) == pytest.approx(expected.probability, abs=1e-6)
