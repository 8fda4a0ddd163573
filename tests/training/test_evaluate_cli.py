"""The command as users call it, on meta-models of two seeds: files, figures, errors, going on after a stop."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metanas.artifact import save_meta
from metanas.backbone import build_backbone
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import Genotype, SearchSpace
from metanas_training import evaluate_cli
from metanas_training.evaluate_cli import main
from metanas_training.evaluation_pool import EvaluationPool
from metanas_training.evaluation_table import TaskKind, standard_tasks
from metanas_training.journal import Journal
from metanas_training.report import over_runs
from metanas_training.run_files import read_runs
from metanas_training.scores import TaskScore

SIZE = 8
SPACE = SearchSpace(channels=4, image_size=SIZE, cells=2, reduction_cells=(1,), nodes=2)
TASKS = 3
FIGURES = ("model_sizes", "cell_normal", "cell_reduction", "weights_normal", "weights_reduction", "accuracy_over_steps")


def _save(
    path: Path,
    *,
    seed: int,
    schedule: Schedule | None = None,
    configuration: dict[str, Any] | None = None,
    factor: float = 1.0,
) -> Path:
    """A meta-model of random weights and architecture."""
    torch.manual_seed(seed)
    meta = MetaModel(
        space=SPACE,
        weights={name: factor * value.detach() for name, value in build_backbone(SPACE, None).named_parameters()},
        architecture={name: 0.1 * torch.randn(value.shape) for name, value in initial_architecture(SPACE).items()},
        head_scale=10.0,
        preprocessing=Preprocessing(height=SIZE, width=SIZE),
        schedule=schedule or Schedule(architecture_steps=2, weight_steps=2),
        provenance={"seed": seed, **({} if configuration is None else {"configuration": configuration})},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_meta(path, meta)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight class folders of four pictures, two meta-models, and the evaluation of both in one process."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for number in range(8):
        (folder / "pictures" / f"class{number}").mkdir(parents=True)
        pattern = rng.integers(0, 2, (SIZE, SIZE)) * 150
        for image in range(4):
            pixels = (pattern + rng.integers(0, 100, (SIZE, SIZE))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"class{number}" / f"{image}.png")
    for seed in (0, 1):
        _save(folder / f"run-seed{seed}" / "meta.pt", seed=seed)
    assert main(_arguments(folder, "--output", str(folder / "done"), "--curve-tasks", "1")) == 0
    return folder


def _metas(folder: Path) -> list[Path]:
    return [folder / f"run-seed{seed}" / "meta.pt" for seed in (0, 1)]


def _arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--meta", *map(str, _metas(folder)), "--data", f"folder:{folder / 'pictures'}", "--split", "train",
        "--ways", "3", "--tasks", str(TASKS), "--queries", "3", *more,
    ]  # fmt: skip


def _results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def _interrupt(folder: Path, stopped: Path) -> None:
    """Leave in ``stopped`` what an evaluation leaves that was killed while it wrote the last task of each run."""
    for file, run in zip(read_runs(_metas(folder)), _results(folder / "done")["runs"], strict=True):
        settings = {"n_way": 3, "n_shot": 1, "n_query": 3, "seed": 0}
        with Journal(stopped, file, data="folder:pictures/train", settings=settings) as journal:
            for score in run["scores"]:
                journal.add(score.pop("task"), TaskScore.from_dict(score))
    for path in stopped.glob(".tasks-*.jsonl"):
        path.write_text(path.read_text()[:-40])


def test_every_task_of_every_run_is_a_row_with_its_genotype(folder: Path) -> None:
    rows = _rows(folder / "done" / "tasks.csv")
    assert [(row["run"], row["task"]) for row in rows] == [
        (f"seed {seed}", str(task)) for seed in (0, 1) for task in range(TASKS)
    ]
    scores = [score for run in _results(folder / "done")["runs"] for score in run["scores"]]
    for row, score in zip(rows, scores, strict=True):
        assert float(row["inductive"]) == score["inductive"]
        assert int(row["multiply_adds"]) == score["multiply_adds"] > 0
        assert Genotype.from_dict(json.loads(row["genotype"])) == Genotype.from_dict(score["genotype"])


def test_the_results_over_runs_are_their_mean_with_twice_its_standard_error(folder: Path) -> None:
    results = _results(folder / "done")
    means = [run["evaluation"]["inductive"]["mean"] for run in results["runs"]]
    for run, mean in zip(results["runs"], means, strict=True):
        assert mean == pytest.approx(sum(score["inductive"] for score in run["scores"]) / TASKS)
    expected = over_runs(means)
    assert results["over_runs"]["inductive"] == {"mean": expected.mean, "half_width": expected.half_width}
    assert results["over_runs"]["runs"] == 2


def test_each_figure_is_there_as_png_and_svg_with_the_data_it_was_drawn_from(folder: Path) -> None:
    for name in FIGURES:
        with Image.open(folder / "done" / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
        assert "<svg" in (folder / "done" / f"{name}.svg").read_text()
        assert len(_rows(folder / "done" / f"{name}.csv")) >= 2
    curve = [row for row in _rows(folder / "done" / "accuracy_over_steps.csv") if row["run"] == "seed 1"]
    assert [(row["step"], row["pruned"]) for row in curve] == [("0", "0"), ("2", "0"), ("2", "1"), ("4", "1")]
    first = _results(folder / "done")["runs"][1]["scores"][0]
    assert float(curve[-1]["accuracy"]) == first["inductive"]
    weights = _rows(folder / "done" / "weights_normal.csv")
    assert len(weights) == 3 * len(SPACE.edges) * len(SPACE.operations)


def test_the_most_common_architecture_can_be_read_back_as_a_genotype_of_its_space(folder: Path) -> None:
    values = json.loads((folder / "done" / "genotype.json").read_text())
    genotypes = [
        Genotype.from_dict(score["genotype"]) for run in _results(folder / "done")["runs"] for score in run["scores"]
    ]
    found = Genotype.from_dict(values["genotype"])
    alike = [one for one in genotypes if one.structure() == found.structure()]
    assert values["share"] == pytest.approx(len(alike) / len(genotypes))
    assert found.normal[0][0].weight == pytest.approx(sum(one.normal[0][0].weight for one in alike) / len(alike))
    assert values["space"]["nodes"] == SPACE.nodes


def test_an_evaluation_that_was_stopped_goes_on_from_the_tasks_that_are_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt(folder, tmp_path)
    seen: list[int] = []
    submit = EvaluationPool.score

    def count(self: Any, index: int, episodes: Any, *, journal: Any, **rest: Any) -> Any:
        seen.append(len(journal.scores))
        return submit(self, index, episodes, journal=journal, **rest)

    monkeypatch.setattr(EvaluationPool, "score", count)
    assert main(_arguments(folder, "--output", str(tmp_path), "--curve-tasks", "0", "--no-figures")) == 0
    assert seen == [TASKS - 1, TASKS - 1]
    assert not list(tmp_path.glob("*.png"))
    for one, other in zip(_results(folder / "done")["runs"], _results(tmp_path)["runs"], strict=True):
        for score, again in zip(one["scores"], other["scores"], strict=True):
            assert {**score, "adapt_seconds": 0} == {**again, "adapt_seconds": 0}
    assert not list(tmp_path.glob(".tasks*"))
    text, messages = capsys.readouterr()
    assert f"seed 1: {TASKS - 1} tasks are done already" in messages
    assert "seed 0 (" in text
    assert "2 runs together, mean with twice the standard error of the mean:" in text
    assert "multiply-adds of one image" in text


def test_other_tasks_are_not_taken_from_the_journal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupt(folder, tmp_path)
    quick = ("--output", str(tmp_path), "--curve-tasks", "0", "--no-figures", "--tasks", "1")
    assert main(_arguments(folder, *quick, "--seed", "9")) == 0
    assert "are done already" not in capsys.readouterr().err
    assert _results(tmp_path)["tasks"] == 1


def test_the_table_has_all_standard_tasks_and_goes_on_after_a_stop(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (TaskKind("glyphs", 3, 1), TaskKind("glyphs", 2, 2))
    monkeypatch.setattr(evaluate_cli, "standard_tasks", lambda preprocessing: kinds)
    command = ["--meta", str(_metas(folder)[0]), "--table", "--tasks", "2", "--queries", "2", "--no-figures"]
    command += ["--curve-tasks", "0", "--output", str(tmp_path)]
    score = EvaluationPool.score

    def stopped_at_the_second(self: Any, index: int, episodes: Any, *, journal: Any, **rest: Any) -> Any:
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt
        return score(self, index, episodes, journal=journal, **rest)

    monkeypatch.setattr(EvaluationPool, "score", stopped_at_the_second)
    assert main(command) == 130
    monkeypatch.setattr(EvaluationPool, "score", score)
    capsys.readouterr()
    assert main(command) == 0
    text, messages = capsys.readouterr()
    assert "seed 0: 2 tasks are done already" in messages
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| glyphs")]
    assert [row[0] for row in rows] == ["| glyphs, 3-way 1-shot", "| glyphs, 2-way 2-shot"]
    for row, kind in zip(rows, kinds, strict=True):
        evaluation = _results(tmp_path / kind.folder)["runs"][0]["evaluation"]
        gain = evaluation["inductive"]["mean"] - evaluation["prototype"]["mean"]
        assert row[1] == "2"
        assert row[2].startswith(f"{100 * evaluation['inductive']['mean']:.2f} ± ")
        assert row[5].startswith(f"{100 * gain:+.2f} ± ")
    assert (tmp_path / "table.md").read_text().strip() in text
    assert not list(tmp_path.rglob(".tasks*"))


@pytest.mark.parametrize("wrong", [("--ways", "5"), ("--data", "glyphs"), ("--meta", "one.pt", "two.pt")])
def test_the_table_has_its_own_tasks(folder: Path, wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--meta", str(_metas(folder)[0]), "--table", *wrong])
    assert stop.value.code == 2
    assert "--table" in capsys.readouterr().err


def test_meta_models_of_drawings_and_of_photographs_have_their_own_standard_tasks() -> None:
    drawings = standard_tasks(Preprocessing())
    photographs = standard_tasks(Preprocessing(channels=3, mean=(0.0,) * 3, deviation=(1.0,) * 3))
    assert [str(kind) for kind in drawings[:3]] == [
        "omniglot, 20-way 1-shot", "omniglot, 20-way 5-shot", "omniglot, 5-way 1-shot",
    ]  # fmt: skip
    assert {kind.data for kind in photographs} == {"miniimagenet"}


def test_runs_that_differ_by_more_than_their_seed_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = _save(tmp_path / "other.pt", seed=2, schedule=Schedule(architecture_steps=3, weight_steps=2))
    first = folder / "run-seed0" / "meta.pt"
    assert main(["--meta", str(first), str(other)]) == 1
    message = capsys.readouterr().err
    assert "differ in their schedule.architecture_steps (2 and 3); evaluate together only runs of one" in message
    assert main(["--meta", str(first), str(first)]) == 1
    assert "are the same meta-model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"data": "glyphs"}, {"data": "omniglot"}, "configuration.data (glyphs and omniglot)"),
        ({"network": {"cells": 4, "nodes": 3}}, {"network": {"cells": 4, "nodes": 2}}, "configuration.network.nodes"),
        ({"plan": None}, {"plan": {"joint": 5}}, "configuration.plan (None and {'joint': 5})"),
        ({"data": "glyphs"}, {"data": "glyphs", "grey": True}, "configuration.grey: only the second has it"),
        ({"data": "glyphs"}, None, "configuration: only the first has it"),
        (None, {"data": "glyphs"}, "configuration: only the second has it"),
    ],
)
def test_meta_models_of_other_training_settings_are_no_seeds_of_one_experiment(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one: dict[str, Any] | None,
    other: dict[str, Any] | None,
    expected: str,
) -> None:
    files = [
        _save(tmp_path / f"{seed}.pt", seed=seed, configuration=None if values is None else {"seed": seed, **values})
        for seed, values in enumerate((one, other))
    ]
    assert main(["--meta", *map(str, files)]) == 1
    message = capsys.readouterr().err
    assert f"{files[0]} and {files[1]} differ in their {expected}" in message
    assert "evaluate these one by one" in message
    assert [len(read_runs([file])) for file in files] == [1, 1]


def test_training_settings_that_differ_by_the_seed_only_are_of_one_experiment(tmp_path: Path) -> None:
    files = [_save(tmp_path / f"{seed}.pt", seed=seed, configuration={"seed": seed, "grey": True}) for seed in (0, 1)]
    assert [run.name for run in read_runs(files)] == ["seed 0", "seed 1"]


def test_two_meta_models_of_one_seed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [_save(tmp_path / f"{number}.pt", seed=7, factor=number) for number in (1, 2)]
    assert main(["--meta", *map(str, files)]) == 1
    assert f"{files[0]} and {files[1]} are both of seed 7" in (message := capsys.readouterr().err)
    assert "evaluate them one by one" in message


def test_a_broken_meta_model_ends_with_exit_code_1_not_with_chance(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = _save(tmp_path / "broken.pt", seed=0, factor=1e38)
    assert main([*_arguments(folder), "--meta", str(broken)]) == 1
    text, messages = capsys.readouterr()
    assert "meta_evaluate: the network's answers are not finite: the meta-model is broken" in messages
    assert "inductive (support" not in text


def test_what_is_wrong_is_said_with_exit_code_1_or_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--meta", str(folder / "none.pt")]) == 1
    assert "none.pt" in capsys.readouterr().err
    assert main(_arguments(folder, "--ways", "50")) == 1
    assert "too few for 50 ways" in capsys.readouterr().err
    for wrong in (["--tasks", "0"], ["--curve-tasks", "-1"], ["--seed", "-1"], ["--curve-every", "0"]):
        with pytest.raises(SystemExit) as stopped:
            main(_arguments(folder, *wrong))
        assert stopped.value.code == 2
        assert f"{wrong[0]} must be at least" in capsys.readouterr().err


def test_figures_without_matplotlib_are_refused_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(_arguments(folder, "--output", str(tmp_path / "new"))) == 1
    assert "pip install 'metanas-edge[demo]', or give --no-figures" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
