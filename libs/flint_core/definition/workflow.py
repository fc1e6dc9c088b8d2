"""Compiles a whole document: its head, what it reuses, its tasks, and what `$steps` means in each place."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from flint_core.definition import unsupported
from flint_core.definition.advice import advise
from flint_core.definition.arguments import Authentications
from flint_core.definition.context import Context, kind_of
from flint_core.definition.extensions import Extension, parse_extensions
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.hints import document_hints
from flint_core.definition.library import Library
from flint_core.definition.policies import Reusable
from flint_core.definition.schedules import compile_schedule
from flint_core.definition.tasks import Scope, TaskCompiler
from flint_core.definition.versions import VERSION
from flint_core.plan import Places
from flint_core.program import Program, Task
from flint_core.schedule_policy import check_moments
from flint_core.zones import UTC_NAME, zone_named

__all__ = ["HEAD_MEMBERS", "TOP_MEMBERS", "USE_MEMBERS", "compile_workflow"]

TOP_MEMBERS: Final = frozenset({"document", "input", "use", "do", "timeout", "output", "schedule", "evaluate"})
HEAD_MEMBERS: Final = frozenset({"dsl", "namespace", "name", "version", "title", "summary", "tags", "metadata"})
USE_MEMBERS: Final = frozenset(
    {"authentications", "catalogs", "errors", "extensions", "functions", "retries", "secrets", "timeouts"}
)
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DSL: Final = re.compile(r"1\.0\.[0-3]")


def compile_workflow(context: Context, source: Any) -> Program | None:
    """The program of a document; None when findings of severity error were noted in `context`."""
    document = context.mapping(source, "", "a workflow", TOP_MEMBERS, ("document", "do"))
    for name, hint in unsupported.TOP_LEVEL.items():
        if name in document:
            context.unsupported(f"'{name}'", hint, f"/{name}")
    head = _head(context, document.get("document", {}))
    context.namespace = head["namespace"]
    if "evaluate" in document:
        _evaluate(context, document["evaluate"])
    reusable, library = Reusable(context), Library(context)
    authentications = context.authentications = Authentications(context)
    places = Places("workflow", ())
    compiler = TaskCompiler(context, reusable, library)
    if "use" in document:
        compiler.extensions = _use(context, reusable, library, authentications, document["use"])
    members: dict[str, Any] = {}
    if "timeout" in document:
        members["timeout"] = reusable.timeout(document["timeout"], "/timeout", places.body)
    members |= compiler.data_flow({key: document[key] for key in ("input", "output") if key in document}, "", places)
    scope: tuple[int, ...] = ()
    if "do" in document:
        scope = compiler.scope(document["do"], "/do", "'do'", None, (), "timeout" in document)
    schedule = compile_schedule(context, document["schedule"]) if "schedule" in document else None
    policy = head.pop("policy", None)
    if policy is not None and "schedule" not in document:
        message = "there is no 'schedule' that this hint could be about"
        context.error(Rule.INVALID_VALUE, message, "/document/metadata/flint/schedule", key=True)
    elif policy is not None and schedule is not None:
        if schedule.every is None and schedule.cron is None:
            message = "this hint is for the schedules every and cron"
            context.error(Rule.INVALID_VALUE, message, "/document/metadata/flint/schedule", key=True)
        schedule = replace(schedule, **policy)
        never = check_moments(schedule, zone_named(head.get("timezone") or UTC_NAME))
        if never is not None:
            context.error(Rule.INVALID_VALUE, f"'schedule' {never}", "/document/metadata/flint/schedule", key=True)
    named = {name for kind, name in context.used if kind == "functions"}
    reusable.check_unused()
    authentications.check(Places("call", ()).arguments)
    with context.aside():
        library.check_unused(TaskCompiler(context, reusable, library))
    context.used = {each for each in context.used if each[0] != "functions" or each[1] in named}
    compiler.tasks[0] = Task(pointer="", name="", kind="workflow", scope=scope, **members)
    tasks = _with_steps(context, compiler)
    if context.failed or context.needs:
        return None
    advise(context, tasks, document.get("use", {}))
    return Program(
        tasks=tasks,
        secrets=tuple(sorted(context.secrets)),
        document=source if context.reads_definition else None,
        schedule=schedule,
        **head,
    )


def _head(context: Context, value: Any) -> dict[str, Any]:
    head = context.mapping(value, "/document", "'document'", HEAD_MEMBERS, ("dsl", "namespace", "name", "version"))
    texts: dict[str, str] = {
        key: context.text(head[key], f"/document/{key}", f"'{key}'")
        for key in ("dsl", "namespace", "name", "version", "title", "summary")
        if key in head
    }
    dsl = texts.get("dsl")
    if dsl and not _DSL.fullmatch(dsl):
        context.unsupported(f"version {dsl[:20]} of the DSL", "Flint reads 1.0.0 to 1.0.3", "/document/dsl")
    for key in ("namespace", "name"):
        if texts.get(key) and not _NAME.fullmatch(texts[key]):
            message = (
                f"'{key}' must be 1 to 63 lower-case letters, digits and hyphens, not beginning or ending with a hyphen"
            )
            context.error(Rule.INVALID_VALUE, message, f"/document/{key}")
    version = texts.get("version")
    limits = context.limits
    for key, most in (("version", limits.version), ("title", limits.title), ("summary", limits.summary)):
        length = len(texts.get(key, ""))
        if length > most:
            context.error(Rule.LIMIT, f"'{key}' has {length} characters; the limit is {most}", f"/document/{key}")
    if version is not None and len(version) <= context.limits.version and not VERSION.fullmatch(version):
        message = "'version' must be a semantic version such as 1.4.0 or 2.0.0-rc.1"
        context.error(Rule.INVALID_VALUE, message, "/document/version")
    if "tags" in head and not isinstance(head["tags"], dict):
        context.error(Rule.WRONG_TYPE, f"'tags' must be an object, not {kind_of(head['tags'])}", "/document/tags")
    hints = document_hints(context, head.get("metadata", {}))
    return {
        **hints,
        "namespace": texts.get("namespace", ""),
        "workflow_id": texts.get("name", ""),
        "version": version or "",
        "title": texts.get("title", ""),
        "summary": texts.get("summary", ""),
    }


def _evaluate(context: Context, value: Any) -> None:
    members = context.mapping(value, "/evaluate", "'evaluate'", frozenset({"language", "mode"}))
    if members.get("language", "jq") != "jq":
        context.unsupported("this expression language", "Flint evaluates jq", "/evaluate/language")
    if members.get("mode", "strict") != "strict":
        context.unsupported("this evaluation mode", "Flint evaluates strictly", "/evaluate/mode")


def _use(
    context: Context, reusable: Reusable, library: Library, authentications: Authentications, value: Any
) -> tuple[Extension, ...]:
    use = context.mapping(value, "/use", "'use'", USE_MEMBERS)
    for name, target in (
        ("retries", reusable.retries),
        ("errors", reusable.errors),
        ("timeouts", reusable.timeouts),
    ):
        if name in use:
            parts = use[name]
            target.update(
                context.mapping(parts, f"/use/{name}", f"'use.{name}'", parts if isinstance(parts, dict) else {})
            )
    if "secrets" in use:
        secrets = use["secrets"]
        if isinstance(secrets, list) and all(isinstance(name, str) for name in secrets):
            context.secrets = frozenset(secrets)
        else:
            context.error(Rule.WRONG_TYPE, "'use.secrets' must be a list of names", "/use/secrets")
    library.declare(use.get("functions", {}), use.get("catalogs", {}))
    policies = use.get("authentications", {})
    known = policies if isinstance(policies, dict) else {}
    authentications.declare(context.mapping(policies, "/use/authentications", "'use.authentications'", known))
    return parse_extensions(context, use["extensions"]) if "extensions" in use else ()


# --- $steps


def _with_steps(context: Context, compiler: TaskCompiler) -> tuple[Task, ...]:
    """Resolve what `$steps` offers in each task: a name that is unique in the document, or the nearest one around."""
    rooms: dict[int, dict[str, list[int]]] = {room: {} for room in compiler.doors}
    for index, task in enumerate(compiler.tasks):
        if task is not None and index and index not in compiler.hidden:
            rooms[compiler.rooms[index]].setdefault(task.name, []).append(index)
    views: dict[int, dict[str, int]] = {}
    for index, names in context.steps_read.items():
        scope = compiler.scopes.get(index)
        everywhere = _seen_from(compiler.rooms.get(index, 0), rooms, compiler.doors)
        view: dict[str, int] = {}
        for name in everywhere if None in names else sorted(name for name in names if name):
            found = _resolve(everywhere.get(name, []), name, scope)
            if found is not None:
                view[name] = found
            elif name in names:
                _unresolved(context, everywhere, index, name)
        views[index] = view
    kept = {found for view in views.values() for found in view.values()}
    return tuple(
        replace(task, steps=views.get(index) or None, keep=index in kept)
        for index, task in enumerate(compiler.tasks)
        if task is not None
    )


def _seen_from(room: int, rooms: dict[int, dict[str, list[int]]], doors: dict[int, int | None]) -> dict[str, list[int]]:
    """The tasks that a room sees by name: its own, and those of the rooms around it whose names it does not use."""
    seen = rooms[room]
    while (around := doors[room]) is not None:
        room = around
        seen = {**rooms[room], **seen}
    return seen


def _resolve(candidates: list[int], name: str, scope: Scope | None) -> int | None:
    if len(candidates) == 1:
        return candidates[0]
    while scope is not None:
        if name in scope.tasks:
            return scope.tasks[name]
        scope = scope.parent
    return None


def _unresolved(context: Context, everywhere: dict[str, list[int]], index: int, name: str) -> None:
    place = context.step_places.get((index, name), "")
    if name in everywhere:
        message = f"$steps.{name} is not clear: several tasks have this name and none is in a list around this one"
    else:
        message = f"$steps.{name} names no task{suggestion(name, everywhere)}"
    context.error(Rule.REFERENCE, message, place)
