"""An OpenAI-compatible server in front of a policy, so that an agent in any framework or language
is the rollout. Needs the extra `remote` (aiohttp) to serve. See docs/agents.md.
"""

from agentrl.proxy.sessions import Ended, NoSession, Sessions, Settings

__all__ = ["Ended", "NoSession", "Sessions", "Settings"]
