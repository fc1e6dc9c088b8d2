"""`call: a2a`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import ENDPOINT, RESOURCE, function, object_of

__all__ = ["METHODS", "SPEC", "STREAMING"]

METHODS: Final = (
    "message/send",
    "message/stream",
    "tasks/get",
    "tasks/list",
    "tasks/cancel",
    "tasks/resubscribe",
    "tasks/pushNotificationConfig/set",
    "tasks/pushNotificationConfig/get",
    "tasks/pushNotificationConfig/list",
    "tasks/pushNotificationConfig/delete",
    "agent/getAuthenticatedExtendedCard",
)
"""The methods that the specification names."""

STREAMING: Final = frozenset({"message/stream", "tasks/resubscribe"})
"""Those that answer with a stream."""

SPEC: Final = function(
    "a2a",
    "Calls an agent by the A2A protocol, over JSON-RPC.",
    object_of(
        ["method"],
        {
            "method": {"type": "string", "enum": list(METHODS)},
            "agentCard": RESOURCE,
            "server": ENDPOINT,
            "parameters": {"type": "object", "minProperties": 1, "description": "the method's parameters"},
        },
        anyOf=[{"required": ["agentCard"]}, {"required": ["server"]}],
    ),
    {"description": "the result; an array of results for message/stream and tasks/resubscribe"},
)
