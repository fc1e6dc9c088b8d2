"""Large values on a worker: fetched for whoever needs their content, stored when they come into being.

A value is in this process only while something works on it, all of them together within
`limits.values_in_memory_bytes`, and as far as possible as bytes: making objects of 50 MiB of JSON would stop every
other leg for seconds. Evaluators of their own, with room for them and started when they are first needed, read large
values, evaluate expressions on them, check them and take them apart. The time of one question goes with its bytes, so
that an expression without end on a value that is barely large does not hold up the others for long.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson

from flint_bus.payloads import PayloadClient, PayloadMissing, PayloadsUnavailable
from flint_core.effects import Deferred, Evaluate
from flint_core.payloads import Payload, Reference, holds_reference, reference_of, references_in
from flint_jq import EvaluationFailed, EvaluatorPool, EvaluatorsBusy
from flint_jq.pool import single
from flint_ops.config import LimitSettings
from flint_ops.logging import get_logger
from flint_worker.executors import RawJson

__all__ = ["Values"]

_log = get_logger("flint_worker.values")

_SINGLE: Final = 'if length > 1 then error("the expression has more than one result") else .[0] end'
_LANES: Final = 2
_PER_MIB_MS: Final = 500
"""Time of a question for each MiB, beyond that of an expression on a small value."""
_OVERHEAD: Final = 3
"""How much more memory a value takes here than its JSON has bytes."""


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
        """Ends the evaluators."""
        if self._evaluators is not None:
            await self._evaluators.close()

    async def keep(self, namespace: str, run_id: bytes, payloads: list[Payload]) -> None:
        """Returns when all are stored durably. Raises PayloadsUnavailable."""
        for payload in payloads:
            await self._client.put(namespace, payload, run_id)

    async def spill(self, namespace: str, run_id: bytes, encoded: bytes, redact: Sequence[str] = ()) -> Any:
        """A large value, JSON, as it may stand in the state; what had to leave it is stored.

        `redact`: texts that are replaced first. Raises PayloadsUnavailable, EvaluationFailed (not JSON, too much).
        """
        async with self._client.room(_OVERHEAD * len(encoded)):
            try:
                evaluators = await self._large_evaluators()
                small, pieces = await evaluators.take_apart(
                    encoded, self.payload_bytes, redact=redact, within_ms=self._within_ms(encoded)
                )
            except EvaluatorsBusy as error:
                raise PayloadsUnavailable(str(error)) from None
            return await self._stored(namespace, run_id, small, pieces)

    async def _stored(self, namespace: str, run_id: bytes, small: bytes, pieces: list[bytes]) -> Any:
        payloads: list[Payload] = []
        for piece in pieces:
            digest = await asyncio.to_thread(hashlib.sha256, piece)
            payloads.append(Payload(Reference(digest.hexdigest(), len(piece)), piece))
        await self.keep(namespace, run_id, payloads)
        return orjson.loads(small)

    @asynccontextmanager
    async def resolved(
        self, namespace: str, arguments: dict[str, Any], raw: Collection[str] = ()
    ) -> AsyncIterator[dict[str, Any]]:
        """A call's arguments with contents in place of references, in `Deferred` too, for as long as the block lasts.

        Those named in `raw` become `RawJson` when they are references. Raises PayloadMissing, PayloadsUnavailable.
        """
        references = _references(arguments)
        if not references:
            yield arguments
            return
        async with self._client.room(_OVERHEAD * sum(reference.size for reference in references)):
            unread: dict[str, Any] = {}
            for name in raw:
                reference = reference_of(arguments.get(name))
                if reference is not None:
                    unread[name] = RawJson(await self._client.get(namespace, reference))
            others = {name: value for name, value in arguments.items() if name not in unread}
            contents = {}
            for reference in _references(others):
                data = await self._client.get(namespace, reference)
                contents[reference] = await asyncio.to_thread(orjson.loads, data)
                del data
            yield {**_with_contents(others, contents), **unread}

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
        references = references_in([question.input, question.variables])
        async with self._client.room(_OVERHEAD * sum(reference.size for reference in references)):
            fragments: dict[Reference, Any] = {
                reference: orjson.Fragment(await self._client.get(namespace, reference)) for reference in references
            }
            evaluators = await self._large_evaluators()
            if question.schema is not None:
                body = orjson.dumps(_with_contents(question.input, fragments))
                fragments.clear()
                return await evaluators.mismatch(body, question.schema, within_ms=self._within_ms(body))
            body = orjson.dumps(_with_contents([question.input, question.variables, question.now_ms], fragments))
            fragments.clear()
            small, pieces = await evaluators.take_apart(
                body,
                self.payload_bytes,
                source=question.source,
                names=sorted(question.variables),
                within_ms=self._within_ms(body),
            )
            del body
            return await self._stored(namespace, run_id, small, pieces)

    async def _answer(self, namespace: str, run_id: bytes, answer: bytes) -> Any:
        if len(answer) <= self.payload_bytes:
            return single(orjson.loads(answer))
        async with self._client.room(_OVERHEAD * len(answer)):
            evaluators = await self._large_evaluators()
            body = b"[%s,{},0]" % answer
            small, pieces = await evaluators.take_apart(
                body, self.payload_bytes, source=_SINGLE, within_ms=self._within_ms(body)
            )
            return await self._stored(namespace, run_id, small, pieces)

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

    def _within_ms(self, body: bytes) -> int:
        """The time that a question of so many bytes may take."""
        return self._limits.evaluate_ms + _PER_MIB_MS * len(body) // 2**20

    async def _large_evaluators(self) -> EvaluatorPool:
        async with self._starting:
            if self._evaluators is None:
                limits = self._limits
                pool = EvaluatorPool(
                    _LANES, limits.evaluate_large_ms, limits.evaluate_large_bytes, 2 * limits.value_bytes, large=True
                )
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
