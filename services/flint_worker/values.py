"""Large values on a worker: fetched for whoever needs their content, stored when they come into being.

A value is in this process only while something works on it, and all of them together within
`limits.values_in_memory_bytes`. Encoding and decoding happen in threads: nobody else waits for 50 MiB of JSON.
Expressions over references run in an evaluator of their own, with room for them, started when it is first needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from flint_bus.payloads import PayloadClient
from flint_core.effects import Deferred, Evaluate
from flint_core.payloads import Payload, Reference, reference_of, references_in, spill
from flint_core.plan import Schema
from flint_jq import EvaluatorPool
from flint_jq.pool import single
from flint_ops.config import LimitSettings

__all__ = ["Values"]

_OVERHEAD: Final = 3
"""How much more memory a value takes here than its JSON has bytes: the bytes, and Python's objects."""


class Values:
    """Large values of all runs on this worker."""

    def __init__(self, client: PayloadClient, limits: LimitSettings) -> None:
        self._client = client
        self._limits = limits
        self._evaluators: EvaluatorPool | None = None
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        """Ends the evaluator."""
        if self._evaluators is not None:
            await self._evaluators.close()

    async def keep(self, namespace: str, run_id: bytes, payloads: list[Payload]) -> None:
        """Returns when all are stored durably. Raises PayloadsUnavailable."""
        for payload in payloads:
            await self._client.put(namespace, payload, run_id)

    async def spill(self, namespace: str, run_id: bytes, value: Any, encoded: bytes) -> Any:
        """The value as it may stand in the state; what had to leave it is stored. Raises PayloadsUnavailable."""
        if len(encoded) <= self._limits.payload_bytes:
            return value
        async with self._client.room(_OVERHEAD * len(encoded)):
            small, payloads = await asyncio.to_thread(spill, value, self._limits.payload_bytes)
            await self.keep(namespace, run_id, payloads)
        return small

    @asynccontextmanager
    async def resolved(self, namespace: str, value: Any) -> AsyncIterator[Any]:
        """The value with contents in place of references, in `Deferred` too, for as long as the block lasts.

        Raises PayloadMissing, PayloadsUnavailable.
        """
        references = _references(value)
        if not references:
            yield value
            return
        async with self._client.room(_OVERHEAD * sum(reference.size for reference in references)):
            contents = {}
            for reference in references:
                data = await self._client.get(namespace, reference)
                contents[reference] = await asyncio.to_thread(orjson.loads, data)
                del data
            yield _with_contents(value, contents)

    async def evaluate(self, namespace: str, run_id: bytes, question: Evaluate) -> Any:
        """The answer to a question about values by reference; a large one is stored and answered by reference.

        Raises PayloadMissing, PayloadsUnavailable, EvaluationFailed, EvaluatorsBusy.
        """
        if question.schema is not None:
            async with self.resolved(namespace, question.input) as value:
                return await asyncio.to_thread(lambda: Schema(question.schema).first_error(value))
        references = references_in([question.input, question.variables])
        async with self._client.room(_OVERHEAD * sum(reference.size for reference in references)):
            fragments: dict[Reference, Any] = {
                reference: orjson.Fragment(await self._client.get(namespace, reference)) for reference in references
            }
            body = await asyncio.to_thread(
                lambda: orjson.dumps(_with_contents([question.input, question.variables, question.now_ms], fragments))
            )
            fragments.clear()
            evaluators = await self._large_evaluators()
            answer = await evaluators.evaluate_json(question.source, sorted(question.variables), body)
        return await self.answer(namespace, run_id, answer)

    async def answer(self, namespace: str, run_id: bytes, answer: bytes) -> Any:
        """The single result in an evaluator's answer, by reference where it is large.

        Raises EvaluationFailed, PayloadsUnavailable.
        """
        if len(answer) <= self._limits.payload_bytes:
            return single(orjson.loads(answer))
        async with self._client.room(_OVERHEAD * len(answer)):
            value = single(await asyncio.to_thread(orjson.loads, answer))
            small, payloads = await asyncio.to_thread(spill, value, self._limits.payload_bytes)
            await self.keep(namespace, run_id, payloads)
        return small

    async def _large_evaluators(self) -> EvaluatorPool:
        async with self._starting:
            if self._evaluators is None:
                limits = self._limits
                pool = EvaluatorPool(1, limits.evaluate_large_ms, limits.evaluate_large_bytes, limits.value_bytes)
                await pool.start()
                self._evaluators = pool
            return self._evaluators


def _references(value: Any) -> list[Reference]:
    """References in a value that may hold `Deferred`."""
    plain: list[Any] = [value]
    for deferred in _deferred_in(value):
        plain += [deferred.input, deferred.variables]
    return references_in(plain)


def _deferred_in(value: Any) -> list[Deferred]:
    found: list[Deferred] = []
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, Deferred):
            found.append(node)
        elif isinstance(node, dict):
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return found


def _with_contents(value: Any, contents: dict[Reference, Any]) -> Any:
    # Depth is bounded by what the state holds: it was JSON that a parser took.
    if isinstance(value, dict):
        reference = reference_of(value)
        if reference is not None and reference in contents:
            return contents[reference]
        return {key: _with_contents(member, contents) for key, member in value.items()}
    if isinstance(value, list):
        return [_with_contents(item, contents) for item in value]
    if isinstance(value, Deferred):
        return Deferred(
            value.source,
            value.template,
            _with_contents(value.input, contents),
            {name: _with_contents(member, contents) for name, member in value.variables.items()},
            value.secrets,
        )
    return value
