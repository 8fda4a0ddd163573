"""Who can reach a server, and what it has to ask of them.

    is_loopback      whether an address is reached from this machine only
    check_exposure   nothing, or why a server must not listen where it is told to

Without an import of gRPC, for a configuration is checked before anything else is loaded.
"""

import ipaddress

from metanas.errors import InvalidConfigError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; false for names that are not known for sure."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, *, has_tls: bool, has_tokens: bool, insecure: bool) -> None:
    """Return if a server may listen on an address.

    Raises:
        InvalidConfigError: others than this machine reach it, and it would answer them in plain text or
            whoever they are.
    """
    if insecure or is_loopback(host) or (has_tls and has_tokens):
        return
    missing = " and ".join(
        text
        for is_there, text in (
            (has_tls, "TLS (--tls-cert and --tls-key)"),
            (has_tokens, "tokens (--tokens, made by `metanas-tokens add`)"),
        )
        if not is_there
    )
    raise InvalidConfigError(
        f"host {host!r} may be reached from other machines, and there is no {missing}; give it that, listen on "
        "127.0.0.1, or say --insecure if something else protects the way to it"
    )
