"""Sandboxes on other machines, over HTTP.

`server` answers requests about a sandbox, `serve` is the process that does so; `fleet` spreads
sessions over servers, each of which is a `peer`; `access` has tokens and addresses, `caps` what a
client may ask for, `bodies` messages as bodies of requests and answers.
"""

from agentrl.errors import missing_extra

try:
    import aiohttp as _  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_extra("aiohttp", "remote") from error

from sandboxes.remote.fleet import RemoteFleet
from sandboxes.remote.sandbox import RemoteSandbox

__all__ = ["RemoteFleet", "RemoteSandbox"]
