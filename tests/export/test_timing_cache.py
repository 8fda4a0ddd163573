"""Timings are kept for each version and GPU; through the real calls of a builder's config."""

import types

import pytest

from metanas_export import timing_cache
from metanas_export.device import Device

ADA = Device("NVIDIA L4", "8.9", 24 * 2**30, "13.0")


@pytest.fixture(scope="module")
def trt() -> types.ModuleType:
    return pytest.importorskip("tensorrt_rtx")


def test_there_is_a_file_for_each_version_and_gpu(trt, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("METANAS_CACHE", str(tmp_path))
    path = timing_cache.location(trt, ADA)
    assert path == tmp_path / "timing" / f"tensorrt_rtx-{trt.__version__}-nvidia-l4-sm_89.bin"
    assert timing_cache.location(trt, None).name == f"tensorrt_rtx-{trt.__version__}-unknown-gpu.bin"


def test_tensorrt_rtx_is_given_none(trt) -> None:
    assert not timing_cache.used_by(trt)
    assert timing_cache.used_by(types.ModuleType("tensorrt"))


def test_a_cache_is_begun_kept_and_read_again(trt, tmp_path) -> None:
    # TensorRT-RTX still has the calls of TensorRT, where they do nothing but keep a header.
    path = tmp_path / "folder" / "cache.bin"
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    for _ in range(2):
        config = builder.create_builder_config()
        size = timing_cache.keep(config, timing_cache.attach(config, path), path=path)
        assert path.stat().st_size == size > 0


def test_a_damaged_cache_is_begun_anew(trt, tmp_path) -> None:
    path = tmp_path / "cache.bin"
    path.write_bytes(b"not a timing cache")
    config = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_builder_config()
    timing_cache.keep(config, timing_cache.attach(config, path), path=path)
    assert b"not a timing cache" not in path.read_bytes()
