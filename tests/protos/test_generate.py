"""The generated code is what the contract gives, and only the pinned tools may make it."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

PROTOS = Path(__file__).resolve().parents[2] / "protos"


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script() -> ModuleType:
    return load_script(PROTOS / "generate.py")


@pytest.fixture
def copied_script(tmp_path: Path) -> ModuleType:
    """The script and the contract in a folder where a test may write."""
    shutil.copytree(PROTOS, tmp_path / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    return load_script(tmp_path / "protos" / "generate.py")


def test_the_contract_regenerates_to_the_committed_bytes(script: ModuleType, tmp_path: Path) -> None:
    script.generate(tmp_path)

    assert script.generated_files(tmp_path) == {
        "metanas_proto/v1/few_shot_pb2.py",
        "metanas_proto/v1/few_shot_pb2.pyi",
        "metanas_proto/v1/few_shot_pb2_grpc.py",
        "metanas_proto/v1/few_shot_pb2_grpc.pyi",
        "metanas_proto/inference/open_inference_pb2.py",
        "metanas_proto/inference/open_inference_pb2.pyi",
        "metanas_proto/inference/open_inference_pb2_grpc.py",
        "metanas_proto/inference/open_inference_pb2_grpc.pyi",
    }
    assert script.differing(PROTOS, tmp_path) == []


def test_check_names_a_changed_and_a_stale_file_and_writes_nothing(
    copied_script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied_script.PROTOS / "metanas_proto/v1"
    (folder / "few_shot_pb2.py").write_text("# edited by hand\n")
    (folder / "gone_pb2.py").write_text("")

    assert copied_script.main(["--check"]) == 1

    said = capsys.readouterr().out
    assert "protos/metanas_proto/v1/few_shot_pb2.py differs" in said
    assert "protos/metanas_proto/v1/gone_pb2.py differs" in said
    assert "few_shot_pb2_grpc.py" not in said
    assert (folder / "few_shot_pb2.py").read_text() == "# edited by hand\n"


def test_generating_repairs_a_changed_file_and_removes_a_stale_one(copied_script: ModuleType) -> None:
    folder = copied_script.PROTOS / "metanas_proto/v1"
    (folder / "few_shot_pb2.py").write_text("# edited by hand\n")
    (folder / "gone_pb2.py").write_text("")

    assert copied_script.main([]) == 0

    assert copied_script.differing(PROTOS, copied_script.PROTOS) == []
    assert not (folder / "gone_pb2.py").exists()


@pytest.mark.parametrize(("seen", "said"), [("1.80.0", "here is 1.80.0"), (None, "here is none")])
def test_another_tool_version_is_refused(script: ModuleType, seen: str | None, said: str) -> None:
    with pytest.raises(script.ToolVersionError, match=rf"{said}; run: pip install grpcio-tools==1\.81\.1"):
        script.refuse_other_versions({"grpcio-tools": seen, "mypy-protobuf": "5.1.0"})


def test_another_tool_version_writes_nothing_and_exits_with_2(
    copied_script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = copied_script.PROTOS / "metanas_proto/v1/few_shot_pb2.py"
    target.write_text("# edited by hand\n")
    monkeypatch.setattr(
        copied_script, "installed_versions", lambda: {"grpcio-tools": "1.81.1", "mypy-protobuf": "3.6.0"}
    )

    assert copied_script.main([]) == 2

    assert "mypy-protobuf 5.1.0, but here is 3.6.0" in capsys.readouterr().err
    assert target.read_text() == "# edited by hand\n"


def test_a_contract_that_does_not_compile_is_reported_with_what_protoc_said(
    copied_script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied_script.PROTOS / "metanas/v1/few_shot.proto").write_text('syntax = "proto3";\nmessage Image { bytes }\n')

    assert copied_script.main([]) == 2

    assert "few_shot.proto:2" in capsys.readouterr().err
