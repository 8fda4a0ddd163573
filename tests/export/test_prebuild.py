"""``metanas-export prebuild`` builds every layer of a search space before a task asks for one."""

from pathlib import Path

import pytest
import torch

from metanas.artifact import save_meta
from metanas.backbone import build_backbone
from metanas.model import MetaModel
from metanas.network import Network
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.space import NO_CELLS, ConvBlocks, SearchSpace
from metanas_export import prebuild
from metanas_export.covering import architectures, example_task

OPERATIONS = ("skip_connect", "conv_3x3", "max_pool_3x3")


def searching(space: SearchSpace) -> MetaModel:
    torch.manual_seed(0)
    architecture = initial_architecture(space)
    architecture["normal.alpha"][:, 1] = 2.0
    return MetaModel(
        space=space,
        weights={name: value.detach() for name, value in Network(space).named_parameters()},
        architecture=architecture,
        head_scale=10.0,
        preprocessing=Preprocessing(height=14, width=14, invert=True),
    )


@pytest.fixture
def meta() -> MetaModel:
    return searching(
        SearchSpace(channels=4, image_size=14, nodes=2, cells=2, reduction_cells=(1,), operations=OPERATIONS)
    )


def test_the_architectures_cover_every_operation_on_every_edge(meta) -> None:
    _, *covering = architectures(meta)
    seen = {
        (node, edge.source, edge.operation)
        for genotype in covering
        for node, row in enumerate(genotype.normal)
        for edge in row
    }
    assert seen == {(node, source, name) for node, source in meta.space.edges for name in OPERATIONS}
    assert all(genotype.normal == genotype.reduction for genotype in covering)


def test_the_first_architecture_is_the_one_that_the_meta_model_prefers(meta) -> None:
    preferred = architectures(meta)[0]
    assert {edge.operation for node in preferred.normal for edge in node} == {"conv_3x3"}
    assert {edge.operation for node in preferred.reduction for edge in node} == set(OPERATIONS)


def test_a_fixed_architecture_is_warmed_alone() -> None:
    space = ConvBlocks(filters=4, blocks=2, image_size=14)
    fixed = MetaModel(
        space=space,
        weights={name: value.detach() for name, value in build_backbone(space, NO_CELLS).named_parameters()},
        architecture={},
        genotype=NO_CELLS,
        head_scale=10.0,
        preprocessing=Preprocessing(height=14, width=14),
    )
    assert architectures(fixed) == [NO_CELLS]
    assert example_task(fixed, NO_CELLS, n_way=3).logits(torch.zeros(1, 1, 14, 14, dtype=torch.uint8)).shape == (1, 3)


def test_the_command_builds_all_of_them_once_and_finds_them_the_second_time(
    meta, tmp_path: Path, capsys, monkeypatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("METANAS_CACHE", str(tmp_path / "cache"))
    save_meta(tmp_path / "meta.pt", meta)
    arguments = ["--meta", str(tmp_path / "meta.pt"), "--ways", "3", "--profile", "1,2,4", "--target", "sm_86"]
    assert prebuild.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 4 plans in fp32, batches 1,2,4")
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "[1/4] 3-way, preferred", "[2/4] 3-way, covering 1", "[3/4] 3-way, covering 2", "[4/4] 3-way, covering 3",
    ]  # fmt: skip
    assert all(" layers, built in " in line for line in lines[1:5])
    assert prebuild.main(arguments) == 0
    assert all(" layers, found in " in line for line in capsys.readouterr().out.splitlines()[1:5])


def test_what_cannot_be_built_is_said_with_its_exit_code(meta, tmp_path, capsys, monkeypatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("METANAS_CACHE", str(tmp_path / "cache"))
    save_meta(tmp_path / "meta.pt", meta)
    assert prebuild.main(["--meta", str(tmp_path / "meta.pt"), "--target", "sm_90"]) == 4
    assert "does not build for sm_90" in capsys.readouterr().err
    assert prebuild.main(["--meta", str(tmp_path / "meta.pt"), "--max-seconds", "0.001"]) == 4
    assert "its limit is 0.001 s" in capsys.readouterr().err
    assert prebuild.main(["--meta", str(tmp_path / "absent.pt")]) == 1
    assert "absent.pt: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--ways", "one", "must be numbers of classes from 2 to 1000 such as 5,20, got 'one'"),
        ("--profile", "4,2,1", "must be batch sizes min,opt,max such as 1,1,32, got '4,2,1'"),
        ("--max-seconds", "0", "must be seconds above 0, got '0'"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(capsys, option, value, message) -> None:
    with pytest.raises(SystemExit) as caught:
        prebuild.main(["--meta", "meta.pt", option, value])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
