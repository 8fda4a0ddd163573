"""One table over run folders: which runs share a row, and numbers by hand."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from metanas_training.compare_cli import main
from metanas_training.comparison import experiment_name, meta_learner


def _run(folder: Path, *, seed: int = 0, minutes: float | None = 60.0, **config: Any) -> Path:
    """A run folder as meta_train.py leaves it; its meta-model is some bytes."""
    folder.mkdir(parents=True)
    settings = {"seed": seed, "data": "omniglot", "warm_up": "prototype", "meta_learner": "reptile", **config}
    settings.setdefault("network", {"kind": "search"})
    (folder / "config.json").write_text(json.dumps(settings))
    provenance = {"plan": {"warm_up": 10, "search": 0, "joint": 5}}
    if minutes is not None:
        provenance["training_cpu_seconds"] = 60 * minutes  # type: ignore[assignment]
    (folder / "meta.json").write_text(json.dumps({"provenance": provenance, "history": []}))
    (folder / "meta.pt").write_bytes(folder.name.encode())
    return folder


def _evaluate(home: Path, accuracies: dict[Path, float], *, name: str = "evaluation", **settings: Any) -> None:
    """What meta_evaluate.py writes into ``home``, of the runs in ``accuracies``."""
    values = {"data": "omniglot/test", "n_way": 20, "n_shot": 1, "n_query": 15, "tasks": 1000, "seed": 0, **settings}
    values["runs"] = [
        {
            "meta_sha256": hashlib.sha256((run / "meta.pt").read_bytes()).hexdigest(),
            "architecture": "searched",
            "evaluation": {
                **{
                    protocol: {"mean": accuracy + more, "half_width": 0.01}
                    for protocol, more in (("inductive", 0.0), ("transductive", 0.02), ("prototype", -0.1))
                },
                "parameter_count": 84_000.0,
            },
        }
        for run, accuracy in accuracies.items()
    ]
    (home / name).mkdir()
    (home / name / "results.json").write_text(json.dumps(values))


def test_runs_that_differ_by_their_seed_share_a_row_with_twice_the_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [_run(tmp_path / f"hour-seed{seed}", seed=seed, minutes=60 + 3 * seed) for seed in range(3)]
    for run, accuracy in zip(runs, (0.90, 0.92, 0.94), strict=True):
        _evaluate(run, {run: accuracy})
    other = _run(tmp_path / "cnn-seed0", network={"kind": "conv_blocks"})
    _evaluate(other, {other: 0.89})
    assert main([*map(str, runs), str(other), "--csv", str(tmp_path / "table.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == (
        "| hour | 3 | omniglot/test, 20-way 1-shot | prototype loss, Reptile | searched for each task | 84,000 | 1000 "
        "| 92.00 ± 2.31 | 94.00 ± 2.31 | 82.00 ± 2.31 | 63 |"
    )  # 2 x 0.02 / sqrt 3
    assert lines[3].startswith("| cnn | 1 |")
    assert "89.00 ± 1.00" in lines[3]
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["inductive"]) == pytest.approx(0.92)
    assert float(rows[0]["inductive_half_width"]) == pytest.approx(2 * 0.02 / 3**0.5)
    assert [row["experiment"] for row in rows] == ["hour", "cnn"]


def test_one_evaluation_of_several_runs_belongs_to_each_of_them_by_checksum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [_run(tmp_path / f"hour-seed{seed}", seed=seed) for seed in range(2)]
    _evaluate(runs[0], {runs[0]: 0.90, runs[1]: 0.94})
    assert main([str(run) for run in runs]) == 0
    assert "| hour | 2 |" in (text := capsys.readouterr().out)
    assert "92.00 ± 4.00" in text  # standard error 0.02828 / sqrt 2 = 0.02


def test_each_kind_of_task_has_a_row_and_a_run_without_evaluation_is_not_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bare = _run(tmp_path / "a"), _run(tmp_path / "b", minutes=None, data="glyphs")
    _evaluate(run, {run: 0.9})
    _evaluate(run, {run: 0.98}, name="evaluation_5_shot", n_shot=5)
    assert main([str(run), str(bare)]) == 0
    rows = capsys.readouterr().out.splitlines()[2:5]
    assert ["20-way 1-shot" in rows[0], "20-way 5-shot" in rows[1]] == [True, True]
    assert rows[2] == (
        "| b | 1 | not evaluated | prototype loss, Reptile | searched for each task | - | - | - | - | - | - |"
    )


def test_an_evaluation_of_a_meta_model_that_was_trained_again_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "a")
    _evaluate(run, {run: 0.9})
    (run / "meta.pt").write_bytes(b"another")
    assert main([str(run)]) == 1
    assert "is of another meta-model than" in capsys.readouterr().err


def test_two_evaluations_of_the_same_tasks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(tmp_path / "a")
    _evaluate(run, {run: 0.9})
    _evaluate(run, {run: 0.9}, name="evaluation_again")
    assert main([str(run)]) == 1
    assert "are of the same tasks; remove one of them" in capsys.readouterr().err


def test_a_folder_that_is_no_run_or_is_damaged_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert f"{tmp_path} is no run folder" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    assert "config.json is not JSON" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text('{"data": "x"}')
    assert main([str(tmp_path)]) == 1
    assert "is no result of meta_evaluate.py (no 'n_way'); evaluate again" in capsys.readouterr().err


def test_an_experiment_is_called_by_its_folders_without_the_seed() -> None:
    assert experiment_name(["hour-seed0", "hour-seed12"]) == "hour"
    assert experiment_name(["hour_seed=3"]) == "hour"
    assert experiment_name(["a", "b"]) == "a / b"
    assert experiment_name(["seed0"]) == "seed0"


@pytest.mark.parametrize(
    ("config", "plan", "expected"),
    [
        ({"warm_up": "meta", "meta_learner": "maml"}, {"warm_up": 5, "joint": 5}, "MAML"),
        ({"warm_up": "prototype", "meta_learner": "reptile"}, {"warm_up": 5, "joint": 0}, "prototype loss"),
        ({"warm_up": "prototype", "meta_learner": "reptile"}, {"warm_up": 0, "joint": 9}, "Reptile"),
        ({"warm_up": "supervised", "meta_learner": "first_order_maml"}, {}, "classifier, first-order MAML"),
        ({"meta_learner": "maml", "warm_up": "meta", "multi_step_loss": True}, {}, "MAML++"),
        ({"meta_learner": "maml", "warm_up": "meta", "multi_step_loss": False}, {}, "MAML"),
        ({"meta_learner": "first_order_maml", "warm_up": "meta", "learned_rates": True}, {}, "first-order MAML++"),
        ({}, {}, "-"),
    ],
)
def test_what_trained_the_weights_is_named_by_the_phases_that_had_steps(
    config: dict[str, str], plan: dict[str, int], expected: str
) -> None:
    assert meta_learner(config, {"plan": plan}) == expected


def test_a_folder_that_is_given_twice_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path / "a")
    _evaluate(run, {run: 0.9})
    monkeypatch.chdir(tmp_path)
    assert main([str(run), "a", "a/../a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| a | 1 |")
    assert "90.00 ± 1.00" in lines[2]  # the interval over tasks, not that of one run thrice: 0


def test_two_runs_of_one_experiment_with_the_same_seed_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [_run(tmp_path / name, seed=3) for name in ("one", "two")]
    assert main([str(run) for run in runs]) == 1
    assert f"{runs[0]} and {runs[1]} are runs of one experiment with the same seed 3" in capsys.readouterr().err
    other = _run(tmp_path / "three", seed=3, data="glyphs")
    assert main([str(runs[0]), str(other)]) == 0


def test_two_runs_of_one_experiment_with_the_same_meta_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [_run(tmp_path / f"hour-seed{seed}", seed=seed) for seed in range(2)]
    (runs[1] / "meta.pt").write_bytes((runs[0] / "meta.pt").read_bytes())
    assert main([str(run) for run in runs]) == 1
    assert f"{runs[0]} and {runs[1]} are runs of one experiment with the same meta-model" in capsys.readouterr().err


def test_an_experiment_of_unusual_settings_shows_them_beside_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"relaxation": "softmax", "strategy": "operations_and_inputs"}
    runs = [
        _run(tmp_path / "plain", drop_path=0.0, task=usual),
        _run(tmp_path / "odd", drop_path=0.2, task={"relaxation": "gumbel_softmax", "strategy": "none"}),
    ]
    assert main([str(run) for run in runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| plain | 1 |")
    assert lines[3].startswith("| odd (drop_path 0.2, relaxation gumbel_softmax, strategy none) | 1 |")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("runs.0.evaluation.inductive.mean", "high", "must be a finite number, got 'high'"),
        ("runs.0.evaluation.inductive.mean", float("nan"), "must be a finite number, got nan"),
        ("runs.0.evaluation.inductive.mean", True, "must be a finite number, got True"),
        ("runs.0.evaluation.parameter_count", 10**400, "must be a finite number, got 1000"),
        ("runs.0.evaluation.transductive.half_width", None, None),
        ("runs.0.evaluation.prototype", 0.5, "must be a table, got 0.5"),
        ("runs.0.evaluation", None, None),
        ("runs.0.evaluation", [0.9], "must be a table, got [0.9]"),
        ("runs.0.architecture", 3, "must be text, got 3"),
        ("runs.0.meta_sha256", None, None),
        ("runs.0", "x", "must be a table, got 'x'"),
        ("runs", {}, "must be a list, got {}"),
        ("tasks", 1.5, "must be a whole number, got 1.5"),
        ("data", ["x"], "must be text, got ['x']"),
    ],
)
def test_results_that_were_edited_are_refused_with_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any, expected: str | None
) -> None:
    run = _run(tmp_path / "a")
    _evaluate(run, {run: 0.9})
    file = run / "evaluation" / "results.json"
    values = json.loads(file.read_text())
    *way, last = field.split(".")
    table = values
    for part in way:
        table = table[int(part)] if isinstance(table, list) else table[part]
    table[int(last) if isinstance(table, list) else last] = value
    file.write_text(json.dumps(values))
    assert main([str(run)]) == 1
    message = capsys.readouterr().err
    if expected is None:
        assert f"{file} is no result of meta_evaluate.py (no '{field}" in message
    else:
        assert f"{file}: {field} {expected}" in message


def test_a_configuration_or_provenance_that_was_edited_is_refused_with_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "a", network="small")
    assert main([str(run)]) == 1
    assert f"{run / 'config.json'}: network must be a table, got 'small'" in capsys.readouterr().err
    run = _run(tmp_path / "b")
    (run / "meta.json").write_text('{"provenance": {"training_cpu_seconds": "long"}}')
    assert main([str(run)]) == 1
    assert "meta.json: provenance.training_cpu_seconds must be a finite number, got 'long'" in capsys.readouterr().err
