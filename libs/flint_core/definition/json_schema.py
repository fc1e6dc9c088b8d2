"""The JSON Schema (2020-12) of the language, for editors and generators.

Made from what the compiler itself goes by: its tables of members and the schemas of the functions. A member that the
compiler knows and this module does not is an error here, so the two cannot drift apart. The schema tells shape alone:
references (`then`, names of `use`, `$steps`) and expressions are the compiler's to check.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import orjson

from flint_core.calendars import WEEKDAYS
from flint_core.definition import unsupported
from flint_core.definition.extensions import EXTENDED
from flint_core.definition.findings import DefinitionLimits
from flint_core.definition.hints import DOCUMENT_HINTS, TASK_HINTS
from flint_core.definition.json_schema_parts import (
    DURATION,
    NAMED,
    authentications,
    event_parts,
    function_schema,
    functions_of_calls,
    policies,
    ref,
    run_schema,
)
from flint_core.definition.tasks import COMMON_MEMBERS, TASK_MEMBERS
from flint_core.definition.versions import VERSION
from flint_core.definition.workflow import HEAD_MEMBERS, TOP_MEMBERS, USE_MEMBERS
from flint_core.functions import FUNCTIONS, NOT_CALLED
from flint_core.functions.schemas import Schema, object_of
from flint_core.schedule_policy import CATCH_UPS, OVERLAPS
from flint_core.windows import DAYS

__all__ = ["SCHEMA_ID", "schema_text", "workflow_schema"]

SCHEMA_ID: Final = "https://flint.dev/schemas/flint-workflow.schema.json"
_NAME: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"}


def workflow_schema() -> Schema:
    """The schema of a whole definition. Raises ValueError when the compiler knows a member that is not described."""
    top = TOP_MEMBERS - unsupported.TOP_LEVEL.keys()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Flint workflow",
        "description": "A definition in the Open Workflow Specification, DSL 1.0.0 to 1.0.3, as Flint runs it.",
        **described(
            "a workflow",
            top,
            {
                "document": ref("document"),
                "input": ref("input"),
                "use": ref("use"),
                "do": {**ref("tasks"), "description": "what is done, one task after the other"},
                "timeout": {**ref("timeout"), "description": "limits the whole run"},
                "output": ref("output"),
                "schedule": ref("schedule"),
                "evaluate": object_of([], {"language": {"const": "jq"}, "mode": {"const": "strict"}}),
            },
            ["document", "do"],
        ),
        "$defs": dict(sorted(_definitions().items())),
    }


def schema_text() -> bytes:
    """The schema as JSON, always with the same bytes."""
    return orjson.dumps(
        workflow_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    )


def described(what: str, known: Collection[str], members: Mapping[str, Schema], required: list[str]) -> Schema:
    """The schema of an object with the members that the compiler knows. Raises ValueError when one is not described."""
    missing = sorted(set(known) - members.keys())
    if missing:
        raise ValueError(f"{what} has members without a schema: {', '.join(missing)}")
    return object_of(required, {name: members[name] for name in sorted(known)})


def _definitions() -> dict[str, Schema]:
    limits = DefinitionLimits()
    return {
        "document": described(
            "'document'",
            HEAD_MEMBERS,
            {
                "dsl": {"type": "string", "pattern": r"^1\.0\.[0-3]$", "description": "version of the DSL"},
                "namespace": {**_NAME, "description": "where the workflow belongs"},
                "name": {**_NAME, "description": "the workflow's name"},
                "version": {
                    "type": "string",
                    "pattern": f"^{VERSION.pattern}$",
                    "maxLength": limits.version,
                    "description": "semantic version; what was applied under a version never changes",
                },
                "title": {"type": "string", "maxLength": limits.title},
                "summary": {"type": "string", "maxLength": limits.summary},
                "tags": {"type": "object"},
                "metadata": _metadata(DOCUMENT_HINTS),
            },
            ["dsl", "namespace", "name", "version"],
        ),
        "use": _use(),
        "tasks": {
            "description": "a list of named tasks",
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": ref("task"),
            },
        },
        "task": _task(),
        **{f"task-{kind}": _kind(kind) for kind in TASK_MEMBERS},
        **{f"arguments-{name}": function_schema(spec) for name, spec in FUNCTIONS.items() if name not in NOT_CALLED},
        "input": object_of([], {"schema": ref("schema"), "from": ref("transformation")}),
        "output": object_of([], {"schema": ref("schema"), "as": ref("transformation")}),
        "export": object_of([], {"schema": ref("schema"), "as": ref("transformation")}),
        "schema": object_of(
            [],
            {
                "format": {"type": "string", "pattern": "^json(?::.*)?$"},
                "document": {"type": ["object", "boolean"], "description": "JSON Schema"},
                "resource": ref("resource"),
            },
            anyOf=[{"required": ["document"]}, {"required": ["resource"]}],
        ),
        "resource": object_of(["endpoint"], {"name": {"type": "string"}, "endpoint": ref("endpoint")}),
        "expression": {"type": "string", "minLength": 1, "description": "jq, with or without ${ }"},
        "transformation": {
            "type": ["string", "object"],
            "description": "a jq expression, or an object with ${ } in its values",
        },
        "duration": DURATION,
        "timeout": {
            "if": {"type": "string"},
            "then": {"minLength": 1, "description": "name of a timeout of use.timeouts"},
            "else": object_of(["after"], {"after": ref("duration")}),
        },
        "then": {
            "description": "what follows: continue, exit, end, or the name of a task of the same list",
            "anyOf": [{"enum": ["continue", "exit", "end"]}, {"type": "string", "minLength": 1}],
        },
        "schedule": object_of(
            [],
            {
                "every": ref("duration"),
                "after": ref("duration"),
                "cron": {"type": "string", "minLength": 1},
                "on": object_of(
                    [],
                    {
                        "one": ref("filter"),
                        "any": {"type": "array", "items": ref("filter")},
                        "all": {"type": "array", "items": ref("filter"), "minItems": 1},
                    },
                    minProperties=1,
                    maxProperties=1,
                ),
            },
            minProperties=1,
            maxProperties=1,
        ),
        "exclusion": object_of(
            [],
            {
                "dates": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "weekdays": {"type": "array", "items": {"enum": list(WEEKDAYS)}, "minItems": 1},
                "from": {"type": "string", "description": "local time of day, such as 22:00"},
                "to": {"type": "string", "description": "local time of day, such as 06:00"},
                "holidays": object_of(["country"], {"country": {"type": "string"}, "subdivision": {"type": "string"}}),
            },
            minProperties=1,
        ),
        **policies(),
        **authentications(),
        **event_parts(),
    }


def _use() -> Schema:
    extension = object_of(
        ["extend"],
        {
            "extend": {"enum": list(EXTENDED), "description": "the kind of task that it is put around"},
            "when": ref("expression"),
            "before": ref("tasks"),
            "after": ref("tasks"),
        },
        anyOf=[{"required": ["before"]}, {"required": ["after"]}],
    )
    named: Schema = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": extension}
    catalog = object_of(["endpoint"], {"endpoint": ref("endpoint")})
    return described(
        "'use'",
        USE_MEMBERS,
        {
            "authentications": {"type": "object", "additionalProperties": ref("policy")},
            "catalogs": {"type": "object", "additionalProperties": catalog},
            "errors": {"type": "object", "additionalProperties": ref("error")},
            "extensions": {"type": "array", "items": named},
            "functions": {"type": "object", "additionalProperties": ref("task")},
            "retries": {"type": "object", "additionalProperties": ref("retry")},
            "secrets": {"type": "array", "items": {"type": "string"}, "description": "secrets that it may read"},
            "timeouts": {
                "type": "object",
                "additionalProperties": object_of(["after"], {"after": ref("duration")}),
            },
        },
        [],
    )


_LABEL: Final = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_HINTS: Final[dict[str, Schema]] = {
    "idempotencyKey": {"type": "string", "pattern": r"\$\{", "description": "key of the call, with an expression"},
    "cache": object_of(["key", "ttl"], {"key": {"type": "string", "pattern": r"\$\{"}, "ttl": ref("duration")}),
    "parallel": {"type": "integer", "minimum": 1, "description": "iterations at once"},
    "compensate": {
        "description": "what undoes this task when the run fails: a function of use.functions, or a call",
        "if": {"type": "string"},
        "then": {"minLength": 1},
        "else": object_of(["call"], {"call": {"type": "string"}, "with": {"type": "object"}}),
    },
    "timezone": {"type": "string", "minLength": 1, "description": "IANA name, such as Europe/Berlin"},
    "level": {
        "description": "how urgent it is, 0 (most) to 9, or the name of a level",
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 9},
            {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,62}$"},
        ],
    },
    "pool": {"type": "string", "pattern": _LABEL, "description": "the pool of workers that executes it"},
    "region": {"type": "string", "pattern": _LABEL, "description": "the region in which it is executed"},
    "fairness": {"type": "string", "description": "key: runs with different ones take turns"},
    "sticky": {"type": "string", "description": "key: the worker that last got a leg with it is preferred"},
    "sla": object_of([], {"start": ref("duration"), "finish": ref("duration")}, minProperties=1),
    "offPeak": {
        "description": "begun off-peak, or into slots that nobody needs",
        "anyOf": [{"type": "boolean"}, object_of([], {"latestStart": ref("duration")})],
    },
    "window": object_of(
        [],
        {
            "from": {"type": "string", "pattern": r"^\d\d:\d\d$", "description": "time of the day"},
            "to": {"type": "string", "pattern": r"^\d\d:\d\d$", "description": "time of the day"},
            "days": {"type": "array", "items": {"enum": list(DAYS)}},
            "zone": {"type": "string", "description": "IANA name; UTC unless told"},
            "cron": {"type": "string", "description": "when it opens: 5 fields"},
            "for": ref("duration"),
            "latestStart": ref("duration"),
        },
    ),
    "escalation": object_of(
        ["failures", "within"],
        {
            "failures": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "failures that are too many"},
            "within": ref("duration"),
            "notify": {"type": "string", "description": "type of the event; dev.flint.workflow.escalated unless set"},
            "pause": {"type": "boolean", "description": "hold the workflow: its starts wait until it is released"},
        },
    ),
    "retention": {
        "description": "how long ended runs are kept: an hour to 36500 days, or forever",
        "anyOf": [{"const": "forever"}, ref("duration")],
    },
    "schedule": object_of(
        [],
        {
            "overlap": {"enum": list(OVERLAPS), "description": "what becomes of a time while a run goes on"},
            "catchUp": {
                "description": "how late a missed time is made up for, and which: last, all or none",
                "anyOf": [
                    {"enum": list(CATCH_UPS)},
                    object_of([], {"policy": {"enum": list(CATCH_UPS)}, "window": ref("duration")}, minProperties=1),
                    ref("duration"),
                ],
            },
            "jitter": ref("duration"),
            "exclude": {
                "type": "array",
                "description": "times that do not count: names of calendars, and rules",
                "items": {"anyOf": [{"type": "string"}, ref("exclusion")]},
            },
            "startAt": {"type": "string", "format": "date-time"},
            "endAt": {"type": "string", "format": "date-time"},
            "maxRuns": {"type": "integer", "minimum": 1, "description": "runs that the schedule starts in all"},
        },
    ),
}


def _metadata(hints: Collection[str]) -> Schema:
    known = {name: _HINTS.get(name, {}) for name in sorted(hints)}
    return {"type": "object", "properties": {"flint": object_of([], known, description="hints that Flint understands")}}


# --- tasks


def _task() -> Schema:
    """The kind is told first, then the task is checked against that kind alone."""
    branches: list[Schema] = []
    for kind in sorted(TASK_MEMBERS):
        condition: Schema = {"required": [kind]}
        if kind == "do":
            condition = {"required": ["do"], "not": {"required": ["for"]}}
        branches.append({"if": condition, "then": ref(f"task-{kind}")})
    return {
        "description": "a task: one of " + ", ".join(sorted(TASK_MEMBERS)),
        "type": "object",
        "anyOf": [{"required": [kind]} for kind in sorted(TASK_MEMBERS)],
        "allOf": branches,
    }


def _kind(kind: str) -> Schema:
    common: dict[str, Schema] = {
        "if": {"type": ["string", "boolean"], "description": "false or null: the task is skipped"},
        "input": ref("input"),
        "output": ref("output"),
        "export": ref("export"),
        "timeout": ref("timeout"),
        "then": ref("then"),
        "metadata": _metadata(TASK_HINTS),
    }
    own, required = _own(kind)
    return {
        **described(f"a {kind} task", TASK_MEMBERS[kind] | COMMON_MEMBERS, {**common, **own}, required),
        **(_calls() if kind == "call" else {}),
    }


def _own(kind: str) -> tuple[dict[str, Schema], list[str]]:
    """Members of one kind of task, and those that must be there."""
    text: Schema = {"type": "string", "minLength": 1}
    match kind:
        case "call":
            return {"call": functions_of_calls(), "with": {"type": "object"}}, ["call"]
        case "do":
            return {"do": ref("tasks")}, ["do"]
        case "emit":
            return {"emit": object_of(["event"], {"event": object_of(["with"], {"with": ref("event")})})}, ["emit"]
        case "for":
            collection: Schema = {"type": ["string", "array"], "description": "what it goes through"}
            loop = object_of(["in"], {"each": text, "at": text, "in": collection})
            return {"for": loop, "while": ref("expression"), "do": ref("tasks")}, ["for", "do"]
        case "fork":
            fork = object_of(["branches"], {"branches": ref("tasks"), "compete": {"type": "boolean"}})
            return {"fork": fork}, ["fork"]
        case "listen":
            return {"listen": ref("listen"), "foreach": ref("foreach")}, ["listen"]
        case "raise":
            return {"raise": object_of(["error"], {"error": {**NAMED, "else": ref("error")}})}, ["raise"]
        case "run":
            return {"run": run_schema()}, ["run"]
        case "set":
            return {"set": ref("transformation")}, ["set"]
        case "switch":
            case = object_of(["then"], {"when": ref("expression"), "then": ref("then")})
            entry: Schema = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": case}
            return {"switch": {"type": "array", "minItems": 1, "items": entry}}, ["switch"]
        case "try":
            return {"try": ref("tasks"), "catch": ref("catch")}, ["try", "catch"]
        case "wait":
            return {"wait": ref("duration")}, ["wait"]
    raise ValueError(f"tasks of the kind '{kind}' have no schema")


def _calls() -> Schema:
    """For each function of Flint's own, what `with` is."""
    branches: list[Schema] = []
    for name, spec in sorted(FUNCTIONS.items()):
        if name in NOT_CALLED:
            continue
        then: Schema = {"properties": {"with": ref(f"arguments-{name}")}}
        if spec.resolved.get("required"):
            then["required"] = ["with"]
        branches.append({"if": {"properties": {"call": {"const": name}}, "required": ["call"]}, "then": then})
    return {"allOf": branches}
