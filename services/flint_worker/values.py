"""Large values on a worker: fetched for whoever needs their content, stored when they come into being.

A value is in this process only while something works on it, and all of them together within
`limits.values_in_memory_bytes`. Encoding and decoding happen in threads: nobody else waits for 50 MiB of JSON.
Expressions over references run in an evaluator of their own, with room for them, started when it is first needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from flint_bus.payloads import PayloadClient, PayloadMissing, PayloadsUnavailable
from flint_core.effects import Deferred, Evaluate
from flint_core.payloads import Payload, Reference, holds_reference, reference_of, references_in, spill
from flint_core.plan import Schema
from flint_jq import EvaluationFailed, EvaluatorPool, EvaluatorsBusy
from flint_jq.pool import single
from flint_ops.config import LimitSettings
from flint_ops.logging import get_logger

__all__ = ["Values"]

_log = get_logger("flint_worker.values")

_OVERHEAD: Final = 3
"""How much more memory a value takes here than its JSON has bytes: the bytes, and Python's objects."""


class Values:
    """Large values of all runs on this worker."""

    def __init__(self, client: PayloadClient, evaluators: EvaluatorPool, limits: LimitSettings) -> None:
        self._client = client
        self._small = evaluators
        self._limits = limits
        self._evaluators: EvaluatorPool | None = None
        self._starting = asyncio.Lock()

    @property
    def payload_bytes(self) -> int:
        """What may stand in the state itself."""
        return self._limits.payload_bytes

    @property
    def value_bytes(self) -> int:
        """What may be stored."""
        return self._limits.value_bytes

    async def close(self) -> None:
        """Ends the evaluator."""
        if self._evaluators is not None:
            await self._evaluators.close()

    async def keep(self, namespace: str, run_id: bytes, payloads: list[Payload]) -> None:
        """Returns when all are stored durably. Raises PayloadsUnavailable."""
        for payload in payloads:
            await self._client.put(namespace, payload, run_id)

    async def spill(
        self, namespace: str, run_id: bytes, encoded: bytes, change: Callable[[Any], Any] | None = None
    ) -> Any:
        """A value, JSON, as it may stand in the state; what had to leave it is stored. Raises PayloadsUnavailable.

        `change` is applied to it first.
        """

        def work() -> tuple[Any, list[Payload]]:
            value = orjson.loads(encoded)
            return spill(value if change is None else change(value), self._limits.payload_bytes)

        async with self._client.room(_OVERHEAD * len(encoded)):
            small, payloads = await asyncio.to_thread(work)
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
        """The answer to the machine's question; a large one is stored and answered by reference.

        Raises EvaluationFailed, and EvaluatorsBusy when it could not be answered for now.
        """
        try:
            if question.schema is not None or holds_reference([question.input, question.variables]):
                return await self._evaluate_large(namespace, run_id, question)
            body = orjson.dumps([question.input, question.variables, question.now_ms])
            answer = await self._small.evaluate_json(question.source, sorted(question.variables), body)
            return await self._answer(namespace, run_id, answer)
        except PayloadMissing as error:
            raise EvaluationFailed("runtime", str(error)) from None
        except PayloadsUnavailable as error:
            raise EvaluatorsBusy(str(error)) from None

    async def _evaluate_large(self, namespace: str, run_id: bytes, question: Evaluate) -> Any:
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
        return await self._answer(namespace, run_id, answer)

    async def _answer(self, namespace: str, run_id: bytes, answer: bytes) -> Any:
        if len(answer) <= self._limits.payload_bytes:
            return single(orjson.loads(answer))
        return await self.spill(namespace, run_id, answer, single)

    async def cached(self, namespace: str, run_id: bytes, key: str) -> tuple[Any] | None:
        """The result kept under the key, if there is one and what it names is still stored. Never raises: a cache that
        does not answer is an empty one.
        """
        try:
            kept = await self._client.cached(namespace, bytes.fromhex(key))
            if kept is None:
                return None
            value = orjson.loads(kept)
            for reference in references_in(value):
                if not await self._client.use(namespace, reference, run_id):
                    return None
        except PayloadsUnavailable as error:
            _log.warning("result_cache_unavailable", error=str(error))
            return None
        return (value,)

    async def cache(self, namespace: str, key: str, value: Any, ttl_ms: int) -> None:
        """Keeps a result for others, if the store answers."""
        try:
            await self._client.keep(namespace, bytes.fromhex(key), orjson.dumps(value), ttl_ms)
        except PayloadsUnavailable as error:
            _log.warning("result_cache_unavailable", error=str(error))

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
