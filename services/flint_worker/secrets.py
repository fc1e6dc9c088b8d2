"""Resolving deferred arguments: the only place where `$secrets` has a value.

The values go from the configuration into one call's arguments and nowhere else: not into state, journal, log or error
text (promise 12). So a failure here names the expression and the secret, never a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from pydantic import SecretStr

from flint_core.effects import Deferred
from flint_core.expressions import (
    Expression,
    ExpressionFault,
    ExpressionSyntaxError,
    Template,
    compile_expression,
    compile_template,
)
from flint_core.problems import Problem, ProblemType
from flint_jq import EvaluationFailed, EvaluatorPool
from flint_worker.executors import ExecutionFailed

__all__ = ["SecretResolver", "has_deferred"]

_DEPTH: Final = 100


def has_deferred(value: Any) -> bool:
    """Whether anything in a call's arguments waits for secrets."""
    if isinstance(value, Deferred):
        return True
    if isinstance(value, dict):
        return any(has_deferred(member) for member in value.values())
    if isinstance(value, list):
        return any(has_deferred(item) for item in value)
    return False


@lru_cache(maxsize=1024)
def _expression(source: str, variables: frozenset[str]) -> Expression:
    return compile_expression(source, variables=variables)


@lru_cache(maxsize=1024)
def _template(source: str, variables: frozenset[str]) -> Template:
    return compile_template(source, variables=variables, defer_secrets=False)


class SecretResolver:
    """Evaluates `Deferred` values with the secrets they name."""

    def __init__(self, secrets: Mapping[str, SecretStr], evaluators: EvaluatorPool) -> None:
        self._secrets = secrets
        self._evaluators = evaluators

    def values_in(self, value: Any) -> set[str]:
        """The secrets that the Deferred values in `value` are going to be given, as far as they are configured."""
        if isinstance(value, Deferred):
            return {self._secrets[name].get_secret_value() for name in value.secrets if name in self._secrets}
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        found: set[str] = set()
        for part in parts:
            found |= self.values_in(part)
        return found

    async def resolve(self, value: Any, now_ms: int, step: str) -> Any:
        """`value` with every Deferred in it evaluated. Raises ExecutionFailed with a problem that holds no secret."""
        if isinstance(value, Deferred):
            return await self._evaluate(value, now_ms, step)
        if isinstance(value, dict):
            return {name: await self.resolve(member, now_ms, step) for name, member in value.items()}
        if isinstance(value, list):
            return [await self.resolve(item, now_ms, step) for item in value]
        return value

    async def _evaluate(self, deferred: Deferred, now_ms: int, step: str) -> Any:
        missing = [name for name in deferred.secrets if name not in self._secrets]
        if missing:
            raise ExecutionFailed(
                Problem(
                    ProblemType.AUTHORIZATION,
                    403,
                    "Secret not configured",
                    f"this worker has no secret named {', '.join(sorted(missing))}",
                    step,
                )
            )
        secrets = {name: self._secrets[name].get_secret_value() for name in deferred.secrets}
        variables = {**deferred.variables, "secrets": secrets}
        names = frozenset(variables)
        try:
            if deferred.template:
                template = _template(deferred.source, names)
                parts = [await self._part(part, deferred.input, variables, now_ms) for part in template.parts]
                return template.evaluate(deferred.input, variables, now_ms, parts)
            return await self._part(_expression(deferred.source, names), deferred.input, variables, now_ms)
        except (ExpressionFault, ExpressionSyntaxError, EvaluationFailed) as error:
            # Not the error's text: jq quotes values in it.
            raise ExecutionFailed(
                Problem(
                    ProblemType.EXPRESSION,
                    400,
                    "Expression with secrets failed",
                    f"«{deferred.source[:200]}» could not be evaluated ({type(error).__name__})",
                    step,
                )
            ) from None

    async def _part(self, expression: Expression, input: Any, variables: dict[str, Any], now_ms: int) -> Any:
        if expression.fast:
            return expression.evaluate(input, variables, now_ms)
        used = {name: variables[name] for name in expression.names if name in variables}
        return await self._evaluators.evaluate(expression.source, input, used, now_ms)
