"""Texts that a definition refers to: functions of catalogs, schemas. The compiler names them, its caller brings them.

Compiling reads nothing. What is missing becomes a `Resource` in `Compiled.needs`; the caller fetches it and compiles
again with the content, until nothing is missing. The content is then part of the program, and of its hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from flint_core.bindings import template_strings
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer

if TYPE_CHECKING:
    from flint_core.definition.context import Context

__all__ = ["Resource", "resource_at"]

_SCHEMES: Final = ("http", "https", "file")
_POLICIES: Final = {"basic": ("username", "password"), "bearer": ("token",)}


class Resource(NamedTuple):
    """A text to fetch. `authentication`: None, or `basic` or `bearer` with constant values. `pointer`: who needs it."""

    uri: str
    authentication: dict[str, Any] | None = None
    pointer: str = ""


def resource_at(context: Context, endpoint: Any, pointer: str) -> Resource | None:
    """The address that an endpoint names; None when it cannot be one, with a finding."""
    uri, authentication, place = endpoint, None, pointer
    if isinstance(endpoint, dict):
        members = context.mapping(endpoint, pointer, "an endpoint", frozenset({"uri", "authentication"}), ("uri",))
        if "uri" not in members:
            return None
        uri, place = members["uri"], join_pointer(pointer, "uri")
        if "authentication" in members:
            authentication = _constant(context, members["authentication"], join_pointer(pointer, "authentication"))
            if authentication is None:
                return None
    uri = context.text(uri, place, "the address")
    if not uri:
        return None
    if "${" in uri or "{" in uri:
        context.error(Rule.INVALID_VALUE, "this address is read at apply, so it cannot depend on a run", place)
        return None
    try:
        parts = urlsplit(uri)
        known = parts.scheme in _SCHEMES and bool(parts.netloc or parts.scheme == "file")
    except ValueError:
        known = False
    if not known:
        context.error(Rule.INVALID_VALUE, f"'{uri[:80]}' is no address: http, https or file", place)
        return None
    return Resource(uri, authentication, pointer)


def _constant(context: Context, value: Any, pointer: str) -> dict[str, Any] | None:
    """An authentication that holds while nobody runs the workflow: constant, and of the simple kinds."""
    policy = context.authentications.resolve(value, pointer) if context.authentications is not None else value
    if not isinstance(policy, dict):
        return None
    if any(True for _ in template_strings(policy)):
        hint = "it is read at apply, where no secrets and no run exist; give constant values, or a place that is open"
        context.unsupported("an expression or secret in the authentication of what is read at apply", hint, pointer)
        return None
    for scheme, names in _POLICIES.items():
        content = policy.get(scheme)
        if isinstance(content, dict) and content.keys() == set(names):
            if all(isinstance(content[name], str) for name in names):
                return {scheme: content}
            context.error(Rule.WRONG_TYPE, f"{' and '.join(names)} must be text", join_pointer(pointer, scheme))
            return None
    hint = "use basic (username, password) or bearer (token)"
    context.unsupported("this authentication of what is read at apply", hint, pointer)
    return None
