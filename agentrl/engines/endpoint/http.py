"""Addresses, and what servers answer when they do not answer: errors, waits, repeated keys."""

from __future__ import annotations

import email.utils
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from agentrl.errors import ConfigError

URL_ENV = "OPENAI_BASE_URL"
SHORTEST_SECRET = 8
"""Shorter keys (EMPTY, none) are placeholders that local servers want; they are no secrets."""


def checked_url(url: str) -> str:
    """The address without a slash at its end. Raises ConfigError, which shows no credentials."""
    if not url:
        raise ConfigError(f"endpoint: give the address, as in openai:MODEL@URL, or set {URL_ENV}")
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        hidden = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        valid = hidden = False
    if hidden:
        raise ConfigError(
            "endpoint: the address has a user, a query or a fragment in it. Keys come from the "
            "environment only: put the key into OPENAI_API_KEY and leave it out of the address."
        )
    if not valid:
        raise ConfigError(
            f"endpoint: {url!r} is no address; give one like http://localhost:8000/v1"
        )
    return url.rstrip("/")


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def without_key(key: str, text: str) -> str:
    """`text` with the key taken out, as it is and as JSON writes it."""
    if len(key) < SHORTEST_SECRET:
        return text
    return text.replace(key, "[key]").replace(json.dumps(key)[1:-1], "[key]")


def json_object(text: str) -> dict[str, Any] | None:
    """The object that a JSON text holds; None if it is something else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def complaint(data: Mapping[str, Any] | None, text: str) -> tuple[str, str]:
    """An error's code and what it says, in one line."""
    error = (data or {}).get("error", data)
    if isinstance(error, Mapping):
        code = str(error.get("code") or error.get("type") or "")
        said = str(error.get("message") or json.dumps(error))
    else:
        code, said = "", str(error or text)
    return code, " ".join(said.split())[:300] or "no reason given"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that Retry-After asks for: a number or a date (RFC 9110, section 10.2.3)."""
    found = {name.lower(): value.strip() for name, value in headers.items()}
    try:
        if "retry-after-ms" in found:
            return max(0.0, float(found["retry-after-ms"]) / 1000)
        value = found["retry-after"]
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None
