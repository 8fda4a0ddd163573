"""The command line, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metanas.artifact import load_meta
from metanas_training.cli import main
from metanas_training.run_folder import environment

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(REPOSITORY / "training" / "meta_train.py")]
TINY = [
    "--device", "cpu", "--channels", "4", "--image-size", "8", "--grey", "--ways", "2", "--train-shots", "2",
    "--meta-batch-size", "2", "--pair-classes", "4", "--eval-tasks", "1",
]  # fmt: skip


def _arguments(pictures: Path, output: Path, *more: str) -> list[str]:
    return ["--data", f"folder:{pictures}", "--output", str(output), *TINY, *more]


def test_training_writes_a_meta_model_its_json_and_tensorboard_scalars(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = subprocess.run(
        [*TRAIN, *_arguments(pictures, output, "--meta-epochs", "2")], capture_output=True, text=True, timeout=200,
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "inductive (support statistics)" in done.stdout
    assert "transductive (the paper's)" in done.stdout
    assert f"wrote {output / 'meta.pt'} and {output / 'meta.json'}" in done.stdout

    report = json.loads((output / "meta.json").read_text())
    assert report.keys() == {"provenance", "history"}
    provenance = report["provenance"]
    assert provenance.keys() >= {
        "data", "seed", "configuration", "plan", "training_seconds", "held_out", "code_version", "torch_version",
    }  # fmt: skip
    assert provenance["data"] == "folder:pictures/train"
    assert provenance["plan"] == {"warm_up": 2, "search": 8, "joint": 2}
    assert provenance["configuration"]["network"]["channels"] == 4
    for protocol in ("inductive", "transductive"):
        assert 0 <= provenance["held_out"][protocol]["mean"] <= 1
    assert [row["step"] for row in report["history"]][-1] == 12

    meta = load_meta(output / "meta.pt")
    assert meta.provenance == provenance
    assert (meta.space.channels, meta.space.image_size, meta.space.in_channels) == (4, 8, 1)
    assert meta.moments
    assert list((output / "tensorboard").glob("events.out.tfevents.*"))
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["phase"] for row in rows] == ["warm_up"] * 2 + ["search"] * 8 + ["joint"] * 2
    assert json.loads((output / "config.json").read_text()) == provenance["configuration"]
    environment = json.loads((output / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["command"][0] == "meta_train.py"
    assert main(_arguments(pictures, output)) == 2  # a second run does not overwrite the first


def test_statistics_that_are_fitted_are_in_the_meta_model_as_the_log_says(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = subprocess.run(
        [*TRAIN, *_arguments(pictures, output, "--meta-epochs", "1"), "--set", "fit_statistics=true"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cross-entropy of single shots" in done.stderr
    prior = load_meta(output / "meta.pt").prior
    assert f"statistics of training images count as {'none' if prior is None else f'{prior.images:g}'}" in done.stderr


def test_ctrl_c_leaves_a_checkpoint_that_continues_to_the_weights_of_an_uninterrupted_run(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--set", "task.architecture_steps=1", "--set", "task.weight_steps=1")
    sizes = ("--meta-epochs", "2", "--warm-up-steps", "12", "--search-steps", "2", *few)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with subprocess.Popen(
        [*TRAIN, *_arguments(pictures, stopped, *sizes)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "on validation classes" in line:  # the first of ten
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=100) == 130
    assert f"--resume {stopped}" in rest
    assert (stopped / "checkpoint.pt").is_file()
    assert not (stopped / "meta.pt").exists()

    assert main(["--resume", str(stopped)]) == 0
    assert main(_arguments(pictures, whole, *sizes)) == 0
    one, other = load_meta(stopped / "meta.pt"), load_meta(whole / "meta.pt")
    for part in ("weights", "architecture", "moments"):
        found, expected = getattr(one, part), getattr(other, part)
        assert found.keys() == expected.keys()
        assert not [name for name in expected if not torch.equal(found[name], expected[name])]
    assert one.head_scale == other.head_scale
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--minutes", "1", "--meta-epochs", "2"], 2, "give --minutes or --meta-epochs, not both"),
        (["--warm-up-steps", "3"], 2, "--warm-up-steps, --search-steps and --fall-steps need --meta-epochs"),
        (["--minutes", "inf"], 2, "minutes must be above 0 and finite, got inf"),
        (["--minutes", "-1"], 2, "minutes must be above 0 and finite, got -1.0"),
        (["--ways", "1"], 2, "n_way must be a whole number of at least 2, got 1"),
        (["--seed", "-1"], 2, "seed must be 0..2^63 - 1, got -1"),
        (["--channels", "0"], 2, "channels must be a whole number of at least 1, got 0"),
        (["--channels", "1"], 2, "channels must be at least 2, as reductions halve them, got 1"),
        (["--meta-epochs", "2", "--search-steps", "1", "--fall-steps", "3"], 2, "no more fall than search"),
        (["--data", "mnist"], 1, "unknown data set 'mnist'; there are glyphs, omniglot"),
        (["--warm-up", "maml"], 2, "warm_up must be prototype, supervised, meta, got 'maml'"),
        (["--config", "/nowhere.toml"], 2, "cannot read /nowhere.toml: No such file"),
        (["--data", "folder:/nowhere"], 1, "/nowhere is not a folder"),
        (["--network", "fixed", "--genotype", "autometa"], 2, "the genotype has 5 nodes, the space has 3"),
        (["--network", "fixed", "--genotype", "nasnet"], 2, "nasnet"),
        (["--resume", "/nowhere", "--seed", "3"], 2, "--resume takes all settings from the run; leave out --seed"),
        (["--resume", "/nowhere"], 1, "no checkpoint /nowhere/checkpoint.pt; start without --resume"),
        (["--output", "/dev/null/run"], 1, "Not a directory"),
    ],
)
def test_wrong_arguments_exit_with_their_code_and_a_message(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if {"--output", "--resume"} & set(arguments) else ["--output", str(tmp_path / "run"), *arguments]
    assert main(given) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("meta_train: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "one"], "invalid int value: 'one'"),
        (["--depth", "3"], "unrecognized arguments: --depth 3"),
    ],
)
def test_arguments_that_cannot_be_parsed_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_of_two_runs_in_one_folder_the_second_is_refused_even_before_the_first_checkpoint(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_text("{}")
    assert main(_arguments(pictures, output, "--meta-epochs", "1")) == 2
    assert f"{output} already holds a run; remove it, or choose another --output" in capsys.readouterr().err
    assert (output / "config.json").read_text() == "{}"


def test_more_ways_and_shots_than_there_are_come_with_a_warning(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = ("--set", "task.architecture_steps=1", "--set", "task.weight_steps=1", "--warm-up-steps", "0")
    arguments = _arguments(pictures, tmp_path / "run", "--meta-epochs", "1", *few, "--ways", "9", "--train-shots", "8")
    assert main(arguments) == 0
    assert "folder:pictures/train has only 4 ways, not 9: tasks take those" in caplog.text
    assert "folder:pictures/train has only 4 training images a class, not 8: tasks take those" in caplog.text


def test_what_the_environment_says_names_no_folder(pictures: Path, tmp_path: Path) -> None:
    text = json.dumps(environment(["--data", f"folder:{pictures}", "--output", str(tmp_path / "run"), "--seed", "3"]))
    assert str(tmp_path) not in text
    assert "folder:pictures" in text
