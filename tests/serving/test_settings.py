"""Settings from a file, the environment and flags: which wins, what is refused, what is told at the start."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from metanas_serving.config import ServerConfig
from metanas_serving.settings import HELP, SECRETS, SETTINGS, Setting, read_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(capsys):
    """The message with which settings are refused, on one line."""

    def read(arguments=(), environment=()):
        with pytest.raises(SystemExit) as left:
            read_settings(list(arguments), dict(environment))
        assert left.value.code == 2
        return " ".join(capsys.readouterr().err.partition("error: ")[2].split())

    return read


def test_every_field_of_the_configuration_is_a_setting():
    assert set(HELP) == {field.name for field in fields(ServerConfig)}
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nmax-queue = 1\nmax_adapt_steps = 1\nstore = "tasks"\ninsecure = true\nhost = "::"\n')
    environment = {"METANAS_SERVER_PORT": "2", "METANAS_SERVER_MAX_QUEUE": "2", "METANAS_DATA": "/data", "PORT": "9"}
    settings = read_settings(["--config", str(file), "--port", "3"], environment)
    assert settings.config == ServerConfig(
        port=3, max_queue=2, max_adapt_steps=1, store_path=tmp_path / "tasks", insecure=True, host="::"
    )
    told = dict(line.strip().split(" = ", 1) for line in settings.lines())
    assert told["port"] == "3  (--port)"
    assert told["max_queue"] == "2  (METANAS_SERVER_MAX_QUEUE)"
    assert told["max_adapt_steps"] == f"1  ({file})"
    assert told["max_message_mb"] == "64"
    assert len(told) == len(SETTINGS)
    by_variable = read_settings(["--no-insecure", "--host", "::1"], {"METANAS_SERVER_CONFIG": str(file)})
    assert by_variable.config.port == 1
    assert not by_variable.config.insecure


def test_each_kind_of_value_is_read_from_each_source(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text(
        f'tokens = "{tmp_path}/t"\ninsecure = false\ndrain_seconds = 5\nlog_format = "json"\nmetrics_port = 0\n'
    )
    expected = ServerConfig(tokens_path=tmp_path / "t", drain_seconds=5.0, log_format="json", metrics_port=0)
    texts = {"TOKENS": f"{tmp_path}/t", "INSECURE": "false", "DRAIN_SECONDS": "5", "LOG_FORMAT": "json"}
    variables = {f"METANAS_SERVER_{name}": text for name, text in {**texts, "METRICS_PORT": "0"}.items()}
    flags = ["--tokens", f"{tmp_path}/t", "--no-insecure", "--drain-seconds", "5", "--log-format", "json"]
    assert read_settings(["--config", str(file)], {}).config == expected
    assert read_settings([], variables).config == expected
    assert read_settings([*flags, "--metrics-port", "0"], {}).config == expected


def test_a_store_may_be_a_folder_or_a_url_from_each_source(tmp_path):
    file = tmp_path / "server.toml"
    for text, in_file, elsewhere in (
        ("s3://bucket/tasks", "s3://bucket/tasks", "s3://bucket/tasks"),
        ("tasks", tmp_path / "tasks", Path("tasks")),
    ):
        file.write_text(f'store = "{text}"\n')
        assert read_settings(["--config", str(file)], {}).config.store_path == in_file
        assert read_settings([], {"METANAS_SERVER_STORE": text}).config.store_path == elsewhere
        assert read_settings(["--store", text], {}).config.store_path == elsewhere


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "'prot' is no setting; did you mean port?"),
        ("zzz = 1", "'zzz' is no setting; `"),
        ("[server]\nport = 1", "'server' is no setting"),
        ('port = "1"', "port must be a whole number, got '1'"),
        ("port = true", "port must be a whole number, got True"),
        ("port = 1.5", "port must be a whole number, got 1.5"),
        ("store = 1", "store must be a path, got 1"),
        ("insecure = 1", "insecure must be true or false, got 1"),
        ('log_format = "xml"', "log_format must be text or json, got 'xml'"),
        ("port = ", "is not TOML"),
        ("max_queue = -1", "max_queue must be at least 0, got -1 (max_queue is from"),
    ],
)
def test_a_file_with_what_is_no_setting_is_refused(tmp_path, refused, text, message):
    file = tmp_path / "server.toml"
    file.write_text(text)
    said = refused(["--config", str(file)])
    assert str(file) in said
    assert message in said


def test_a_file_that_is_not_there_is_refused(refused):
    assert "cannot read /no/server.toml: No such file or directory; pass another" in refused(
        ["--config=/no/server.toml"]
    )


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("METANAS_SERVER_PROT", "1", "METANAS_SERVER_PROT is no setting; did you mean METANAS_SERVER_PORT?"),
        ("METANAS_SERVER_PORT", "x", "METANAS_SERVER_PORT must be a whole number, got 'x'"),
        ("METANAS_SERVER_PORT", "", "METANAS_SERVER_PORT must be a whole number, got ''"),
        ("METANAS_SERVER_DEVICE", "tpu", "METANAS_SERVER_DEVICE must be auto or cpu or cuda, got 'tpu'"),
        ("METANAS_SERVER_INSECURE", "perhaps", "METANAS_SERVER_INSECURE must be true or false"),
        ("METANAS_SERVER_PORT", "tcp://10.0.0.7:50051", "set enableServiceLinks to false in the pod"),
        ("METANAS_SERVER_SERVICE_HOST", "10.0.0.7", "Kubernetes sets it for a Service called metanas-server"),
        ("METANAS_SERVER_MAX_QUEUE", "-1", "got -1 (max_queue is from METANAS_SERVER_MAX_QUEUE)"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(refused, variable, text, message):
    assert message in refused(environment={variable: text})


def test_a_flag_that_is_none_is_refused_with_the_nearest_and_none_is_guessed(refused):
    assert "unrecognized arguments: --prot 3; did you mean --port?" in refused(["--prot", "3"])
    assert "unrecognized arguments: --max-adapt 3" in refused(["--max-adapt", "3"])


def test_secrets_are_masked(tmp_path, refused, monkeypatch):
    assert set(HELP) >= SECRETS
    for name in SECRETS:
        setting = next(setting for setting in SETTINGS if setting.field == name)
        told = "\n".join(read_settings([], {setting.variable: "key=hush-hush"}).lines())
        assert "hush-hush" not in told
        assert f"{setting.name} = ***  ({setting.variable})" in told
    from metanas_serving import settings

    shown = settings._shown(Setting("store_path", str), "s3://me:hush@bucket/tasks?key=hush")
    assert shown == "s3://***@bucket/tasks?***"


def test_a_server_tells_its_settings_at_its_start(tmp_path, tiny_meta):
    file = tmp_path / "server.toml"
    file.write_text(f'meta = "{tiny_meta}"\nadapt_workers = 1\nlog_format = "json"\n')
    with subprocess.Popen(
        [sys.executable, ROOT / "serving" / "server.py", "--config", file],
        env={
            "PATH": "/usr/bin:/bin",
            "METANAS_SERVER_PORT": "0",
            "PYTHONPATH": ":".join(sys.path),
            "HOME": str(tmp_path),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("serving on 127.0.0.1:")
        process.terminate()
        _, log = process.communicate(timeout=60)
    (told,) = (
        record["message"] for record in map(json.loads, log.splitlines()) if "configuration" in record["message"]
    )
    assert f"  meta = {tiny_meta}  ({file})\n" in told
    assert "  port = 0  (METANAS_SERVER_PORT)\n" in told
    assert "  max_queue = 8\n" in told
