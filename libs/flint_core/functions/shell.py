"""`run: shell`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.processes import ARGUMENT_LIST, OUTPUTS, process
from flint_core.functions.schemas import SCALAR, function

__all__ = ["SPEC"]

SPEC: Final = function(
    "shell",
    "Runs a command with /bin/sh on the worker. The command is text, never a template: values reach it through "
    "arguments, environment and stdin.",
    process(
        ["command"],
        {
            "command": {"type": "string", "minLength": 1, "maxLength": 100_000},
            "arguments": {
                "anyOf": [ARGUMENT_LIST, {"type": "object", "additionalProperties": SCALAR, "maxProperties": 1000}],
                "description": "a list: $1, $2, … of the command; a map: words at the command's end, «key=value», "
                "or «key» where the value is null",
            },
        },
    ),
    OUTPUTS,
)
