"""The compiler's working memory: findings with their places, and the checks of shape that everything uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import jsonschema_rs

from flint_core.bindings import expressions_in, template_strings
from flint_core.definition.findings import DefinitionLimits, Finding, Guarded, Rule, Severity, suggestion
from flint_core.definition.origins import Origins
from flint_core.definition.reader import Node, ReadError, join_pointer, read
from flint_core.definition.resources import Resource, resource_at
from flint_core.durations import DurationError, parse_duration
from flint_core.expressions import ExpressionSyntaxError, compile_expression, compile_template
from flint_core.plan import Schema
from flint_core.program import READS_DEFINITION

if TYPE_CHECKING:
    from flint_core.definition.arguments import Authentications

__all__ = ["Context", "kind_of"]

_STEP: Final = re.compile(r"\$steps\s*(?:\.\s*([A-Za-z_][A-Za-z0-9_]*)|\.?\s*\[\s*\"([^\"\\]+)\"\s*\])?")
_SECRET: Final = re.compile(r"\$secrets\b\s*(?:\.\s*([A-Za-z_][A-Za-z0-9_]*)|\.?\s*\[\s*\"([^\"\\]+)\"\s*\])?")

# In an extension $task has the members of the extended task's definition too.
_SUBJECT: Final = re.compile(r"\$task\b(?!\s*\.\s*(?:name|reference|input|output|startedAt)\b)")

_KINDS: Final = {
    dict: "an object",
    list: "an array",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


def kind_of(value: Any) -> str:
    """What a JSON value is, for a message."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


class Context:
    """Collects findings while a definition is compiled."""

    def __init__(self, root: Node, limits: DefinitionLimits, resources: Mapping[str, bytes] | None = None) -> None:
        self.root = root
        self.resources = resources or {}
        self.needs: dict[str, Resource] = {}  # what is to be fetched before this can be compiled
        self.origins = Origins(root)
        self.authentications: Authentications | None = None
        self.task_kinds: frozenset[str] = frozenset()
        self.limits = limits
        self.findings: list[Finding] = []
        self.guarded: dict[tuple[str, frozenset[str], str], Guarded] = {}  # expressions that only jq can check
        self.used: set[tuple[str, str]] = set()  # what is named of `use`: kind and name
        self.seen: set[tuple[str, str, str]] = set()
        self.secrets: frozenset[str] = frozenset()
        self.namespace = ""  # the document's own
        self.reads_definition = False
        self.steps_read: dict[int, set[str | None]] = {}  # task → names it reads of $steps; None: any
        self.step_places: dict[tuple[int, str], str] = {}
        self.task = 0  # the task being compiled
        self._extending = False  # within an extension, where $task describes another task

    # --- findings

    def error(self, rule: str, message: str, pointer: str, key: bool = False, offset: int | None = None) -> None:
        """The definition is refused for this."""
        self._add(Severity.ERROR, rule, message, pointer, key, offset)

    def warn(self, rule: str, message: str, pointer: str, key: bool = False) -> None:
        """The author should look at this."""
        self._add(Severity.WARNING, rule, message, pointer, key, None)

    def _add(self, severity: Severity, rule: str, message: str, pointer: str, key: bool, offset: int | None) -> None:
        origin = self.origins.of(pointer)
        if (rule, message, origin.pointer) in self.seen:
            return
        self.seen.add((rule, message, origin.pointer))
        line, column = origin.root.place(origin.pointer, key)
        if offset:
            message = f"{message} (at character {offset + 1})"
        pointer = origin.pointer
        if origin.label:
            message = f"in {origin.label}, line {line}, column {column}: {message}"
            pointer = origin.at
            line, column = self.root.place(pointer)
        self.findings.append(Finding(severity, rule, message, pointer or "/", line, column))

    def unsupported(self, what: str, hint: str, pointer: str) -> None:
        """Part of the specification that is not built yet."""
        self.error(Rule.UNSUPPORTED, f"{what} is not supported by this version of Flint: {hint}", pointer, key=True)

    def resource(self, uri: str, authentication: dict[str, Any] | None, pointer: str) -> bytes | None:
        """The text at an address; None when it is not there yet, which is noted in `needs`."""
        data = self.resources.get(uri)
        if data is None:
            if uri not in self.needs and len(self.needs) + len(self.resources) >= self.limits.resources:
                message = f"the definition reads more than {self.limits.resources} texts from elsewhere"
                self.error(Rule.LIMIT, message, pointer)
                return None
            origin = self.origins.of(pointer)
            place = origin.at if origin.label else origin.pointer
            self.needs.setdefault(uri, Resource(uri, authentication, place))
        return data

    @contextmanager
    def extending(self) -> Iterator[None]:
        """Expressions compiled within belong to an extension."""
        outer, self._extending = self._extending, True
        try:
            yield
        finally:
            self._extending = outer

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is compiled within is checked, and is no part of the program: it leaves nothing but findings."""
        kept = (self.steps_read, self.step_places, self.task, self.reads_definition, self.origins)
        self.steps_read, self.step_places, self.origins = {}, {}, Origins(self.root)
        try:
            yield
        finally:
            self.steps_read, self.step_places, self.task, self.reads_definition, self.origins = kept

    def share_steps(self, source: int, target: int) -> None:
        """The task `target` evaluates expressions of `source`, and reads the same of $steps."""
        names = self.steps_read.get(source)
        if names:
            self.steps_read.setdefault(target, set()).update(names)
            for name in names:
                if name and (source, name) in self.step_places:
                    self.step_places.setdefault((target, name), self.step_places[source, name])

    @property
    def failed(self) -> bool:
        """Whether an error was found."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    # --- shapes

    def mapping(
        self,
        value: Any,
        pointer: str,
        what: str,
        allowed: Mapping[str, Any] | frozenset[str],
        required: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The value as an object with known members; what is wrong becomes findings, and what is known is returned."""
        if not isinstance(value, dict):
            self.error(Rule.WRONG_TYPE, f"{what} must be an object, not {kind_of(value)}", pointer)
            return {}
        for key in value:
            if key not in allowed:
                hint = suggestion(key, allowed)
                message = f"'{key[:80]}' is not a member of {what}{hint}"
                self.error(Rule.UNKNOWN_FIELD, message, join_pointer(pointer, key), key=True)
        for key in required:
            if key not in value:
                self.error(Rule.MISSING_FIELD, f"{what} needs '{key}'", pointer)
        return {key: member for key, member in value.items() if key in allowed}

    def text(self, value: Any, pointer: str, what: str) -> str:
        """The value as text, else a finding and the empty text."""
        if isinstance(value, str):
            return value
        self.error(Rule.WRONG_TYPE, f"{what} must be text, not {kind_of(value)}", pointer)
        return ""

    def integer(self, value: Any, pointer: str, what: str, low: int, high: int) -> int | None:
        """The value as an integer within bounds, else a finding and None."""
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.error(Rule.INVALID_VALUE, f"{what} must be an integer from {low} to {high}", pointer)
        return None

    # --- values

    def template(self, value: Any, pointer: str, variables: frozenset[str]) -> Any:
        """A value in which strings may hold `${ … }`; every expression is compiled."""
        strings = list(template_strings(value))
        if not strings:
            return value
        if "secrets" not in variables:
            for path, text in strings:
                if _SECRET.search(text):
                    message = (
                        "$secrets may be used in the arguments of calls, scripts, shells and containers only, so that "
                        "none reaches the run's state"
                    )
                    self.error(Rule.SECRET, message, join_pointer(pointer, *path))
                    return value
        try:
            template = compile_template(value, variables=variables)
        except ExpressionSyntaxError as error:
            place = pointer + str(getattr(error, "pointer", ""))
            self.error(Rule.EXPRESSION, f"expression: {error.message}", place, offset=error.offset)
            return value
        for path, text in strings:
            for source in expressions_in(text):
                self._note(source, join_pointer(pointer, *path))
                if template.parts or template.deferred:
                    self._guard(source, variables, join_pointer(pointer, *path))
        return value

    def _guard(self, source: str, variables: frozenset[str], pointer: str) -> None:
        """Keep an expression for jq when the fast path does not take it."""
        if compile_expression(source, variables=variables).fast:
            return
        origin = self.origins.of(pointer)
        line, column = origin.root.place_within(origin.pointer, source)
        within, pointer = "", origin.pointer
        if origin.label:
            within, pointer = f"{origin.label}, line {line}, column {column}", origin.at
            line, column = self.root.place(pointer)
        key = (source, variables, f"{within}{pointer}")
        self.guarded.setdefault(key, Guarded(source, variables, pointer or "/", line, column, within))

    def expression(self, value: Any, pointer: str, variables: frozenset[str], what: str) -> str | None:
        """A place that takes one expression, with or without `${ }`."""
        if not isinstance(value, str):
            self.error(Rule.WRONG_TYPE, f"{what} must be an expression, not {kind_of(value)}", pointer)
            return None
        if not value.strip():
            self.error(Rule.EXPRESSION, f"{what} is empty", pointer)
            return None
        text: str = self.template(_wrapped(value), pointer, variables)
        return text

    def transformation(self, value: Any, pointer: str, variables: frozenset[str], what: str) -> Any:
        """A place that takes an expression or an object with expressions in it (`from`, `as`)."""
        if isinstance(value, str):
            return self.expression(value, pointer, variables, what)
        if isinstance(value, dict):
            return self.template(value, pointer, variables)
        self.error(Rule.WRONG_TYPE, f"{what} must be an expression or an object, not {kind_of(value)}", pointer)
        return None

    def duration(self, value: Any, pointer: str, variables: frozenset[str], what: str) -> Any:
        """A duration: object, ISO 8601, or expression."""
        if any(True for _ in template_strings(value)):
            return self.template(value, pointer, variables)
        try:
            parse_duration(value)
        except DurationError as error:
            self.error(Rule.INVALID_VALUE, f"{what}: {error}", pointer)
            return None
        return value

    def schema(self, value: Any, pointer: str, what: str) -> Any:
        """A schema: `document` inline, in the format json."""
        members = self.mapping(value, pointer, what, frozenset({"format", "document", "resource"}))
        kind = members.get("format", "json")
        if kind != "json" and not str(kind).startswith("json:"):
            self.unsupported(f"the schema format '{kind}'", "use JSON Schema", join_pointer(pointer, "format"))
        if "document" in members:
            place = join_pointer(pointer, "document")
            document = members["document"]
        elif "resource" in members:
            place = join_pointer(pointer, "resource")
            document = self._schema_from(members["resource"], place)
            if document is None:
                return None
        else:
            self.error(Rule.MISSING_FIELD, f"{what} needs 'document' or 'resource'", pointer)
            return None
        if not isinstance(document, dict | bool):
            self.error(Rule.WRONG_TYPE, f"a JSON schema is an object, not {kind_of(document)}", place)
            return None
        try:
            Schema(document)
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            reason = getattr(error, "message", None) or str(error)
            self.error(Rule.SCHEMA, f"not a usable JSON schema: {str(reason)[:300]}", place)
            return None
        return document

    def _schema_from(self, value: Any, pointer: str) -> Any:
        """The schema at the endpoint of an external resource; None while it is needed, or when it is none."""
        members = self.mapping(value, pointer, "a resource", frozenset({"name", "endpoint"}), ("endpoint",))
        if "endpoint" not in members:
            return None
        resource = resource_at(self, members["endpoint"], join_pointer(pointer, "endpoint"))
        data = None if resource is None else self.resource(resource.uri, resource.authentication, pointer)
        if resource is None or data is None:
            return None
        try:
            return read(data, self.limits).plain()
        except ReadError as error:
            message = f"in {resource.uri}, line {error.line}, column {error.column}: {error.message}"
            self.error(error.rule, message, pointer)
            return None

    def _note(self, source: str, pointer: str) -> None:
        if READS_DEFINITION.search(source) or (self._extending and _SUBJECT.search(source)):
            self.reads_definition = True
        for match in _STEP.finditer(source):
            name = match.group(1) or match.group(2)
            self.steps_read.setdefault(self.task, set()).add(name)
            if name:
                self.step_places.setdefault((self.task, name), pointer)
        for match in _SECRET.finditer(source):
            name = match.group(1) or match.group(2)
            self.used.add(("secrets", name or ""))
            if not name:
                self.error(Rule.SECRET, "name the secret outright, as in $secrets.apiKey", pointer)
            elif name not in self.secrets:
                hint = suggestion(name, self.secrets) or "; list it in use.secrets"
                self.error(Rule.SECRET, f"the secret '{name}' is not declared{hint}", pointer)


def _wrapped(text: str) -> str:
    return text if "${" in text else f"${{ {text.strip()} }}"
