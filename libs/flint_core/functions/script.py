"""`run: script`."""

from __future__ import annotations

from typing import Final

from flint_core.functions.processes import ARGUMENT_LIST, OUTPUTS, process
from flint_core.functions.schemas import RESOURCE, function

__all__ = ["LANGUAGES", "SPEC"]

LANGUAGES: Final = ("python", "js")
"""The languages of the specification, by the names that it gives them."""

SPEC: Final = function(
    "script",
    "Runs a script in a process of its own on the worker. The script is text, never a template: values reach it "
    "through arguments, environment and stdin.",
    process(
        ["language"],
        {
            "language": {"type": "string", "enum": list(LANGUAGES)},
            "code": {"type": "string", "minLength": 1, "description": "the script; exactly one of code and source"},
            "source": RESOURCE,
            "arguments": {
                "anyOf": [
                    ARGUMENT_LIST,
                    {
                        "type": "object",
                        "propertyNames": {"pattern": r"^[A-Za-z_$][A-Za-z0-9_$]{0,127}$"},
                        "maxProperties": 1000,
                    },
                ],
                "description": "a list: the words of argv; a map: global variables of the script, any JSON",
            },
            "packages": {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 200},
                "maxItems": 50,
                "description": "packages the script imports, pinned (name==version); only where the worker allows them",
            },
        },
        oneOf=[{"required": ["code"]}, {"required": ["source"]}],
    ),
    OUTPUTS,
)
