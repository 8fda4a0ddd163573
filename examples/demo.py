"""`make demo`: the whole chain on unseen classes, with a real server and a real client process.

Starts the server with the bundled meta-model, then `demo_client.py` as a process of its own,
then stops the server. Everything it writes goes to --output.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the demo; the exit code is the client's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output: Path = parser.parse_args().output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"==> starting the server: python serving/server.py --port 0 --store {output.name}/store", flush=True)
    with (output / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, ROOT / "serving/server.py", "--port", "0", "--store", output / "store"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            address = _address(server)
            print(f"    it serves on {address}; its log is in {output.name}/server.log", flush=True)
            client = subprocess.run(
                [sys.executable, ROOT / "examples/demo_client.py", "--server", address, "--output", output],
                check=False,
            )
        finally:
            server.terminate()
            server.wait(timeout=60)
    print(f"==> the server has stopped (exit code {server.returncode}); {time.monotonic() - started:.0f} s in all")
    return client.returncode or server.returncode


def _address(server: "subprocess.Popen[str]") -> str:
    """Where the server says it serves."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("serving on "):
            return line.removeprefix("serving on ").split()[0]
    raise SystemExit(f"the server stopped with exit code {server.wait()}; see server.log")


if __name__ == "__main__":
    sys.exit(main())
