"""The file of tokens and the command that keeps it."""

import json
import re
import stat

import pytest

from metanas_serving import tokens_cli
from metanas_serving.errors import StartupError, UnauthenticatedError
from metanas_serving.tokens import FileTokens, Tokens


def add(path, tenant, capsys):
    assert tokens_cli.main(["add", str(path), tenant]) == 0
    return capsys.readouterr().out.strip()


def test_a_token_stands_for_its_tenant_and_the_file_does_not_hold_it(tmp_path, capsys):
    path = tmp_path / "tokens.json"
    made = {tenant: add(path, tenant, capsys) for tenant in ("plant-a", "plant-b", "")}
    tokens = Tokens.read(path)
    for tenant, token in made.items():
        assert re.fullmatch(r"metanas_[0-9a-f]{16}_[0-9a-f]{64}", token)
        assert tokens.tenant(f"Bearer {token}") == tokens.tenant(f"bearer {token}") == tenant
        assert token.rpartition("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".*"))


def test_list_names_tokens_without_their_secrets_and_remove_takes_one_away(tmp_path, capsys):
    path = tmp_path / "tokens.json"
    kept, removed = add(path, "a", capsys), add(path, "b", capsys)
    assert tokens_cli.main(["list", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{kept.split('_')[1]}  'a'", f"{removed.split('_')[1]}  'b'"]
    assert tokens_cli.main(["remove", str(path), removed.split("_")[1]]) == 0
    tokens = Tokens.read(path)
    assert tokens.tenant(f"Bearer {kept}") == "a"
    with pytest.raises(UnauthenticatedError, match="no valid token"):
        tokens.tenant(f"Bearer {removed}")
    assert tokens_cli.main(["remove", str(path), removed.split("_")[1]]) == 1
    assert "`metanas-tokens list` names them" in capsys.readouterr().err


def test_a_running_server_sees_tokens_come_and_go_and_keeps_them_when_the_file_breaks(
    tmp_path, capsys, monkeypatch, caplog
):
    monkeypatch.setattr("metanas_serving.tokens._LOOK_SECONDS", 0.0)
    path = tmp_path / "tokens.json"
    first = add(path, "a", capsys)
    tokens = FileTokens(path)
    second = add(path, "b", capsys)
    assert tokens.tenant(f"Bearer {second}") == "b"
    content = path.read_text()
    path.write_text("{")
    assert tokens.tenant(f"Bearer {first}") == "a"
    assert "the tokens stay as they were" in caplog.text
    path.unlink()
    assert tokens.tenant(f"Bearer {second}") == "b"
    path.write_text(content)
    for token in (first, second):
        assert tokens_cli.main(["remove", str(path), token.split("_")[1]]) == 0
        with pytest.raises(UnauthenticatedError):
            tokens.tenant(f"Bearer {token}")
    assert tokens_cli.main(["list", str(path)]) == 0
    with pytest.raises(StartupError, match="holds no token"):
        FileTokens(path)


@pytest.mark.parametrize("tenant", ["a/b", "two words", "-x", "x" * 65, "\n", "é"])
def test_a_tenant_has_a_plain_name(tmp_path, tenant, capsys):
    assert tokens_cli.main(["add", "--", str(tmp_path / "tokens.json"), tenant]) == 1
    assert "cannot be a tenant" in capsys.readouterr().err


def test_a_file_that_cannot_be_used_is_refused_with_its_name(tmp_path, capsys):
    path = tmp_path / "tokens.json"
    for content, message in (
        (None, "cannot read the token file .*: No such file"),
        ("{", "is not a token file"),
        ('{"tokens": []}', "holds no token, so no call could pass"),
        ('{"tokens": [{"id": "1"}]}', "is not a token file"),
    ):
        if content is not None:
            path.write_text(content)
        with pytest.raises(StartupError, match=message):
            Tokens.read(path)
    token = add(tmp_path / "other.json", "a", capsys)
    values = json.loads((tmp_path / "other.json").read_text())
    path.write_text(json.dumps({"tokens": values["tokens"] * 2}))
    with pytest.raises(StartupError, match="two tokens have one id"):
        Tokens.read(path)
    assert token
