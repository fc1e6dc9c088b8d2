"""Compiles `run`: another workflow, a script, a shell command, a container."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from flint_core.definition.arguments import check_endpoint
from flint_core.definition.context import kind_of
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.reader import join_pointer
from flint_core.definition.versions import VERSION
from flint_core.expressions import ExpressionSyntaxError, compile_expression
from flint_core.expressions.lexer import tokenize
from flint_core.functions import PROCESSES
from flint_core.plan import Places

if TYPE_CHECKING:
    from flint_core.definition.tasks import TaskCompiler

__all__ = ["RETURNS", "WORKFLOW_MEMBERS", "compile_run"]

_KINDS: Final = frozenset({*PROCESSES, "workflow"})
WORKFLOW_MEMBERS: Final = frozenset({"namespace", "name", "version", "input"})
_ALIASES: Final = {"javascript": "js"}  # the specification's text says one, its examples the other
RETURNS: Final = ("stdout", "stderr", "code", "all", "none")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# What is executed stands as it is written: a value that is put into it could bring code of its own.
_CODE: Final = {"script": "code", "shell": "command", "container": "command"}
_CHUNK: Final = 10_000  # characters; written as JSON each may be six, and an expression has a limit
_OF_FLINT: Final = re.compile(r"[\s(\[{]*\.")  # an expression that begins with the input


def compile_run(
    compiler: TaskCompiler, members: dict[str, Any], pointer: str, places: Places, timed: bool
) -> dict[str, Any]:
    """What `run` adds to the common members of a task."""
    context = compiler.context
    place = join_pointer(pointer, "run")
    parts = context.mapping(members["run"], place, "'run'", _KINDS | {"await", "return"})
    kinds = [name for name in parts if name in _KINDS]
    if len(kinds) != 1:
        if not isinstance(members["run"], dict) or (not kinds and len(parts) < len(members["run"])):
            return {}
        message = "'run' is one of container, script, shell and workflow"
        context.error(Rule.INVALID_VALUE, message, join_pointer(place, kinds[1]) if kinds else place, key=bool(kinds))
        return {}
    kind = kinds[0]
    awaited = parts.get("await", True)
    if not isinstance(awaited, bool):
        message = f"'await' must be true or false, not {kind_of(awaited)}"
        context.error(Rule.WRONG_TYPE, message, join_pointer(place, "await"))
    spot = join_pointer(place, kind)
    if kind == "workflow":
        result = _workflow(compiler, parts, spot, place, places)
        what = "this run of another workflow"
    else:
        result = _process(compiler, kind, parts, spot, place, places)
        what = f"this {kind}"
    if not timed and awaited is not False:
        message = f"no timeout limits {what}: set `timeout` on it, around it or on the workflow"
        context.warn(Rule.NO_TIMEOUT, message, pointer, key=True)
    return {"function": kind, "detached": awaited is False, **result}


def _workflow(compiler: TaskCompiler, parts: dict[str, Any], spot: str, place: str, places: Places) -> dict[str, Any]:
    context = compiler.context
    returns = parts.get("return", "stdout")
    if returns not in ("stdout", "none"):
        message = (
            "'return' of a workflow is stdout (its output, as without 'return') or none: it has no standard error and "
            "no exit code"
        )
        context.error(Rule.INVALID_VALUE, message, join_pointer(place, "return"))
    arguments = context.mapping(parts["workflow"], spot, "'workflow'", WORKFLOW_MEMBERS, ("name",))
    for name in ("namespace", "name", "version"):
        at = join_pointer(spot, name)
        value = context.text(arguments.get(name, ""), at, f"'{name}'")
        if not value or "${" in value:
            continue
        if name != "version" and not _NAME.fullmatch(value):
            message = f"'{name}' must be 1 to 63 lower-case letters, digits and hyphens"
            context.error(Rule.INVALID_VALUE, message, at)
        elif name == "namespace" and value != context.namespace:
            message = f"a run may start runs in its own namespace alone, which is '{context.namespace}'"
            context.error(Rule.REFERENCE, message, at)
        elif name == "version" and value != "latest" and not VERSION.fullmatch(value):
            message = "'version' must be a semantic version such as 1.4.0, or 'latest'"
            context.error(Rule.INVALID_VALUE, message, at)
    return {"arguments": context.template(arguments, spot, places.body), "discards": returns == "none"}


def _process(
    compiler: TaskCompiler, kind: str, parts: dict[str, Any], spot: str, place: str, places: Places
) -> dict[str, Any]:
    context = compiler.context
    body = parts[kind]
    if not isinstance(body, dict):
        context.error(Rule.WRONG_TYPE, f"'{kind}' must be an object, not {kind_of(body)}", spot)
        return {}
    returns = parts.get("return", "stdout")
    if returns not in RETURNS:
        hint = suggestion(str(returns), RETURNS) or f"; it must be one of {', '.join(RETURNS)}"
        context.error(Rule.INVALID_VALUE, f"'return' is '{str(returns)[:80]}'{hint}", join_pointer(place, "return"))
        returns = "stdout"
    if kind == "script" and body.get("language") in _ALIASES:
        body = {**body, "language": _ALIASES[body["language"]]}
    if kind == "script":
        for name in ("source", "language"):
            _fixed(compiler, kind, body.get(name), join_pointer(spot, name))
        source = body.get("source")
        if isinstance(source, dict) and "endpoint" in source:
            check_endpoint(context, kind, source["endpoint"], join_pointer(spot, "source", "endpoint"))
    code = _CODE[kind]
    context.template({name: value for name, value in body.items() if name != code}, spot, places.arguments)
    awaited = parts.get("await", True) is not False
    arguments = {**body, "return": returns, "await": awaited}
    compiler.check_arguments(kind, arguments, spot)
    if code in body:
        arguments[code] = _literal(compiler, kind, body[code], join_pointer(spot, code), places)
    return {"arguments": arguments}


def _literal(compiler: TaskCompiler, kind: str, value: Any, pointer: str, places: Places) -> Any:
    """Code in which `${` stands for itself, as a template that gives exactly this text."""
    if isinstance(value, list):
        return [
            _literal(compiler, kind, item, join_pointer(pointer, place), places) for place, item in enumerate(value)
        ]
    if not isinstance(value, str) or "${" not in value:
        return value
    if _looks_meant(value, places):
        message = (
            f"the ${{ }} in what this {kind} executes is passed on as it is written, not interpolated: pass the value "
            "in `arguments` or `environment`"
        )
        compiler.context.warn(Rule.EXPRESSION, message, pointer)
    chunks = (value[start : start + _CHUNK] for start in range(0, len(value), _CHUNK))
    return "".join(f"${{ {_quoted(chunk)} }}" for chunk in chunks)


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode().replace("$", "\\u0024")


def _looks_meant(text: str, places: Places) -> bool:
    """Whether a `${ … }` of the text is an expression that reads the input or a variable of Flint's."""
    for start in (match.end() for match in re.finditer(r"\$\{", text)):
        try:
            _, end = tokenize(text, start, until_brace=True)
            found = compile_expression(text[start:end].strip(), variables=places.arguments)
        except ExpressionSyntaxError:
            continue  # of the script's own language
        if found.names or _OF_FLINT.match(text, start, end):
            return True
    return False


def _fixed(compiler: TaskCompiler, kind: str, value: Any, pointer: str) -> None:
    """Refuses expressions in what says what is executed."""
    open_values = [(pointer, value)]
    while open_values:
        place, node = open_values.pop()
        if isinstance(node, str) and "${" in node:
            name = place.rpartition("/")[2]
            message = (
                f"'{name}' of a {kind} is taken as it is written, without expressions: no value of a run chooses what "
                "is executed"
            )
            compiler.context.error(Rule.EXPRESSION, message, place)
        elif isinstance(node, dict):
            open_values.extend(
                (join_pointer(place, key), member) for key, member in node.items() if key != "authentication"
            )
        elif isinstance(node, list):
            open_values.extend((join_pointer(place, index), member) for index, member in enumerate(node))
