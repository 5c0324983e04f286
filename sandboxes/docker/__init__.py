"""The Docker backend: sessions in hardened containers, a few milliseconds for a fresh one.

The daemon makes and removes containers, nothing else: one attached stream a container carries all
sessions, served inside by the embedded backend.
"""

from sandboxes.docker.backend import IMAGE, docker_sandbox

__all__ = ["IMAGE", "docker_sandbox"]
