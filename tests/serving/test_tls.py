"""TLS and client certificates over real connections, and where a server refuses to listen."""

import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from metanas.errors import InvalidConfigError
from metanas_client import FewShotClient, InvalidRequestError, ServerUnavailableError
from metanas_client.cli import main as client_main
from metanas_serving import tokens_cli
from metanas_serving.config import ServerConfig
from metanas_serving.errors import StartupError
from metanas_serving.settings import read_settings
from metanas_serving.transport import server_credentials

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mutual(make_process, tiny_meta, certificates):
    """A process that wants certificates of its callers."""
    return make_process("--meta", str(tiny_meta), *certificates.flags, "--tls-client-ca", str(certificates.authority))


def whole(files):
    return {label: [image.encoded for image in images] for label, images in files.items()}


def test_a_client_with_certificates_learns_classifies_exports_over_mutual_tls(mutual, certificates, support, tmp_path):
    with FewShotClient(
        mutual.address,
        root_certificate=certificates.authority,
        client_certificate=certificates.client.read_bytes(),
        client_key=certificates.client_key,
        timeout_seconds=60,
    ) as client:
        client.wait_until_ready()
        job = client.start_adapt(whole(support))
        assert [status.state for status in job.watch()][-1] == "succeeded"
        task = job.result()
        assert task.classify([support["cat"][0].encoded])[0].class_name in support
        assert list(task.classify_stream([support["cat"][0].encoded]))
        assert task.export(tmp_path / "task.pt").stat().st_size > 1000


def test_no_call_passes_without_tls_or_without_a_certificate_of_the_authority(mutual, certificates):
    ways = {
        "plain": {},
        "no certificate": {"root_certificate": certificates.authority},
        "another authority's": {
            "root_certificate": certificates.authority,
            "client_certificate": certificates.stranger,
            "client_key": certificates.stranger_key,
        },
        "a server that it does not know": {"tls": True},
    }
    for arguments in ways.values():
        with (
            FewShotClient(mutual.address, timeout_seconds=10, **arguments) as client,
            pytest.raises(ServerUnavailableError, match=r"whether it speaks TLS \(root_certificate\)"),
        ):
            client.tasks()


def test_the_command_line_and_the_environment_name_certificates_too(mutual, certificates, monkeypatch, capsys):
    given = ["--root-certificate", str(certificates.authority), "--client-certificate", str(certificates.client)]
    asked = ["tasks", "--server", mutual.address]
    assert client_main([*asked, *given, "--client-key", str(certificates.client_key)]) == 0
    assert client_main([*asked, *given]) == 2
    assert "client_certificate and client_key go together" in capsys.readouterr().err
    for name, path in (
        ("ROOT_CERTIFICATE", certificates.authority),
        ("CLIENT_CERTIFICATE", certificates.client),
        ("CLIENT_KEY", certificates.client_key),
    ):
        monkeypatch.setenv(f"METANAS_{name}", str(path))
    assert client_main(asked) == 0
    monkeypatch.setenv("METANAS_ROOT_CERTIFICATE", "/no/such/file")
    assert client_main(asked) == 2
    assert "/no/such/file" in capsys.readouterr().err


def test_a_server_with_tls_and_tokens_listens_beyond_the_machine(tmp_path, tiny_meta, certificates, capfd):
    tokens = tmp_path / "tokens.json"
    assert tokens_cli.main(["add", str(tokens), "plant-a"]) == 0
    token = capfd.readouterr().out.strip()
    flags = ["--host", "0.0.0.0", "--port", "0", *certificates.flags, "--tokens", tokens]
    with subprocess.Popen(
        [sys.executable, ROOT / "serving" / "server.py", "--meta", tiny_meta, *flags], stdout=subprocess.PIPE, text=True
    ) as process:
        port = process.stdout.readline().strip().rpartition(":")[2]
        with FewShotClient(f"127.0.0.1:{port}", root_certificate=certificates.authority, token=token) as client:
            assert client.tasks() == []
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ([], r"no TLS \(--tls-cert and --tls-key\) and tokens \(--tokens, made by `metanas-tokens add`\); give it"),
        (["--tokens", "t.json"], r"no TLS \(--tls-cert and --tls-key\); give it"),
        (["--tls-cert", "c.pem", "--tls-key", "c.key"], r"no tokens \(--tokens, made by `metanas-tokens add`\); give"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "edge-1.example"])
def test_a_server_does_not_listen_beyond_the_machine_without_both(host, flags, missing, capsys):
    with pytest.raises(SystemExit) as left:
        read_settings(["--host", host, *flags])
    assert left.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    with pytest.raises(AssertionError, match=missing):
        raise AssertionError(said)
    assert f"host '{host}' may be reached from other machines" in said
    assert "listen on 127.0.0.1, or say --insecure" in said
    assert read_settings(["--host", host, "--insecure", *flags]).config.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_neither(host):
    assert ServerConfig(host=host).host == host


def test_certificates_that_cannot_be_used_are_refused_by_name(certificates, tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    good, key = certificates.server, certificates.server_key
    for arguments, message in (
        ((tmp_path / "none.pem", key, None), r"cannot read --tls-cert .*none.pem: No such file .*; pass another file"),
        ((bad, key, None), r"cannot use --tls-cert .*bad.pem with --tls-key: .*; both have to be PEM"),
        ((good, certificates.client_key, None), r"cannot use --tls-cert .* with --tls-key: KEY_VALUES_MISMATCH"),
        ((good, key, bad), r"cannot use --tls-client-ca .*bad.pem: .*certificates of the authorities"),
    ):
        with pytest.raises(StartupError, match=message):
            server_credentials(*arguments)
    with pytest.raises(InvalidConfigError, match="tls_cert and tls_key go together"):
        ServerConfig(tls_cert=good)
    with pytest.raises(InvalidConfigError, match="tls_client_ca asks callers for certificates, which needs TLS"):
        ServerConfig(tls_client_ca=good)


def test_a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not(certificates, tmp_path, caplog):
    """A bare gRPC server, for all that matters are its credentials."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(certificates.server.read_bytes())
    key.write_bytes(certificates.server_key.read_bytes())
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(certificate, key, None))
    server.start()

    def shown():
        return ssl.get_server_certificate(("127.0.0.1", port))

    def same(pem, path):
        return ssl.PEM_cert_to_DER_cert(pem) == ssl.PEM_cert_to_DER_cert(path.read_text())

    try:
        assert same(shown(), certificates.server)
        certificate.write_bytes(certificates.client.read_bytes())  # its key is not here yet
        assert same(shown(), certificates.server)
        assert "certificates stay as they were: cannot use --tls-cert" in caplog.text
        key.write_bytes(certificates.client_key.read_bytes())
        assert same(shown(), certificates.client)
    finally:
        server.stop(None)


def test_a_client_does_not_send_its_token_to_another_machine_in_plain_text(monkeypatch):
    for address in ("192.0.2.7:50051", "edge-1.example:50051", "dns:///edge-1.example:50051", "[2001:db8::1]:50051"):
        with pytest.raises(InvalidRequestError, match=r"the token would go to .* in plain text"):
            FewShotClient(address, token="metanas_a_b")
        FewShotClient(address, token="metanas_a_b", tls=True).close()
        FewShotClient(address, token="metanas_a_b", insecure=True).close()
    for address in ("localhost:1", "127.0.0.1:1", "[::1]:1", "ipv4:127.0.0.1:1", "unix:/tmp/socket"):
        FewShotClient(address, token="metanas_a_b").close()
    with pytest.raises(InvalidRequestError, match="characters that no token has"):
        FewShotClient("localhost:1", token="two\nlines")
    monkeypatch.setenv("METANAS_TLS", "perhaps")
    with pytest.raises(InvalidRequestError, match="METANAS_TLS must be 1 or 0, got 'perhaps'"):
        FewShotClient("localhost:1")


def test_old_versions_of_tls_are_refused(mutual, certificates):
    context = ssl.create_default_context(cafile=certificates.authority)
    context.load_cert_chain(certificates.client, certificates.client_key)
    host, _, port = mutual.address.partition(":")
    with socket.create_connection((host, int(port))) as raw, context.wrap_socket(raw, server_hostname=host) as secure:
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((host, int(port))) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(raw, server_hostname=host),
    ):
        pytest.fail("TLS 1.1 was taken")


def test_channels_of_other_libraries_need_nothing_of_ours(mutual, certificates):
    credentials = grpc.ssl_channel_credentials(
        certificates.authority.read_bytes(), certificates.client_key.read_bytes(), certificates.client.read_bytes()
    )
    with grpc.secure_channel(mutual.address, credentials) as channel:
        grpc.channel_ready_future(channel).result(timeout=20)
