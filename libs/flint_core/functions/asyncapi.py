"""`call: asyncapi`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.schemas import AUTHENTICATION, DURATION, RESOURCE, SCALAR, Schema, function, object_of

__all__ = ["MESSAGE_EXPRESSION", "PER_MESSAGE", "PROTOCOLS", "REFUSED_PROTOCOLS", "SPEC"]

PROTOCOLS: Final = ("amqp", "http", "mqtt", "mqtt5", "nats")
"""The protocols that are spoken; `https`, `amqps` and `mqtts` are these with TLS."""

REFUSED_PROTOCOLS: Final = {
    "amqp1": "AMQP 1.0 is another protocol than AMQP 0-9-1; use amqp where the broker speaks both",
    "anypointmq": "it has no client library in Python; its brokers offer HTTP",
    "googlepubsub": "it has no broker to test with; its REST API is a `call: http`",
    "ibmmq": "its client library is not free; its brokers offer MQTT, AMQP and HTTP",
    "jms": "it is an interface of Java, not a protocol; use amqp or mqtt where the broker speaks them",
    "kafka": "no broker that tests could install; use a REST proxy with `call: http`",
    "mercure": "its updates are posted over HTTP: use `call: http`",
    "pulsar": "no broker that tests could install; use its REST API with `call: http`",
    "redis": "it does not acknowledge what is published; use nats, mqtt or amqp",
    "sns": "it is an API of AWS: use `call: http` through a gateway",
    "solace": "its client library is not free; its brokers offer MQTT and AMQP",
    "sqs": "it is an API of AWS: use `call: http` through a gateway",
    "stomp": "its client libraries are not well kept; use amqp or mqtt where the broker speaks them",
    "ws": "a message over a bare WebSocket is not acknowledged; use http, nats, mqtt or amqp",
}
"""The specification's other protocols, each with the reason and what to do instead."""

PER_MESSAGE: Final = ("filter", "while", "until")
"""Expressions that are evaluated for every message that comes, where it comes."""

MESSAGE_EXPRESSION: Final[Schema] = object_of(
    ["expression", "variables"],
    {
        "expression": {"type": "string", "minLength": 1, "maxLength": 100_000},
        "variables": {"type": "object"},
    },
    description="an expression about the message, written as `${ … }`",
)

SPEC: Final = function(
    "asyncapi",
    "Publishes a message to a channel of an AsyncAPI document, or consumes messages from one.",
    object_of(
        ["document"],
        {
            "document": RESOURCE,
            "channel": {"type": "string", "minLength": 1, "maxLength": 1024, "description": "AsyncAPI 2: the channel"},
            "operation": {"type": "string", "minLength": 1, "maxLength": 1024, "description": "the operation's name"},
            "server": object_of(
                ["name"],
                {
                    "name": {"type": "string", "minLength": 1, "maxLength": 256},
                    "variables": {"type": "object", "additionalProperties": SCALAR, "maxProperties": 100},
                },
            ),
            "protocol": {"type": "string", "enum": sorted([*PROTOCOLS, *REFUSED_PROTOCOLS])},
            "message": object_of(
                [],
                {
                    "payload": {"description": "a string is sent as it is, anything else as JSON"},
                    "headers": {"type": "object", "additionalProperties": SCALAR, "maxProperties": 100},
                },
            ),
            "subscription": object_of(
                ["consume"],
                {
                    "filter": MESSAGE_EXPRESSION,
                    "consume": object_of(
                        [],
                        {
                            "amount": {"type": "integer", "minimum": 1},
                            "for": DURATION,
                            "while": MESSAGE_EXPRESSION,
                            "until": MESSAGE_EXPRESSION,
                        },
                        anyOf=[{"required": [way]} for way in ("amount", "while", "until", "for")],
                    ),
                },
            ),
            "authentication": AUTHENTICATION,
        },
        allOf=[
            {"oneOf": [{"required": ["channel"]}, {"required": ["operation"]}]},
            {"oneOf": [{"required": ["message"]}, {"required": ["subscription"]}]},
        ],
    ),
    {
        "description": "publishing: what the broker acknowledged; consuming: an array of messages, each with payload, "
        "headers and correlationId"
    },
)
