"""Advice about a definition that compiled: what a good reviewer would say. Warnings only; each names what to do.

Advice looks at the compiled tasks, so that functions of `use`, extensions and named policies are seen as they will be
executed. It is silent in doubt: an author who is warned of nothing stops reading warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from flint_core.bindings import template_strings
from flint_core.definition.advice_flow import endless_loops, lists_of, parallel_advice
from flint_core.definition.context import Context
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer
from flint_core.definition.reading import reads_of
from flint_core.durations import DurationError, parse_duration
from flint_core.functions import PROCESSES
from flint_core.program import Task

__all__ = ["LARGE_BYTES", "advise"]

LARGE_BYTES: Final = 16_384
"""Constant data of one task above this is worth a word."""

_REUSED: Final = {
    "functions": "function",
    "retries": "retry policy",
    "errors": "error",
    "timeouts": "timeout",
    "authentications": "authentication",
    "catalogs": "catalog",
}
_CHANGING: Final = frozenset({"post", "patch"})
_TURNED_AWAY: Final = frozenset({429, 503})
"""Answers that say that the request was not worked on."""
_INSERT: Final = re.compile(r"(?:^|\)|;)\s*insert\b", re.IGNORECASE)
_GUARDED: Final = re.compile(
    r":idempotency_key\b|\bon\s+conflict\b|\bon\s+duplicate\s+key\b|\bwhere\s+not\s+exists\b|\bor\s+(?:ignore|replace)\b",
    re.IGNORECASE,
)
_RELATIVE: Final = re.compile(r"\bset\b.*?\b(\w+)\s*=\s*(?:\w+\.)?\1\s*[-+*/|]", re.IGNORECASE | re.DOTALL)
_CODE: Final = frozenset({"code", "source", "command", "query", "execute", "statement", "transaction", "batch"})
_EXPOSED: Final[Mapping[str, tuple[tuple[tuple[str, ...], str], ...]]] = {
    "http": (
        (("endpoint",), "the address, which servers and proxies write into their logs: put it into a header, or use"),
        (("query",), "the query, which servers and proxies write into their logs: put it into a header, or use"),
    ),
    "openapi": (
        (("server", "url"), "the address, which servers and proxies write into their logs: use"),
        (("server", "variables"), "the address, which servers and proxies write into their logs: use"),
    ),
    "mcp": (
        (("transport", "stdio", "arguments"), "a command line, which every process of the machine can read: use"),
        (("transport", "http", "endpoint"), "the address, which servers and proxies write into their logs: use"),
    ),
    "shell": ((("arguments",), "a command line, which every process of the machine can read: use"),),
    "script": ((("arguments",), "a command line, which every process of the machine can read: use"),),
    "container": ((("arguments",), "a command line, which `docker inspect` and every process show: use"),),
}
_INSTEAD: Final = {"mcp": "`environment` or `headers`", "shell": "`environment` or `stdin`"}


def advise(context: Context, tasks: tuple[Task, ...], use: Any) -> None:
    """Add warnings to the context. `tasks`: the compiled program's; `use`: the document's, as it is written."""
    _Advisor(context, tasks).advise()
    _unused(context, use)


class _Advisor:
    def __init__(self, context: Context, tasks: tuple[Task, ...]) -> None:
        self.context = context
        self.tasks = tasks
        self.parents: dict[int, int] = {}
        for index, task in enumerate(tasks):
            inner = task.catch.scope if task.catch is not None and task.catch.scope else ()
            self.parents.update(dict.fromkeys((*task.scope, *inner), index))

    def advise(self) -> None:
        for index, task in enumerate(self.tasks):
            if self.context.origins.of(task.pointer).label:
                continue  # a text of somebody else's
            if task.catch is not None:
                self._caught(task)
            if task.function:
                self._secrets(task)
            if task.kind == "wait":
                self._timeout(index, task)
            if task.kind in ("for", "listen") and task.each in self._locals_around(index) and task.each:
                message = (
                    f"${task.each} of this loop hides the ${task.each} of the loop around it: "
                    "give one of them another name"
                )
                if task.kind == "for" or (task.listen is not None and task.listen.iterates):
                    self._warn(Rule.SHADOWED_NAME, message, task)
            self._large(task)
        self._shadowed()
        for task, message in endless_loops(self.tasks):
            self._warn(Rule.ENDLESS_LOOP, message, task)
        for rule, task, message in parallel_advice(self.tasks):
            if not self.context.origins.of(task.pointer).label:
                self._warn(rule, message, task)

    def _warn(self, rule: str, message: str, task: Task, *parts: str | int) -> None:
        self.context.warn(rule, message, join_pointer(task.pointer, *parts), key=True)

    # --- errors

    def _caught(self, task: Task) -> None:
        catch = task.catch
        assert catch is not None  # noqa: S101 - the caller asked
        retry = catch.retry
        chosen = catch.matches or catch.when is not None or catch.except_when is not None
        if retry is None and not chosen:
            if catch.scope is None:
                message = (
                    "every error is swallowed here: nothing is retried and nothing is done. Name the errors to ignore "
                    "in `catch.errors.with`, or handle them in `catch.do`"
                )
                self._warn(Rule.SWALLOWED_ERROR, message, task, "catch")
            elif not self._looks_at(catch.scope, catch.name):
                message = (
                    f"every error is caught, also mistakes in expressions and arguments, and nothing looks at "
                    f"${catch.name}: choose the errors with `catch.errors.with` or `catch.when`, or keep what "
                    f"${catch.name} says"
                )
                self._warn(Rule.DISCARDED_ERROR, message, task, "catch")
        if retry is None:
            return
        if not chosen and retry.when is None and retry.except_when is None:
            message = (
                "every error is retried, also those that no attempt can mend (validation, authentication, a missing "
                "resource): choose with `catch.errors.with`, `catch.when` or the policy's `when`"
            )
            self._warn(Rule.RETRY_EVERYTHING, message, task, "catch")
        waits = [child for child in (*task.scope[:1], *task.scope[-1:]) if self.tasks[child].kind == "wait"]
        for child in dict.fromkeys(waits):
            message = (
                "this wait is repeated with every attempt, and the first one waits too: leave the pauses to the "
                "retry's `delay` and `backoff`"
            )
            self._warn(Rule.WAIT_IN_RETRY, message, self.tasks[child])
        if catch.matches.get("status") not in _TURNED_AWAY:
            for repeated in self._within(task.scope):
                self._repeated(repeated)

    def _looks_at(self, scope: tuple[int, ...], name: str) -> bool:
        for child in self._within(scope):
            if child.kind == "raise" or name in reads_of(*_templates(child)).variables:
                return True
        return False

    def _within(self, scope: tuple[int, ...]) -> Iterator[Task]:
        open_tasks = list(reversed(scope))
        while open_tasks:
            task = self.tasks[open_tasks.pop()]
            yield task
            inner = task.catch.scope if task.catch is not None and task.catch.scope else ()
            open_tasks.extend(reversed((*task.scope, *inner)))

    def _repeated(self, task: Task) -> None:
        """Whether a call may take effect twice when it is repeated."""
        if task.idempotency_key is not None or not isinstance(task.arguments, dict):
            return
        arguments = task.arguments
        if task.function == "http":
            headers = arguments.get("headers")
            named = {str(name).lower() for name in headers} if isinstance(headers, dict) else set()
            method = str(arguments.get("method", ""))
            if method.lower() in _CHANGING and "idempotency-key" not in named:
                message = (
                    f"this {method.upper()} is retried: it may take effect more than once, unless the server honours "
                    "the Idempotency-Key that Flint sends with every attempt. Where it does, say so with "
                    "`metadata.flint.idempotencyKey`; else retry only what was turned away (status 429, 503)"
                )
                self._warn(Rule.RETRY_NOT_IDEMPOTENT, message, task)
        elif task.function == "sql":
            for statement in _statements(arguments):
                if _GUARDED.search(statement):
                    continue
                what = (
                    "INSERT"
                    if _INSERT.search(statement)
                    else "relative UPDATE"
                    if statement.lstrip()[:6].lower() == "update" and _RELATIVE.search(statement)
                    else ""
                )
                if what:
                    message = (
                        f"this {what} is retried, and an attempt whose answer is lost has taken effect: make it "
                        "harmless to repeat, with :idempotency_key in a unique column and ON CONFLICT"
                    )
                    self._warn(Rule.RETRY_NOT_IDEMPOTENT, message, task)
        elif task.function in ("script", "shell") and "IDEMPOTENCY_KEY" not in str(
            arguments.get("code" if task.function == "script" else "command", "")
        ):
            message = (
                f"this {task.function} is retried from its beginning, whatever an attempt before has done already: "
                "let it look at FLINT_IDEMPOTENCY_KEY, which is the same for every attempt"
            )
            if "source" not in arguments:
                self._warn(Rule.RETRY_NOT_IDEMPOTENT, message, task)

    # --- secrets, time, names, size

    def _secrets(self, task: Task) -> None:
        for path, what in _EXPOSED.get(task.function, ()):
            value: Any = task.arguments
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            if task.function == "script" and isinstance(value, dict):
                continue  # variables of the script, which no command line shows
            for place, text in template_strings(value):
                if "authentication" in place or not re.search(r"\$secrets\b", text):
                    continue
                instead = _INSTEAD.get("shell" if task.function in PROCESSES else task.function, "`authentication`")
                message = f"a secret becomes part of {what} {instead}"
                head = ("run", task.function) if task.kind == "run" else ("with",)
                self._warn(Rule.EXPOSED_SECRET, message, task, *head, *path, *place)

    def _timeout(self, index: int, task: Task) -> None:
        length = _length(task.value)
        around: int | None = index
        while length is not None and around is not None:
            limit = _length(self.tasks[around].timeout)
            if limit is not None and limit <= length:
                what = "its timeout" if around == index else f"the timeout of '{self.tasks[around].name}' around it"
                what = "the workflow's timeout" if around == 0 else what
                message = f"this wait never ends well: {what} is not longer. Make the timeout longer than the wait"
                self._warn(Rule.TIMEOUT_TOO_SHORT, message, task)
                return
            around = self.parents.get(around)

    def _locals_around(self, index: int) -> tuple[str, ...]:
        """Variables of the loops around a task. A catch's variable may be hidden by an inner one."""
        names: list[str] = []
        around = self.parents.get(index)
        while around is not None:
            task = self.tasks[around]
            if task.kind == "call":
                break
            if task.kind == "for":
                names.append(task.each)
            around = self.parents.get(around)
        return tuple(names)

    def _shadowed(self) -> None:
        """Steps that have the name of a step in a list around them, where somebody reads that name."""
        read = {name for task in self.tasks for name in task.steps or ()}
        lists = {index: scope for scope in lists_of(self.tasks) for index in scope}
        for index, task in enumerate(self.tasks):
            around = self.parents.get(index)
            while around is not None and task.name in read:
                if self.tasks[around].kind in ("call", "extended"):
                    break
                for other in lists.get(around, ()):
                    if self.tasks[other].name == task.name and other != index:
                        message = (
                            f"'{task.name}' has the name of a step in a list around it: what $steps.{task.name} means "
                            "depends on where it stands. Give one of them another name"
                        )
                        self._warn(Rule.SHADOWED_NAME, message, task)
                        break
                around = self.parents.get(around)

    def _large(self, task: Task) -> None:
        for value in (task.value, task.arguments, task.items):
            data = (
                {name: part for name, part in value.items() if name not in _CODE} if isinstance(value, dict) else value
            )
            size = len(orjson.dumps(data)) if isinstance(data, dict | list | str) else 0
            if size > LARGE_BYTES:
                message = (
                    f"{size // 1024} KiB of constant data stand in this task and count for every run of it: give them "
                    "as input, or keep them where a call can fetch them"
                )
                self._warn(Rule.LARGE_CONSTANT, message, task)


def _templates(task: Task) -> tuple[Any, ...]:
    """All values of a task that may hold expressions, but those of tasks within it."""
    cases = [case.when for case in task.cases]
    return (
        task.condition,
        task.input_from,
        task.output_as,
        task.export_as,
        task.timeout,
        task.value,
        task.items,
        task.condition_while,
        task.arguments,
        task.parameters,
        task.idempotency_key,
        task.cache_key,
        task.guard,
        cases,
    )


def _statements(arguments: dict[str, Any]) -> Iterator[str]:
    batch = arguments.get("batch")
    transaction = arguments.get("transaction")
    found = [arguments.get("execute"), batch.get("statement") if isinstance(batch, dict) else None]
    if isinstance(transaction, list):
        found += [part.get("execute") for part in transaction if isinstance(part, dict)]
    yield from (statement for statement in found if isinstance(statement, str))


def _length(value: Any) -> int | None:
    """A constant duration in milliseconds; None for others."""
    if value is None or any(True for _ in template_strings(value)):
        return None
    try:
        return parse_duration(value).length_ms(0)
    except DurationError:
        return None


def _unused(context: Context, use: Any) -> None:
    """What `use` defines and nothing names."""
    if not isinstance(use, dict):
        return
    for kind, word in _REUSED.items():
        for name in use.get(kind, ()):
            if (kind, name) not in context.used:
                message = f"the {word} '{name[:80]}' is not used: name it, or take it out"
                context.warn(Rule.UNUSED, message, join_pointer("/use", kind, name), key=True)
    for position, name in enumerate(use.get("secrets", ())):
        if ("secrets", name) not in context.used:
            message = f"the secret '{name[:80]}' is declared and not used: take it out, so that no run may read it"
            context.warn(Rule.UNUSED, message, join_pointer("/use/secrets", position))
