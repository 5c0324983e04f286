"""Who may use a server, and where servers are."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from agentrl.errors import ConfigError

TOKEN_VARIABLE = "AGENTRL_SANDBOX_TOKEN"
_SHORTEST = 16


class Tokens:
    """The tokens that a server takes, each an owner of its own. Without any, anybody may."""

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        """Raises ConfigError for a token that is too short, or no word."""
        self._digests = [_digest(checked_token(token)) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """The owner that an Authorization header names; None if it names nobody.

        Takes the same time whatever part of a token is right, and whichever token it is.
        """
        if not self._digests:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip())
        same = [hmac.compare_digest(given, digest) for digest in self._digests]
        return given.hex() if any(same) and scheme.lower() == "bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def checked_token(token: str) -> str:
    """The token. Raises ConfigError, without the token in it, if it cannot be one."""
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("a sandbox token is one word of ASCII letters, digits and signs")
    if len(token) < _SHORTEST:
        raise ConfigError(
            f"a sandbox token has at least {_SHORTEST} characters; make one with: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def server_tokens(file: Path | None) -> Tokens:
    """The tokens in a file, one a line (`#` begins a comment), else in AGENTRL_SANDBOX_TOKEN.

    Raises ConfigError if the file cannot be read, or holds none.
    """
    if file is None:
        return Tokens(os.environ.get(TOKEN_VARIABLE, "").split())
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token file {file}: {error}") from error
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"the token file {file} holds no token")
    return Tokens(tokens)


def client_token(token: str | None) -> str | None:
    """The token that a client shows: the one given, else the one in AGENTRL_SANDBOX_TOKEN."""
    found = os.environ.get(TOKEN_VARIABLE) if token is None else token
    return checked_token(found.strip()) if found else None


def server_urls(urls: str | Sequence[str]) -> list[str]:
    """Addresses of servers, each once; a string has commas between them. Raises ConfigError."""
    words = urls.split(",") if isinstance(urls, str) else list(urls)
    found = list(dict.fromkeys(word.strip().rstrip("/") for word in words if word.strip()))
    if not found:
        raise ConfigError("which servers? Write 'remote:http://HOST:8400', or give urls=[...]")
    for url in found:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is no server's address: write http://HOST:8400")
        if "@" in parts.netloc:
            raise ConfigError(
                f"no names or passwords in addresses: put a token in {TOKEN_VARIABLE}"
            )
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there. Raises ConfigError on no host."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise ConfigError(f"there is no host {host!r} to listen on: {error.strerror}") from error
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)
