"""`run: container`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.processes import ARGUMENT_LIST, OUTPUTS, process
from flint_core.functions.schemas import DURATION, function, object_of

__all__ = ["SPEC"]

SPEC: Final = function(
    "container",
    "Runs a container with the worker's engine (docker or podman). A repeat of the step finds the container of the "
    "first try by its name instead of starting a second.",
    process(
        ["image"],
        {
            "image": {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}$"},
            "name": {
                "type": "string",
                "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
                "description": "the container's name; without one it is made of the step's idempotency key",
            },
            "command": {
                "anyOf": [
                    {"type": "string", "minLength": 1, "maxLength": 100_000},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1000},
                ],
                "description": "a string runs in the image's /bin/sh with the arguments as $1, $2, …; a list runs "
                "without a shell",
            },
            "arguments": {**ARGUMENT_LIST, "description": "argv of the command, or of the image's own"},
            "ports": {
                "type": "object",
                "description": "port of the worker's machine to port of the container",
                "propertyNames": {"pattern": r"^[0-9]{1,5}$"},
                "additionalProperties": {"type": ["integer", "string"]},
                "maxProperties": 100,
            },
            "volumes": {
                "type": "object",
                "description": "path on the worker's machine to path in the container; only where the worker allows it",
                "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 4096},
                "maxProperties": 100,
            },
            "pullPolicy": {"type": "string", "enum": ["ifNotPresent", "always", "never"]},
            "lifetime": object_of(
                ["cleanup"],
                {
                    "cleanup": {
                        "type": "string",
                        "enum": ["always", "never", "eventually"],
                        "description": "always: removed as soon as it ended (default); eventually: after `after`",
                    },
                    "after": DURATION,
                },
            ),
        },
    ),
    OUTPUTS,
)
