"""Results, limits, capabilities and errors as JSON and bytes, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from agentrl.errors import ConfigError, EndedByCode, IsolationError, SandboxError, SessionDead
from agentrl.interfaces import Capabilities
from agentrl.types import ExecError, ExecResult, ExecStatus, Limits

_ERRORS: Mapping[str, type[Exception]] = {
    "ConfigError": ConfigError,
    "IsolationError": IsolationError,
    "EndedByCode": EndedByCode,  # the nearest class comes first
    "SessionDead": SessionDead,
    "SandboxError": SandboxError,
    "ValueError": ValueError,
}
_STATUSES = frozenset(get_args(ExecStatus))
_RESULT = {field.name for field in dataclasses.fields(ExecResult)} - {"artifacts", "error"}


def result_to_wire(result: ExecResult) -> tuple[dict[str, Any], list[bytes]]:
    """A result as a JSON object and the bytes of its artifacts."""
    body = {name: getattr(result, name) for name in _RESULT}
    body["error"] = dataclasses.asdict(result.error) if result.error else None
    body["artifacts"] = list(result.artifacts)
    return body, list(result.artifacts.values())


def result_from_wire(body: Mapping[str, Any], blobs: Sequence[bytes]) -> ExecResult:
    """The result that `result_to_wire` wrote. Raises SandboxError if it is none."""
    try:
        if body["status"] not in _STATUSES:
            raise ValueError(f"unknown status {body['status']!r}")
        fields = {name: body[name] for name in _RESULT}
        error = ExecError(**body["error"]) if body["error"] else None
        artifacts = dict(zip(body["artifacts"], blobs, strict=True))
        return ExecResult(**fields, error=error, artifacts=artifacts)
    except (KeyError, TypeError, ValueError) as error:
        raise SandboxError(f"an answer that is no result: {error}") from error


def limits_to_wire(limits: Limits) -> dict[str, Any]:
    """Limits as a JSON object."""
    return dataclasses.asdict(limits)


def limits_from_wire(body: Any) -> Limits:
    """The limits that `limits_to_wire` wrote. Raises ConfigError if they are none."""
    try:
        return Limits(**body)
    except TypeError as error:
        raise ConfigError(f"these are no sandbox limits: {error}") from error


def capabilities_to_wire(capabilities: Capabilities) -> dict[str, Any]:
    """Capabilities as a JSON object."""
    body = dataclasses.asdict(capabilities)
    del body["snapshots"]  # states of sessions do not travel
    return body


def capabilities_from_wire(body: Mapping[str, Any]) -> Capabilities:
    """The capabilities that `capabilities_to_wire` wrote. Raises SandboxError if they are none."""
    try:
        return Capabilities(**{**body, "languages": tuple(body["languages"])})
    except (KeyError, TypeError) as error:
        raise SandboxError(f"an answer that names no capabilities: {error}") from error


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """An error as a JSON object: the nearest class that a client knows, and its message."""
    if isinstance(error, OSError):
        return {
            "type": "OSError",
            "errno": error.errno,
            "message": error.strerror or str(error),
            "path": error.filename if isinstance(error.filename, str) else None,
        }
    for name, kind in _ERRORS.items():
        if isinstance(error, kind):
            return {"type": name, "message": str(error)}
    return {"type": "SandboxError", "message": f"{type(error).__name__}: {error}"}


def error_from_wire(body: Any) -> Exception:
    """The error that `error_to_wire` wrote, to be raised."""
    if not isinstance(body, dict):
        return SandboxError("an answer that names no error")
    message = str(body.get("message"))
    if body.get("type") == "OSError" and isinstance(body.get("errno"), int):
        return OSError(body["errno"], message, body.get("path"))
    return _ERRORS.get(str(body.get("type")), SandboxError)(message)


def checked(body: dict[str, Any]) -> dict[str, Any]:
    """The answer, unless it is a failure, which is raised as what it was there."""
    if "failed" in body:
        raise error_from_wire(body["failed"])
    return body
