"""Parts of tasks that have names of their own in `use`: retries, errors, timeouts, catch filters."""

from __future__ import annotations

from typing import Any, Final

from flint_core.definition.context import Context, kind_of
from flint_core.definition.findings import Rule, suggestion
from flint_core.definition.reader import join_pointer
from flint_core.program import Retry

__all__ = ["BACKOFFS", "ERROR_MEMBERS", "FILTER_MEMBERS", "RETRY_MEMBERS", "Reusable"]

RETRY_MEMBERS: Final = frozenset({"when", "exceptWhen", "delay", "backoff", "limit", "jitter"})
ERROR_MEMBERS: Final = frozenset({"type", "status", "title", "detail", "instance"})
FILTER_MEMBERS: Final = frozenset({"type", "status", "title", "detail", "details", "instance"})
BACKOFFS: Final = {
    "constant": frozenset[str](),
    "linear": frozenset({"increment", "maxDelay"}),
    "exponential": frozenset({"factor", "multiplier", "maxDelay"}),
}


class Reusable:
    """The named parts of `use`, and how they are compiled where they stand or are named."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.retries: dict[str, Any] = {}
        self.errors: dict[str, Any] = {}
        self.timeouts: dict[str, Any] = {}

    def _named(self, kind: str, known: dict[str, Any], value: Any, pointer: str) -> tuple[Any, str] | None:
        """The definition behind a name of `use`, or the value itself when it stands inline."""
        if not isinstance(value, str):
            return value, pointer
        if value in known:
            self.context.used.add((kind, value))
            return known[value], join_pointer("/use", kind, value)
        hint = suggestion(value, known) or f"; define it in use.{kind}"
        if kind == "timeouts" and not known:
            hint = "; write a timeout here as {after: PT5S}, or define one in use.timeouts"
        self.context.error(Rule.REFERENCE, f"use.{kind} has no '{value[:80]}'{hint}", pointer)
        return None

    def timeout(self, value: Any, pointer: str, variables: frozenset[str]) -> Any:
        """The duration of a timeout, inline or by name."""
        found = self._named("timeouts", self.timeouts, value, pointer)
        if found is None:
            return None
        value, pointer = found
        members = self.context.mapping(value, pointer, "a timeout", frozenset({"after"}), ("after",))
        if "after" not in members:
            return None
        return self.context.duration(members["after"], join_pointer(pointer, "after"), variables, "the timeout")

    def error(self, value: Any, pointer: str, variables: frozenset[str]) -> Any:
        """An error to raise, inline or by name."""
        context = self.context
        found = self._named("errors", self.errors, value, pointer)
        if found is None:
            return None
        value, pointer = found
        members = context.mapping(value, pointer, "an error", ERROR_MEMBERS, ("type", "status"))
        for name, member in members.items():
            place = join_pointer(pointer, name)
            if name == "status":
                if not (isinstance(member, str) and "${" in member):
                    context.integer(member, place, "the status", 100, 599)
            elif not isinstance(member, str):
                context.error(Rule.WRONG_TYPE, f"'{name}' of an error must be text, not {kind_of(member)}", place)
        return context.template(members, pointer, variables)

    def filter(self, value: Any, pointer: str) -> dict[str, Any]:
        """What a catch's `errors.with` compares."""
        context = self.context
        errors = context.mapping(value, pointer, "'errors'", frozenset({"with"}))
        if "with" not in errors:
            return {}
        place = join_pointer(pointer, "with")
        matches: dict[str, Any] = {}
        for name, member in context.mapping(errors["with"], place, "'with'", FILTER_MEMBERS).items():
            spot = join_pointer(place, name)
            if name == "status":
                context.integer(member, spot, "the status", 100, 599)
            elif not isinstance(member, str):
                context.error(Rule.WRONG_TYPE, f"'{name}' must be text, not {kind_of(member)}", spot)
            elif "${" in member:
                context.error(
                    Rule.INVALID_VALUE, "a filter compares with fixed values; use `when` for expressions", spot
                )
            matches["detail" if name == "details" else name] = member
        return matches

    def retry(self, value: Any, pointer: str, variables: frozenset[str], error: str) -> Retry | None:
        """A retry policy, inline or by name. `error`: name of the variable that holds the caught error."""
        context = self.context
        found = self._named("retries", self.retries, value, pointer)
        if found is None:
            return None
        value, pointer = found
        caught = variables | {error}
        members = context.mapping(value, pointer, "a retry policy", RETRY_MEMBERS)
        policy: dict[str, Any] = {}
        for name, target in (("when", "when"), ("exceptWhen", "except_when")):
            if name in members:
                policy[target] = context.expression(members[name], join_pointer(pointer, name), caught, f"'{name}'")
        if "delay" in members:
            policy["delay"] = context.duration(members["delay"], join_pointer(pointer, "delay"), caught, "the delay")
        if "backoff" in members:
            policy |= self._backoff(members["backoff"], join_pointer(pointer, "backoff"), caught)
        if "limit" in members:
            policy |= self._limit(members["limit"], join_pointer(pointer, "limit"), variables, caught)
        if "jitter" in members:
            place = join_pointer(pointer, "jitter")
            jitter = context.mapping(members["jitter"], place, "'jitter'", frozenset({"from", "to"}), ("from", "to"))
            for name in jitter:
                spot = join_pointer(place, name)
                policy[f"jitter_{name}"] = context.duration(jitter[name], spot, caught, f"'{name}' of the jitter")
        return Retry(**policy)

    def _backoff(self, value: Any, pointer: str, variables: frozenset[str]) -> dict[str, Any]:
        context = self.context
        members = context.mapping(value, pointer, "'backoff'", BACKOFFS)
        if len(members) != 1:
            if isinstance(value, dict) and len(members) == len(value):
                context.error(Rule.INVALID_VALUE, "'backoff' is one of constant, linear and exponential", pointer)
            return {}
        kind, options = next(iter(members.items()))
        place = join_pointer(pointer, kind)
        policy: dict[str, Any] = {"backoff": kind}
        allowed = context.mapping({} if options is None else options, place, f"'{kind}'", BACKOFFS[kind])
        for name, target in (("increment", "increment"), ("maxDelay", "max_delay")):
            if name in allowed:
                spot = join_pointer(place, name)
                policy[target] = context.duration(allowed[name], spot, variables, f"'{name}'")
        for name in ("factor", "multiplier"):
            if name in allowed:
                factor = allowed[name]
                if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= 100:
                    context.error(
                        Rule.INVALID_VALUE, f"'{name}' must be a number from 1 to 100", join_pointer(place, name)
                    )
                else:
                    policy["factor"] = float(factor)
        return policy

    def _limit(self, value: Any, pointer: str, variables: frozenset[str], caught: frozenset[str]) -> dict[str, Any]:
        context = self.context
        members = context.mapping(value, pointer, "'limit'", frozenset({"attempt", "duration"}))
        policy: dict[str, Any] = {}
        if "duration" in members:
            place = join_pointer(pointer, "duration")
            policy["limit_duration"] = context.duration(members["duration"], place, caught, "the limit")
        if "attempt" in members:
            place = join_pointer(pointer, "attempt")
            attempt = context.mapping(members["attempt"], place, "'attempt'", frozenset({"count", "duration"}))
            if "count" in attempt:
                spot = join_pointer(place, "count")
                policy["limit_count"] = context.integer(attempt["count"], spot, "the count of attempts", 1, 10_000)
            if "duration" in attempt:
                spot = join_pointer(place, "duration")
                policy["limit_attempt"] = context.duration(attempt["duration"], spot, variables, "the limit")
        return policy

    def check_unused(self) -> None:
        """Check the named parts even if no task names them."""
        variables = frozenset({"context", "task", "workflow", "runtime", "steps", "input"})
        used = set(self.context.used)
        for name in self.timeouts:
            self.timeout(name, join_pointer("/use/timeouts", name), variables)
        for name in self.errors:
            self.error(name, join_pointer("/use/errors", name), variables)
        for name in self.retries:
            if ("retries", name) not in used:
                self.retry(name, join_pointer("/use/retries", name), variables, "error")
        self.context.used = used
