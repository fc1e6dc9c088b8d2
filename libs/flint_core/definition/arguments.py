"""What stands for something else in a call's arguments: named authentication policies, and URI templates.

Where they may stand is told by the function's schema: wherever that has an endpoint or an authentication.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import jsonschema_rs
import orjson

from flint_core.definition.context import Context, kind_of
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.origins import Origin
from flint_core.definition.reader import join_pointer
from flint_core.functions import FUNCTIONS
from flint_core.functions.schemas import AUTHENTICATION, ENDPOINT, Schema, function

__all__ = ["Authentications", "check_endpoint", "expand_arguments", "uri_template"]

_VARIABLE: Final = re.compile(r"\{([^{}]*)\}")
_OPERATORS: Final = "+#./;?&=,!@|"
_SCHEMES: Final = ("basic", "bearer", "digest", "oauth2", "oidc")
_POLICY: Final = jsonschema_rs.validator_for(function("authentication", "", AUTHENTICATION, {}).schema)
_ITEM: Final = "*"
_WEB: Final = re.compile(r"https?://|https?\{|http\{", re.IGNORECASE)
_INSTEAD: Final = {
    "grpc": "; a text of one's own stands in `proto.content`",
    "script": "; a script of one's own stands in `code`",
}

Path = tuple[str, ...]


class Authentications:
    """The policies of `use.authentications`, and how a place that takes one is compiled."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._policies: dict[str, Any] = {}

    def declare(self, policies: dict[str, Any]) -> None:
        """What `use.authentications` says."""
        self._policies = policies

    def check(self, variables: frozenset[str]) -> None:
        """Check all of them, whether or not a task names them."""
        for name, policy in self._policies.items():
            place = join_pointer("/use/authentications", name)
            compiled = self.inline(policy, place, named=True)
            if compiled is None:
                continue
            self._context.template(compiled, place, variables)
            for error in _POLICY.iter_errors(compiled):
                spot = join_pointer(place, *error.instance_path)
                self._context.error(Rule.ARGUMENTS, f"the policy '{name[:80]}': {error.message[:300]}", spot)

    def resolve(self, value: Any, pointer: str) -> Any:
        """The policy of a place, with what it names put in; None when it is refused."""
        name = value
        if isinstance(value, dict):
            if "use" not in value:
                return self.inline(value, pointer)
            for extra in value.keys() - {"use"}:
                message = f"'{extra[:80]}' stands beside 'use': a policy is named or written, not both"
                self._context.error(Rule.INVALID_VALUE, message, join_pointer(pointer, extra), key=True)
            name, pointer = value["use"], join_pointer(pointer, "use")
        if not isinstance(name, str):
            message = f"an authentication is a policy or the name of one, not {kind_of(name)}"
            self._context.error(Rule.WRONG_TYPE, message, pointer)
            return None
        if "${" in name:
            return name
        if name not in self._policies:
            hint = suggestion(name, self._policies) or "; define it in use.authentications"
            self._context.error(Rule.REFERENCE, f"use.authentications has no '{name[:80]}'{hint}", pointer)
            return None
        self._context.used.add(("authentications", name))
        place = join_pointer("/use/authentications", name)
        origin = Origin(self._context.root, place)
        self._context.origins.add(pointer.removesuffix("/use") if isinstance(value, dict) else pointer, origin)
        return self.inline(self._policies[name], place, named=True)

    def inline(self, policy: Any, pointer: str, named: bool = False) -> Any:
        """A policy as it was written, with the secrets that it names put in; None when it is refused."""
        context = self._context
        if not isinstance(policy, dict):
            context.error(Rule.WRONG_TYPE, f"an authentication must be an object, not {kind_of(policy)}", pointer)
            return None
        if named and "use" in policy:
            message = "a policy of use.authentications cannot name another one"
            context.error(Rule.INVALID_VALUE, message, join_pointer(pointer, "use"), key=True)
            return None
        if "certificate" in policy:
            hint = "the specification says nothing about it; use one of " + ", ".join(_SCHEMES)
            context.unsupported("'certificate' of an authentication", hint, join_pointer(pointer, "certificate"))
            return None
        compiled = dict(policy)
        for scheme in _SCHEMES:
            content = policy.get(scheme)
            if not isinstance(content, dict):
                continue
            place = join_pointer(pointer, scheme)
            self._without_effect(content, place)
            if "use" in content and len(content) == 1:
                compiled[scheme] = self._secret(content["use"], join_pointer(place, "use"))
            elif isinstance(content.get("authority"), str):
                authority = uri_template(context, content["authority"], join_pointer(place, "authority"))
                compiled[scheme] = {**content, "authority": authority}
        return compiled

    def _without_effect(self, content: dict[str, Any], pointer: str) -> None:
        endpoints = content.get("endpoints")
        for name in ("revocation", "introspection"):
            if isinstance(endpoints, dict) and name in endpoints:
                message = f"'{name}' has no effect: tokens are only fetched, and kept until shortly before they expire"
                self._context.warn(Rule.NO_EFFECT, message, join_pointer(pointer, "endpoints", name), key=True)

    def _secret(self, name: Any, pointer: str) -> str:
        """The policy that a secret holds as JSON text, as the expression that only the worker evaluates."""
        context = self._context
        if not isinstance(name, str) or not name:
            context.error(Rule.WRONG_TYPE, f"'use' names a secret; it is {kind_of(name)}", pointer)
            return "${ {} }"
        context.used.add(("secrets", name))
        if name not in context.secrets:
            hint = suggestion(name, context.secrets) or "; list it in use.secrets"
            context.error(Rule.SECRET, f"the secret '{name[:80]}' is not declared{hint}", pointer)
            return "${ {} }"
        return f"${{ $secrets[{orjson.dumps(name).decode()}] }}"  # the text; the worker reads the policy in it


def expand_arguments(
    context: Context, authentications: Authentications, name: str, arguments: dict[str, Any], pointer: str
) -> dict[str, Any]:
    """The arguments of a built-in function with named policies put in and URI templates made expressions."""
    _without_effect(context, name, arguments, pointer)
    expanded: Any = arguments
    for path, kind in _places(name):
        if kind == "authentication":
            expanded = _at(expanded, path, pointer, authentications.resolve)
        else:
            expanded = _at(expanded, path, pointer, lambda endpoint, place: _endpoint(context, name, endpoint, place))
    result: dict[str, Any] = expanded
    return result


def _without_effect(context: Context, name: str, arguments: dict[str, Any], pointer: str) -> None:
    transport = arguments.get("transport")
    if name == "mcp" and isinstance(transport, dict) and transport.get("options"):
        message = "'options' has no effect: no transport has an option"
        context.warn(Rule.NO_EFFECT, message, join_pointer(pointer, "transport", "options"), key=True)
    if name == "a2a" and "server" in arguments and "agentCard" in arguments:
        message = "'server' has no effect beside 'agentCard', which names the agent's address"
        context.warn(Rule.NO_EFFECT, message, join_pointer(pointer, "server"), key=True)


def uri_template(context: Context, text: Any, pointer: str) -> Any:
    """A URI in which `{name}` is a member of the input, as a string with expressions. Others come back as they are.

    A string that holds `${ }` is no URI template.
    """
    if not isinstance(text, str) or "${" in text or "{" not in text:
        return text

    def expression(match: re.Match[str]) -> str:
        name = match.group(1)
        if not name or name[0] in _OPERATORS or "," in name or "*" in name or ":" in name:
            message = f"'{match.group(0)[:80]}': here only {{name}} is supported, the name of a member of the input"
            context.error(Rule.INVALID_VALUE, message, pointer)
            return ""
        member = orjson.dumps(name).decode()
        wrong = orjson.dumps(f"'{name[:80]}' of the URI must be text, a number, a boolean or null").decode()
        return (
            f'${{ (if type == "object" then .[{member}] else null end) | if . == null then "" '
            f'elif type == "object" or type == "array" then error({wrong}) else tostring | @uri end }}'
        )

    return _VARIABLE.sub(expression, text)


def check_endpoint(context: Context, function: str, endpoint: Any, pointer: str) -> None:
    """Refuses a constant address that no worker reads."""
    uri = endpoint.get("uri") if isinstance(endpoint, dict) else endpoint
    if not isinstance(uri, str) or not uri or "${" in uri or uri.startswith("{") or _WEB.match(uri):
        return
    place = join_pointer(pointer, "uri") if isinstance(endpoint, dict) else pointer
    message = f"'{uri[:80]}' is no address that a worker reads: it must begin with http:// or https://"
    context.error(Rule.INVALID_VALUE, f"{message}{_INSTEAD.get(function, '')}", place)


def _endpoint(context: Context, function: str, endpoint: Any, pointer: str) -> Any:
    check_endpoint(context, function, endpoint, pointer)
    return _with_variables(endpoint)


def _with_variables(endpoint: Any) -> Any:
    """An endpoint whose URI is a template, with the members of the input that fill it, unless it says others."""
    uri = endpoint.get("uri") if isinstance(endpoint, dict) else endpoint
    if not isinstance(uri, str) or "${" in uri or (isinstance(endpoint, dict) and "variables" in endpoint):
        return endpoint
    names = [
        name.rstrip("*").partition(":")[0]
        for match in _VARIABLE.finditer(uri)
        for name in match.group(1).lstrip(_OPERATORS).split(",")
    ]
    if not names:
        return endpoint
    variables = {name: f"${{ .[{orjson.dumps(name).decode()}] }}" for name in names if name}
    return {**(endpoint if isinstance(endpoint, dict) else {"uri": uri}), "variables": variables}


@cache
def _places(name: str) -> tuple[tuple[Path, str], ...]:
    """Where a function takes URIs and authentications: paths of member names, `*` for any item."""
    return tuple(dict.fromkeys(_walk(FUNCTIONS[name].resolved, (), 0)))


def _walk(schema: Schema, path: Path, depth: int) -> Iterator[tuple[Path, str]]:
    if depth > 12:
        return
    if schema.get("properties") == AUTHENTICATION["properties"]:
        yield path, "authentication"
        return
    if schema.get("anyOf") == ENDPOINT["anyOf"]:
        yield path, "endpoint"
        yield (*path, "authentication"), "authentication"
        return
    for word in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(word, ()):
            yield from _walk(part, path, depth + 1)
    for member, part in schema.get("properties", {}).items():
        yield from _walk(part, (*path, member), depth + 1)
    if isinstance(schema.get("items"), dict):
        yield from _walk(schema["items"], (*path, _ITEM), depth + 1)


def _at(value: Any, path: Path, pointer: str, change: Callable[[Any, str], Any]) -> Any:
    """The value with what is at the path changed; objects on the way are copied. A change to None leaves it out."""
    if not path:
        return change(value, pointer)
    step, rest = path[0], path[1:]
    if step == _ITEM and isinstance(value, list):
        return [_at(item, rest, join_pointer(pointer, place), change) for place, item in enumerate(value)]
    if not isinstance(value, dict) or step not in value:
        return value
    changed = _at(value[step], rest, join_pointer(pointer, step), change)
    if changed is value[step]:
        return value
    copy = {**value, step: changed}
    if changed is None:
        del copy[step]
    return copy
