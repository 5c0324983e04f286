"""Sandboxes that run elsewhere: what a sandbox can do, as messages.

`frames` are messages on a stream of bytes, `codec` puts results, limits and errors into them,
`service` serves a sandbox, `client` is a sandbox that is served elsewhere. How the messages travel
is the backends' matter: a container's attached stream (`sandboxes.docker`) or HTTP
(`sandboxes.remote`).
"""
