"""Model cards: figures from evaluations of that very file only."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metanas.artifact import load_meta, save_meta
from metanas.model import MetaModel
from metanas.network import Network
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.space import SearchSpace
from metanas_training.model_card import KEPT, main

SPACE = SearchSpace(channels=4, image_size=8)


@pytest.fixture
def meta_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    meta = MetaModel(
        space=SPACE,
        weights=dict(Network(SPACE).named_parameters()),
        architecture=initial_architecture(SPACE),
        head_scale=10.0,
        preprocessing=Preprocessing(height=8, width=8),
        provenance={"data": "somewhere/train", "seed": 3, "training_cpu_seconds": 90.0},
    )
    save_meta(tmp_path / "meta.pt", meta)
    return tmp_path / "meta.pt"


def evaluation(folder: Path, *, sha256: str, **given: Any) -> Path:
    folder.mkdir()
    values: dict[str, Any] = {**dict.fromkeys(KEPT, 0.5), **given}
    results = {
        "n_way": 5,
        "n_shot": 1,
        "n_query": 15,
        "seed": 7,
        "runs": [{"meta_sha256": sha256, "evaluation": values}],
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write(meta_file: Path, *evaluations: Path, options: tuple[str, ...] = ()) -> int:
    return main(
        [*options, "--meta", str(meta_file), "--evaluation", *map(str, evaluations), "--summary", "for tests",
         "--data-licence", "none", "--limit", "small", "--limit", "slow",
         "--output", str(meta_file.parent / "x.card.json")]
    )  # fmt: skip


def test_a_card_holds_the_evaluations_and_the_cost(meta_file: Path) -> None:
    sha256 = hashlib.sha256(meta_file.read_bytes()).hexdigest()
    assert write(meta_file, evaluation(meta_file.parent / "e", sha256=sha256)) == 0
    card = json.loads((meta_file.parent / "x.card.json").read_text())
    assert (card["trained_on"], card["seed"], card["processor_minutes"]) == ("somewhere/train", 3, 1.5)
    assert card["limits"] == ["small", "slow"]
    assert card["evaluations"] == [dict.fromkeys(KEPT, 0.5) | {"n_query": 15, "seed": 7}]


def test_an_evaluation_of_another_file_is_refused(meta_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(meta_file, evaluation(meta_file.parent / "e", sha256="0" * 64)) == 1
    assert "is not of this meta-model" in capsys.readouterr().err
    assert not (meta_file.parent / "x.card.json").exists()


def test_a_missing_evaluation_is_an_error(meta_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(meta_file, meta_file.parent / "nowhere") == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [("KEPT", "an evaluation lacks 'inductive'; run meta_evaluate.py"), ("seed", "does not say its seed; train it")],
)
def test_what_is_missing_is_named(
    meta_file: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    if change == "seed":
        meta = load_meta(meta_file)
        save_meta(meta_file, replace(meta, provenance={"data": "somewhere"}))
    folder = evaluation(meta_file.parent / "e", sha256=hashlib.sha256(meta_file.read_bytes()).hexdigest())
    if change == "KEPT":
        results = json.loads((folder / "results.json").read_text())
        del results["runs"][0]["evaluation"]["inductive"]
        (folder / "results.json").write_text(json.dumps(results))
    assert write(meta_file, folder) == 1
    assert message in capsys.readouterr().err


def test_a_cost_that_was_not_recorded_is_not_made_up(meta_file: Path) -> None:
    save_meta(meta_file, replace(load_meta(meta_file), provenance={"data": "somewhere", "seed": 1}))
    folder = evaluation(meta_file.parent / "e", sha256=hashlib.sha256(meta_file.read_bytes()).hexdigest())
    assert write(meta_file, folder) == 0
    assert json.loads((meta_file.parent / "x.card.json").read_text())["processor_minutes"] is None


def test_rows_that_are_not_evaluated_anew_can_stay(
    meta_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sha256 = hashlib.sha256(meta_file.read_bytes()).hexdigest()
    one, other = (evaluation(tmp_path / f"{ways}", sha256=sha256, n_way=ways, tasks=50) for ways in (5, 20))
    assert write(meta_file, one, other) == 0
    anew = evaluation(tmp_path / "anew", sha256=sha256, n_way=5, tasks=1000)
    assert write(meta_file, anew, options=("--keep-rows",)) == 0
    path = tmp_path / "x.card.json"
    values = json.loads(path.read_text())
    assert [(row["n_way"], row["tasks"]) for row in values["evaluations"]] == [(5, 1000), (20, 50)]
    path.write_text(json.dumps(values | {"sha256": "0" * 64}))
    assert write(meta_file, anew, options=("--keep-rows",)) == 1
    assert "of another meta-model: write a new one, without --keep-rows" in capsys.readouterr().err
