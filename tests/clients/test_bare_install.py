"""Installed without extras, the client works and nothing heavy came with it."""

import subprocess
import sys
from pathlib import Path

import pytest

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


def run(*command: str | Path) -> str:
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)  # pip may have to fetch the four base dependencies
def test_the_base_install_is_a_client_without_torch(tmp_path: Path, closed_address: str) -> None:
    environment = tmp_path / "bare"
    # No pip in it: the one at hand installs into it, which saves the seconds of a second pip.
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-compile", REPOSITORY)

    said = run(python, "-I", "-c", CHECKS.format(environment=str(environment), address=closed_address))

    assert f"adapt at {closed_address}: " in said
    assert "check the address and that the server runs" in said
    assert "classify" in run(environment / "bin" / "metanas-client", "--help")
