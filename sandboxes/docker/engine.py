"""The Docker daemon: the SDK for containers' lives, and a connection of our own to attach to one.

Every failure is a SandboxError that says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from agentrl.errors import ConfigError, SandboxError, missing_extra
from sandboxes.docker.link import Link

_ANSWER_S = 60
_GONE_TRIES = 500  # 10 s at least


@contextlib.contextmanager
def explained(doing: str, **cures: str) -> Iterator[None]:
    """Turn what the SDK raises into a SandboxError. `cures` are by a word of its message."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException, OSError) as error:
        said = str(error.explanation or error) if isinstance(error, APIError) else str(error)
        for word, cure in cures.items():
            if word.replace("_", " ") in said:
                raise SandboxError(f"{cure} ({said})") from error
        raise SandboxError(f"{doing} failed: {said}") from error


class Engine:
    """A Docker daemon that answers. Its methods are called from the event loop."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.api = client.api

    @classmethod
    async def connect(cls) -> Engine:
        """The daemon that DOCKER_HOST names, else this machine's.

        Raises MissingExtraError without the SDK, SandboxError if no daemon answers.
        """
        try:
            import docker
        except ImportError:
            raise missing_extra("docker", "docker") from None
        host = os.environ.get("DOCKER_HOST") or "the default socket"

        def open_client() -> Any:
            try:
                client = docker.from_env(timeout=_ANSWER_S)
                client.ping()
            except (docker.errors.DockerException, OSError) as error:
                raise SandboxError(
                    f"no Docker daemon answers at {host}: start one (as root: `make docker`), or "
                    f"name one in DOCKER_HOST ({error})"
                ) from error
            return client

        return cls(await asyncio.to_thread(open_client))

    async def ask(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A call of the SDK, beside the event loop."""
        return await asyncio.to_thread(functools.partial(call, *args, **options))

    async def create(self, config: Mapping[str, Any], name: str) -> str:
        """A new container, not started; its id. Raises SandboxError."""
        image, runtime = config["Image"], config["HostConfig"].get("Runtime")
        with explained(
            "making a container",
            No_such_image=f"there is no image {image!r}: `agentrl sandbox build --from-host` makes "
            "one from this machine, without a registry",
            runtime=f"the daemon cannot use the runtime {runtime!r}: add it to its configuration",
        ):
            made = await self.ask(self.api.create_container_from_config, config, name)
            return str(made["Id"])

    async def start(self, container: str, image: str) -> None:
        """Start a container. Raises SandboxError."""
        with explained("starting a container", python3=f"the image {image!r} has no python3"):
            await self.ask(self.api.start, container)

    async def remove(self, container: str) -> None:
        """Kill and remove a container, and wait until it is gone. It may be gone already."""
        from docker.errors import APIError, NotFound

        def gone() -> bool:
            try:
                self.api.remove_container(container, force=True, v=True)
            except NotFound:
                return True
            except APIError as error:
                if error.status_code != 409:  # "removal is already in progress"
                    raise
            return False

        with explained("removing a container"):
            for _ in range(_GONE_TRIES):
                if await self.ask(gone):
                    return
                await asyncio.sleep(0.02)
        raise SandboxError(f"the Docker daemon does not remove the container {container}")

    async def out_of_memory(self, container: str, since: float) -> bool:
        """Whether the kernel killed in this container for want of memory; `since`: seconds of the
        clock, before its start."""
        now = time.time()
        events = functools.partial(
            self.api.events,
            since=int(since) - 1,
            until=int(now) + 1,
            filters={"container": container, "event": "oom"},
            decode=True,
        )
        with explained("asking for a container's events"):
            return bool(await self.ask(lambda: list(events())))

    async def info(self) -> dict[str, Any]:
        """What the daemon says of itself and its machine."""
        with explained("asking the Docker daemon"):
            return dict(await self.ask(self.api.info))

    async def owned(self, label: str) -> list[dict[str, Any]]:
        """All containers with a label, running or not."""
        with explained("listing containers"):
            found = await self.ask(self.api.containers, all=True, filters={"label": label})
            return list(found)

    async def load(self, archive: str, tag: str, changes: list[str]) -> int:
        """Make an image from an archive of files; its size in bytes. Raises SandboxError."""
        name, _, version = tag.rpartition(":") if ":" in tag else (tag, "", "latest")
        with explained("importing the image"):
            said = await self.ask(
                self.api.import_image_from_file,
                archive,
                repository=name,
                tag=version,
                changes=changes,
            )
            if '"error"' in said:
                raise SandboxError(f"the Docker daemon refused the image: {said[-500:]}")
            return int((await self.ask(self.api.inspect_image, tag))["Size"])

    async def attach(self, container: str) -> Link:
        """The stream of a container that has not started yet. Raises SandboxError."""
        link = await self._dial()
        version = self.api.api_version
        query = "stream=1&stdin=1&stdout=1&stderr=1"
        try:
            await link.attach(
                f"POST /v{version}/containers/{container}/attach?{query} HTTP/1.1\r\n"
                "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                "Content-Length: 0\r\n\r\n".encode()
            )
        except BaseException:
            link.end("it could not be attached to")
            raise
        return link

    async def _dial(self) -> Link:
        loop = asyncio.get_running_loop()
        url = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        parts = urlsplit(url)
        try:
            if parts.scheme == "unix":
                _, link = await loop.create_unix_connection(Link, parts.path or parts.netloc)
            elif parts.scheme in ("tcp", "http", "https"):
                secure = _tls(self.api)
                port = parts.port or (2376 if secure else 2375)
                _, link = await loop.create_connection(Link, parts.hostname or "", port, ssl=secure)
            else:
                raise ConfigError(
                    f"DOCKER_HOST={url!r} is neither unix:// nor tcp://; forward the daemon's "
                    "socket, e.g. `ssh -nNL /tmp/docker.sock:/var/run/docker.sock HOST`"
                )
        except OSError as error:
            raise SandboxError(f"no connection to the Docker daemon at {url}: {error}") from error
        return link

    async def close(self) -> None:
        """Close the SDK's connections."""
        await self.ask(self.client.close)


def _tls(api: Any) -> ssl.SSLContext | None:
    """What the SDK found in DOCKER_TLS_VERIFY and DOCKER_CERT_PATH."""
    if not str(api.base_url).startswith("https"):
        return None
    context = ssl.create_default_context(cafile=api.verify if api.verify is not True else None)
    if not api.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if api.cert:
        context.load_cert_chain(*api.cert)
    return context
