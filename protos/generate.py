"""Make the Python code of the contract: the only way to do it.

The generated code is committed, so that nobody needs a compiler to install or to read it. That
works only if everybody's compiler gives the same bytes, so another version of a tool is refused.

    protos/metanas/v1/few_shot.proto          ->  protos/metanas_proto/v1/few_shot_pb2{,_grpc}.{py,pyi}
    protos/inference/open_inference.proto     ->  protos/metanas_proto/inference/open_inference_pb2{,_grpc}.{py,pyi}

    refuse_other_versions   installed versions -> nothing, or ToolVersionError
    generate                a folder           -> the folder with the generated files in it
    differing               two folders        -> the generated files that differ

What it does not know: what is in the contract. It runs from any directory:

    python protos/generate.py           write the generated files
    python protos/generate.py --check   write nothing; exit 1 and name the files that differ
"""

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
# Python package of the generated code, and the folder of the contracts that it is made of.
PACKAGES = {"metanas_proto/v1": "metanas/v1", "metanas_proto/inference": "inference"}
# The package `inference` is not ours: tritonclient and others register their own code for it, and a pool
# takes a name once. So ours is in a pool of its own; on the wire that makes no difference.
FOREIGN_PACKAGE = "metanas_proto/inference"
SHARED_POOL, OWN_POOL = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"
# mypy-protobuf is pinned too: the stubs are committed, and their bytes are its choice.
TOOL_VERSIONS = {"grpcio-tools": "1.81.1", "mypy-protobuf": "5.1.0"}


class ToolVersionError(Exception):
    """A generating tool is missing or of another version; exit status 2."""


class GenerationError(Exception):
    """The compiler refused the contract; exit status 2."""


def installed_versions() -> dict[str, str | None]:
    """Look up the version of each tool in this environment; None where it is not installed."""
    versions: dict[str, str | None] = {}
    for tool in TOOL_VERSIONS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            versions[tool] = None
    return versions


def refuse_other_versions(installed: Mapping[str, str | None]) -> None:
    """Let only the pinned tools through.

    Raises:
        ToolVersionError: a tool is missing or of another version.
    """
    for tool, wanted in TOOL_VERSIONS.items():
        seen = installed.get(tool)
        if seen != wanted:
            raise ToolVersionError(
                f"the generated code is made with {tool} {wanted}, but here is {seen or 'none'}; "
                f"run: pip install {tool}=={wanted}"
            )


def generate(out: Path) -> None:
    """Generate the messages, the service and the stubs of both below ``out``.

    Raises:
        GenerationError: the compiler refused the contract; holds what it said.
    """
    scripts = Path(sysconfig.get_path("scripts"))
    suffix = ".exe" if sys.platform == "win32" else ""
    plugins = [f"--plugin={name}={scripts / name}{suffix}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    contracts = [
        f"{package}/{path.name}"
        for package, folder in PACKAGES.items()
        for path in sorted((PROTOS / folder).glob("*.proto"))
    ]
    # The mapped includes make protoc believe that the contracts lie in the Python packages, so that
    # the generated imports are absolute and right without patching.
    includes = [f"-I{package}={PROTOS / folder}" for package, folder in PACKAGES.items()]
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *includes, *plugins, *outputs, *contracts],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise GenerationError(f"protoc exited with {done.returncode}:\n{done.stderr.strip()}")
    _take_out_of_the_shared_pool(out / FOREIGN_PACKAGE)


def _take_out_of_the_shared_pool(folder: Path) -> None:
    for path in sorted(folder.glob("*_pb2.py")):
        code = path.read_text()
        if code.count(SHARED_POOL) != 1:
            raise GenerationError(
                f"{path.name} does not name {SHARED_POOL} once, so it cannot be given a pool of its own; "
                "look at what protoc writes now and change generate.py"
            )
        path.write_text(code.replace(SHARED_POOL, OWN_POOL))


def generated_files(root: Path) -> set[str]:
    """Name the generated files below ``root``, relative to it."""
    return {path.relative_to(root).as_posix() for package in PACKAGES for path in (root / package).glob("*_pb2*.py*")}


def differing(committed: Path, fresh: Path) -> list[str]:
    """Name the files that are not the same bytes below both roots, or only below one of them."""
    return sorted(
        name
        for name in generated_files(committed) | generated_files(fresh)
        if not (committed / name).is_file()
        or not (fresh / name).is_file()
        or (committed / name).read_bytes() != (fresh / name).read_bytes()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate or check; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the Python code of the contract.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the files that differ")
    check = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        try:
            refuse_other_versions(installed_versions())
            generate(fresh)
        except (ToolVersionError, GenerationError) as error:
            print(f"generate.py: {error}", file=sys.stderr)
            return 2
        names = differing(PROTOS, fresh)
        if check:
            for name in names:
                print(f"protos/{name} differs from what the contract gives; run: python protos/generate.py")
            return 1 if names else 0
        for name in names:
            if (fresh / name).is_file():
                shutil.copyfile(fresh / name, PROTOS / name)
                print(f"wrote protos/{name}")
            else:
                (PROTOS / name).unlink()
                print(f"removed protos/{name}, which no contract gives any more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
