"""Every error agentrl raises on purpose. Each message names the cause and the cure.

AgentRLError
+-- ConfigError            a name, option or combination that cannot be (also a ValueError)
+-- DataError              a file or record that cannot be read; names file and line
+-- MissingExtraError      an optional package is absent; names the extra (also an ImportError)
+-- ChatError              a tokenizer or template that cannot do what is asked
+-- TreeError              an operation that would break a tree's rules
+-- StoreError             trees on disk: schema, damage, lock
|   +-- StoreFullError     the disk is full; what was written before is safe
+-- BudgetError            what may be spent on endpoints is spent; stops a run, is never retried
+-- InfraError             our fault, never the policy's: retried, then excluded, never a reward
    +-- SandboxError       the sandbox failed, not the code in it
    |   +-- SessionDead    the session has ended; open another
    |   |   +-- EndedByCode  by what ran in it: the policy's doing, not ours
    |   +-- IsolationError isolation is not possible here; names the override
    +-- EngineError        the policy's engine failed
    |   +-- ContextFullError  its context is full: truncation, where it answers a conversation
    +-- AgentError         an agent outside of agentrl failed, or never asked the policy
    +-- DeadlineError      a rollout took longer than its deadline
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AgentRLWarning(UserWarning):
    """Something a user should know that stops nothing; the command line prints it as one line."""


class AgentRLError(Exception):
    """Base of all errors that agentrl raises on purpose."""


class ConfigError(AgentRLError, ValueError):
    """A name, option or combination that cannot be."""


class DataError(AgentRLError, ValueError):
    """A file or record that cannot be read; the message names the file and the line."""


class MissingExtraError(AgentRLError, ImportError):
    """An optional package is absent; the message names the extra that brings it."""


class ChatError(AgentRLError, ValueError):
    """A tokenizer or chat template that cannot do what is asked."""


class TreeError(AgentRLError, ValueError):
    """An operation that would break a tree's rules."""


class StoreError(AgentRLError):
    """Trees on disk: wrong schema, damage, or another writer."""


class StoreFullError(StoreError):
    """The disk is full. Records written before are safe."""


class BudgetError(AgentRLError):
    """What may be spent on endpoints is spent. Work done before is kept; raise the limit."""


class InfraError(AgentRLError):
    """Our fault, never the policy's. Retried, then excluded and counted; never a reward."""


class SandboxError(InfraError):
    """The sandbox failed, not the code in it."""


class SessionDead(SandboxError):
    """The session has ended (killed, crashed, tampered). Open another."""


class EndedByCode(SessionDead):
    """What ran in the session ended it between two calls, or by a call that was over by then: the
    one InfraError that is the policy's doing. Open another session; never exclude the sample."""


class IsolationError(SandboxError):
    """The isolation asked for is not possible on this machine; the message names the override."""


class SnapshotRefused(AgentRLError):
    """A session's state cannot be put into another session; the message says why. The session goes
    on, and its calls can be played again in a new one."""


class EngineError(InfraError):
    """The policy's engine failed."""


class ContextFullError(EngineError):
    """The engine says that the conversation does not fit into the model's context."""


class AgentError(InfraError):
    """An agent outside of agentrl failed, or never asked the policy."""


class DeadlineError(InfraError):
    """A rollout took longer than its deadline."""


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `known`: suggests the nearest, lists the rest."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {what} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for an optional package that is not installed."""
    return MissingExtraError(
        f"this needs the package {package!r}, which is not installed. "
        f"Install it with: pip install 'agentrl[{extra}]'"
    )
