"""Compiles what `call: asyncapi` says about single messages: expressions that are evaluated where the messages come.

Arguments of a call are evaluated before it begins. The expressions `filter`, `while` and `until` of a subscription are
not: they are about messages that come later. So each is put into the arguments as text, together with the values, at
the time of the call, of the variables that it names.
"""

from __future__ import annotations

import re
from typing import Any, Final

from flint_core.definition.context import Context
from flint_core.definition.findings import Rule
from flint_core.definition.reader import join_pointer
from flint_core.functions.asyncapi import PER_MESSAGE, REFUSED_PROTOCOLS

__all__ = ["compile_messages"]

_WHOLE: Final = re.compile(r"\s*\$\{([\s\S]*)\}\s*")
_STEP: Final = re.compile(r"\$steps\s*\.\s*([A-Za-z_][A-Za-z0-9_]*)")
MESSAGES: Final = "messages"
"""The variable that holds the messages kept so far."""


def compile_messages(
    context: Context, arguments: dict[str, Any], pointer: str, variables: frozenset[str]
) -> dict[str, Any]:
    """The arguments with the expressions about messages as the executor takes them; others as they were."""
    protocol = arguments.get("protocol")
    if isinstance(protocol, str) and protocol in REFUSED_PROTOCOLS:
        place = join_pointer(pointer, "protocol")
        context.unsupported(f"the protocol '{protocol}'", REFUSED_PROTOCOLS[protocol], place)
    subscription = arguments.get("subscription")
    if not isinstance(subscription, dict):
        return arguments
    place = join_pointer(pointer, "subscription")
    if "foreach" in subscription:
        hint = "loop over the call's output with a `for` task"
        context.unsupported("'foreach' of a subscription", hint, join_pointer(place, "foreach"))
        subscription = {name: value for name, value in subscription.items() if name != "foreach"}
    subscription = _compiled(context, subscription, place, variables, ("filter",))
    consume = subscription.get("consume")
    if isinstance(consume, dict):
        names = tuple(name for name in PER_MESSAGE if name != "filter")
        subscription["consume"] = _compiled(context, consume, join_pointer(place, "consume"), variables, names)
    return {**arguments, "subscription": subscription}


def _compiled(
    context: Context, members: dict[str, Any], pointer: str, variables: frozenset[str], names: tuple[str, ...]
) -> dict[str, Any]:
    compiled = dict(members)
    for name in names:
        if name not in members:
            continue
        place = join_pointer(pointer, name)
        # No secrets: whether a message passes would tell about them.
        known = (variables - {"secrets"}) | {MESSAGES}
        text = context.expression(members[name], place, known, f"'{name}'")
        if text is None:
            compiled[name] = {"expression": "false", "variables": {}}
            continue
        whole = _WHOLE.fullmatch(text)
        if whole is None:
            context.error(Rule.EXPRESSION, f"'{name}' must be one expression, without text around it", place)
            continue
        source = whole.group(1).strip()
        compiled[name] = {"expression": source, "variables": _captured(source, variables)}
    return compiled


def _captured(source: str, variables: frozenset[str]) -> dict[str, Any]:
    """A template of the variables that an expression names. Of `$steps`, only the steps that it names."""
    captured: dict[str, Any] = {
        name: f"${{ ${name} }}"
        for name in sorted(variables - {"secrets", "steps"})
        if re.search(rf"\${name}(?![A-Za-z0-9_])", source)
    }
    if steps := sorted(set(_STEP.findall(source))):
        captured["steps"] = {step: f"${{ $steps.{step} }}" for step in steps}
    return captured
