"""``metanas-models``: what is bundled is listed with its card; a name that is not is an error in words."""

import hashlib
import json
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from metanas.artifact import meta_from_bytes
from metanas_serving import bundled
from metanas_serving.errors import StartupError
from metanas_serving.models_cli import main


def test_every_bundled_file_has_a_card_of_that_very_file() -> None:
    folder = files("metanas_serving") / "models"
    weights = {entry.name.removesuffix(".pt") for entry in folder.iterdir() if entry.name.endswith(".pt")}
    assert {card.name for card in bundled.cards()} == weights
    for card in bundled.cards():
        data = bundled.path(card.name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == card.values["sha256"]
        assert meta_from_bytes(data).provenance["data"] == card.values["trained_on"]


def test_the_default_comes_first() -> None:
    assert bundled.cards()[0].name == bundled.names()[0] == bundled.DEFAULT


def test_the_command_is_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["metanas-models"] == "metanas_serving.models_cli:main"


def test_a_meta_model_without_a_card_is_listed_and_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strange.pt").write_bytes(b"weights")
    monkeypatch.setattr(bundled, "_folder", lambda: tmp_path)
    assert main(["list"]) == 0
    assert capsys.readouterr().out.startswith("strange: nothing is known of it; ")
    assert main(["show", "strange"]) == 1
    assert "nothing is known of it" in capsys.readouterr().err


def test_the_list_shows_accuracies_cost_licence_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    card = bundled.cards()[0]
    first = card.values["evaluations"][0]
    assert f"{100 * first['inductive']['mean']:.2f} ± " in text
    assert f"{first['n_way']}-way {first['n_shot']}-shot" in text
    minutes = card.values["processor_minutes"]
    assert ("cost not recorded" if minutes is None else f"{minutes:.0f} processor minutes") in text
    assert card.values["data_licence"] in text
    assert all(f"limit: {limit}" in text for limit in card.values["limits"])


def test_a_card_is_shown_as_json_and_a_path_can_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "omniglot"]) == 0
    assert json.loads(capsys.readouterr().out) == bundled.cards()[0].values
    assert main(["path", "omniglot"]) == 0
    assert capsys.readouterr().out.strip().endswith("models/omniglot.pt")


@pytest.mark.parametrize("name", ["nothing", "../omniglot", "omniglot.card", ""])
def test_an_unknown_name_is_refused_with_those_that_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["path", name]) == 1
    assert "there are: omniglot" in capsys.readouterr().err
    with pytest.raises(StartupError):
        bundled.path(name)
