"""Models behind OpenAI-compatible endpoints: teachers, judges, and policies that are not trained.

Torch-free. Needs the extra `remote` (aiohttp) once a request is sent. See docs/endpoints.md.
"""

from agentrl.engines.endpoint.budget import Budget, Cost, Prices, process_budget
from agentrl.engines.endpoint.cache import AnswerCache
from agentrl.engines.endpoint.client import KEY_ENV, Endpoint
from agentrl.engines.endpoint.policy import EndpointPolicy
from agentrl.engines.endpoint.teacher import Judge, Judgement, Teacher
from agentrl.engines.endpoint.wire import Reply

__all__ = [
    "KEY_ENV",
    "AnswerCache",
    "Budget",
    "Cost",
    "Endpoint",
    "EndpointPolicy",
    "Judge",
    "Judgement",
    "Prices",
    "Reply",
    "Teacher",
    "process_budget",
]
