"""Parts of the language's JSON Schema: arguments of functions, policies, events. See `json_schema.py`."""

from __future__ import annotations

from typing import Any, Final

from flint_core.definition.emitting import ATTRIBUTE
from flint_core.definition.listening import FOREACH_MEMBERS, MODES, READ
from flint_core.definition.policies import BACKOFFS, ERROR_MEMBERS, FILTER_MEMBERS, RETRY_MEMBERS
from flint_core.definition.running import RETURNS, WORKFLOW_MEMBERS
from flint_core.functions import FUNCTIONS, NOT_CALLED, PROCESSES
from flint_core.functions.asyncapi import MESSAGE_EXPRESSION
from flint_core.functions.schemas import AUTHENTICATION, ENDPOINT, FunctionSpec, Schema, function, object_of

__all__ = [
    "DURATION",
    "NAMED",
    "authentications",
    "event_parts",
    "function_schema",
    "functions_of_calls",
    "policies",
    "ref",
    "run_schema",
]

EXPRESSION: Final[Schema] = {"type": "string", "pattern": r"\$\{[\s\S]*\}"}
_UNIT: Final[Schema] = {"anyOf": [{"type": "number", "minimum": 0}, EXPRESSION]}
DURATION: Final[Schema] = {
    "description": "an object such as {seconds: 30}, ISO 8601 such as PT30S, or an expression",
    "if": {"type": "string"},
    "then": {"pattern": r"^P(?=[0-9T])|\$\{"},
    "else": object_of(
        [], dict.fromkeys(("days", "hours", "minutes", "seconds", "milliseconds"), _UNIT), minProperties=1
    ),
}
NAMED: Final[Schema] = {"if": {"type": "string"}, "then": {"minLength": 1, "description": "a name of `use`"}}
"""A name where a definition may stand; `else` is to be added."""

_TEXT: Final[Schema] = {"type": "string"}


def ref(name: str) -> Schema:
    """A reference to one of `$defs`."""
    return {"$ref": f"#/$defs/{name}"}


def members_of(what: str, known: Any, members: dict[str, Schema], required: list[str], **more: Any) -> Schema:
    """An object with exactly the members that the compiler knows. Raises ValueError for a difference."""
    different = sorted(set(known) ^ members.keys())
    if different:
        raise ValueError(f"{what}: the compiler and the JSON Schema differ in {', '.join(different)}")
    return object_of(required, {name: members[name] for name in sorted(members)}, **more)


# --- functions


def function_schema(spec: FunctionSpec) -> Schema:
    """What `with` is for a function: its own schema, with named policies, and expressions wherever values stand."""
    schema: Schema = function(spec.name, spec.description, _written(spec.resolved), {}).schema
    return {"description": spec.description, **schema}


def _written(schema: Any) -> Any:
    """A schema of resolved arguments as they are written: policies by name, conditions as text."""
    if isinstance(schema, list):
        return [_written(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("properties") == AUTHENTICATION["properties"]:
        return ref("authentication")
    if schema.get("anyOf") == ENDPOINT["anyOf"]:
        return ref("endpoint")
    if schema == MESSAGE_EXPRESSION:
        return {"type": "string", "minLength": 1, "description": "an expression about the message"}
    return {name: part if name in ("enum", "required", "const") else _written(part) for name, part in schema.items()}


def functions_of_calls() -> Schema:
    """The value of `call`."""
    own = sorted(FUNCTIONS.keys() - NOT_CALLED)
    return {
        "description": "a function of Flint's own, of use.functions, of a catalog, or of your function workers",
        "anyOf": [{"enum": own}, {"type": "string", "minLength": 1}],
    }


def run_schema() -> Schema:
    """The value of `run`."""
    kinds = sorted({*PROCESSES, "workflow"})
    workflow = members_of(
        "'workflow'",
        WORKFLOW_MEMBERS,
        {"namespace": _TEXT, "name": {"type": "string", "minLength": 1}, "version": _TEXT, "input": {}},
        ["name"],
    )
    members: dict[str, Schema] = {"workflow": workflow}
    for name in sorted(PROCESSES):
        schema = function_schema(FUNCTIONS[name])
        parts = {key: part for key, part in schema["properties"].items() if key not in ("return", "await")}
        members[name] = {**schema, "properties": parts}
    members["await"] = {"type": "boolean", "description": "false: it is started, and nobody waits for its end"}
    members["return"] = {"enum": list(RETURNS), "description": "what the task gives"}
    return object_of([], members, anyOf=[{"required": [kind]} for kind in kinds], allOf=[_one_of(kinds)])


def _one_of(names: list[str]) -> Schema:
    return {"oneOf": [{"required": [name]} for name in names]}


# --- authentication


def authentications() -> dict[str, Schema]:
    """Policies, places that take one, and endpoints."""
    policy = {**function("authentication", "", AUTHENTICATION, {}).schema, "description": "one authentication policy"}
    named = object_of(["use"], {"use": {"type": "string", "minLength": 1, "description": "of use.authentications"}})
    return {
        "policy": policy,
        "authentication": {
            "if": {"type": "string"},
            "then": {"minLength": 1, "description": "name of a policy of use.authentications"},
            "else": {"if": {"type": "object", "required": ["use"]}, "then": named, "else": ref("policy")},
        },
        "endpoint": {
            "description": ENDPOINT["description"],
            "if": {"type": "string"},
            "then": {"minLength": 1, "maxLength": 8192},
            "else": object_of(
                ["uri"],
                {
                    "uri": {"type": "string", "minLength": 1, "maxLength": 8192},
                    "authentication": ref("authentication"),
                    "variables": {"type": ["object", "string"]},
                },
            ),
        },
    }


# --- errors and retries


def policies() -> dict[str, Schema]:
    """Errors, what catches them, and how often something is tried again."""
    status: Schema = {"anyOf": [{"type": "integer", "minimum": 100, "maximum": 599}, EXPRESSION]}
    error = {"type": _TEXT, "status": status, "title": _TEXT, "detail": _TEXT, "instance": _TEXT}
    fixed = {**dict.fromkeys(FILTER_MEMBERS, _TEXT), "status": {"type": "integer", "minimum": 100, "maximum": 599}}
    options: dict[str, Schema] = {
        "increment": ref("duration"),
        "maxDelay": ref("duration"),
        "factor": {"type": "number", "minimum": 1, "maximum": 100},
        "multiplier": {"type": "number", "minimum": 1, "maximum": 100},
    }
    backoffs = {
        name: {**object_of([], {key: options[key] for key in sorted(known)}), "type": ["object", "null"]}
        for name, known in BACKOFFS.items()
    }
    attempt = object_of(
        [], {"count": {"type": "integer", "minimum": 1, "maximum": 10_000}, "duration": ref("duration")}
    )
    retry = members_of(
        "a retry policy",
        RETRY_MEMBERS,
        {
            "when": ref("expression"),
            "exceptWhen": ref("expression"),
            "delay": ref("duration"),
            "backoff": object_of([], backoffs, minProperties=1, maxProperties=1),
            "limit": object_of([], {"attempt": attempt, "duration": ref("duration")}),
            "jitter": object_of(["from", "to"], {"from": ref("duration"), "to": ref("duration")}),
        },
        [],
    )
    catch = object_of(
        [],
        {
            "errors": object_of([], {"with": members_of("a filter", FILTER_MEMBERS, fixed, [])}),
            "as": {"type": "string", "minLength": 1, "description": "name of the variable that holds the error"},
            "when": ref("expression"),
            "exceptWhen": ref("expression"),
            "retry": {**NAMED, "else": ref("retry")},
            "do": ref("tasks"),
        },
    )
    return {
        "error": members_of("an error", ERROR_MEMBERS, error, ["type", "status"]),
        "retry": retry,
        "catch": catch,
    }


# --- events


def event_parts() -> dict[str, Schema]:
    """What is emitted, and what is listened to."""
    emitted = function("emit", "", FUNCTIONS["emit"].resolved["properties"]["event"], {}).schema
    correlation = object_of(["from"], {"from": ref("expression"), "expect": {}})
    filters: Schema = {"type": "array", "items": ref("filter")}
    modes: dict[str, Schema] = {"one": ref("filter"), "any": filters, "all": {**filters, "minItems": 1}}
    ends = members_of("'until'", MODES, modes, [], minProperties=1, maxProperties=1)
    until: Schema = {"if": {"type": ["string", "boolean"]}, "else": ends}
    to = object_of([], {**modes, "until": until}, **_one_of(list(MODES)))
    text: Schema = {"type": "string", "minLength": 1}
    stations = {"output": ref("output"), "export": ref("export")}
    return {
        "event": {**emitted, "propertyNames": {"pattern": f"^(?:{ATTRIBUTE.pattern})$"}},
        "filter": object_of(
            ["with"],
            {
                "with": {
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": {"pattern": f"^(?:{ATTRIBUTE.pattern})$"},
                    "description": "attributes, and what they are to be",
                },
                "correlate": {"type": "object", "additionalProperties": correlation},
            },
        ),
        "listen": object_of(["to"], {"to": to, "read": {"enum": list(READ)}}),
        "foreach": members_of(
            "'foreach'", FOREACH_MEMBERS, {"item": text, "at": text, "do": ref("tasks"), **stations}, []
        ),
    }
