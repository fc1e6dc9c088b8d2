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
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import orjson

from flint_bus.payloads import PayloadClient, PayloadMissing, PayloadsUnavailable, PayloadTooLarge
from flint_bus.room import Room
from flint_core.branches import concatenated, payload_of
from flint_core.effects import Deferred, Evaluate
from flint_core.expressions import ExpressionFault
from flint_core.outlines import Outline
from flint_core.payloads import (
    Payload,
    Reference,
    holds_reference,
    reference_of,
    references_in,
    references_in_json,
    splice,
)
from flint_jq import EvaluationFailed, EvaluatorPool, EvaluatorsBusy
from flint_jq.pool import single
from flint_ops.config import LimitSettings
from flint_ops.logging import get_logger
from flint_worker.executors import RawJson
from flint_worker.outlines import Outlines, compiled
from flint_worker.relief import Relief

__all__ = ["Values"]

_log = get_logger("flint_worker.values")

_SINGLE: Final = 'if length > 1 then error("the expression has more than one result") else .[0] end'
_LANES: Final = 2
_PER_MIB_MS: Final = 500
"""Time of a question for each MiB, beyond that of an expression on a small value."""
_MOST_REFERENCES: Final = 1_000
"""Stored values that one evaluation or call may need."""
_MOST_VALUES: Final = 4
"""They have at most so many times `limits.value_bytes` together."""
_MOST_DEPTH: Final = 8
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
        self._relief = Relief()
        self._outlines = Outlines(self._make_outline, limits.outlines_bytes, limits.payload_bytes)
        # Of the whole, half is for arguments of running calls; what is left is for outcomes and evaluations.
        self._calls = Room(limits.values_in_memory_bytes // 2)
        self._room = Room(limits.values_in_memory_bytes - limits.values_in_memory_bytes // 2)

    @asynccontextmanager
    async def _holding(self, room: Room, size: int) -> AsyncIterator[None]:
        """Room for a large value while the block lasts; what it took is given back to the system afterwards."""
        async with room.hold(size):
            try:
                yield
            finally:
                self._relief.soon()

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
        self._relief.close()
        if self._evaluators is not None:
            await self._evaluators.close()

    async def keep(self, namespace: str, run_id: bytes, payloads: list[Payload]) -> None:
        """Returns when all are stored durably. Raises PayloadsUnavailable."""
        for payload in payloads:
            await self._client.put(namespace, payload, run_id, strict=False)

    async def spill(self, namespace: str, run_id: bytes, encoded: bytes, redact: Sequence[str] = ()) -> Any:
        """A large value, JSON, as it may stand in the state; what had to leave it is stored.

        `redact`: texts that are replaced first. Raises PayloadsUnavailable, EvaluationFailed (not JSON, too much).
        """
        async with self._holding(self._room, _OVERHEAD * len(encoded)):
            try:
                evaluators = await self._large_evaluators()
                small, pieces = await evaluators.take_apart(
                    encoded, self.payload_bytes, redact=redact, within_ms=self._within_ms(encoded)
                )
            except EvaluatorsBusy as error:
                raise PayloadsUnavailable(str(error)) from None
            return await self._stored(namespace, run_id, small, pieces)

    async def _stored(
        self, namespace: str, run_id: bytes, small: bytes, pieces: list[bytes], *, strict: bool = True
    ) -> Any:
        for piece in pieces:
            digest = await asyncio.to_thread(hashlib.sha256, piece)
            payload = Payload(Reference(digest.hexdigest(), len(piece)), piece)
            await self._client.put(namespace, payload, run_id, strict=strict)
        return orjson.loads(small)

    @asynccontextmanager
    async def _contents(
        self, room: Room, namespace: str, named: Mapping[Reference, int]
    ) -> AsyncIterator[dict[Reference, bytes]]:
        """The JSON of those that are named (how often), with contents in place of the references in it, to any depth.

        Raises PayloadMissing, PayloadTooLarge, PayloadsUnavailable. How much room it takes is known only when those
        that hold others were read: then all is let go and asked for again, since whoever waits must hold nothing.
        """
        known = dict.fromkeys(named)
        need = sum(reference.size for reference in known)
        depth = 0
        while True:
            self._within(need, len(known), depth)
            async with self._holding(room, _OVERHEAD * need):
                texts = {reference: await self._client.get(namespace, reference) for reference in known}
                inner = {r: await asyncio.to_thread(references_in_json, texts[r]) for r in known}
                fresh = [part for parts in inner.values() for part in parts if part not in known]
                if fresh:
                    texts.clear()
                    depth += 1
                    known |= dict.fromkeys(fresh)
                    need = sum(reference.size for reference in known)
                    continue
                if any(inner.values()):
                    sizes: dict[Reference, int] = {}
                    total = sum(times * _expanded(reference, inner, sizes) for reference, times in named.items())
                    if total > need:
                        texts.clear()
                        need = total
                        continue
                    # Those without others come first: an expanded size grows from part to whole.
                    for reference in sorted(sizes, key=sizes.__getitem__):
                        if inner[reference]:
                            texts[reference] = await asyncio.to_thread(splice, texts[reference], texts)
                wanted = {reference: texts[reference] for reference in named}
                texts.clear()  # whoever is given them decides how long they stay
                yield wanted
                return

    def _within(self, size: int, references: int, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise PayloadTooLarge(f"values hold references to others more than {_MOST_DEPTH} levels deep")
        if references > _MOST_REFERENCES:
            raise PayloadTooLarge(f"the value comes from {references} stored ones; the limit is {_MOST_REFERENCES}")
        if size > _MOST_VALUES * self.value_bytes:
            limit = _MOST_VALUES * self.value_bytes
            raise PayloadTooLarge(f"with the contents of references the value has {size} bytes; the limit is {limit}")

    @asynccontextmanager
    async def resolved(
        self, namespace: str, arguments: dict[str, Any], raw: Collection[str] = ()
    ) -> AsyncIterator[dict[str, Any]]:
        """A call's arguments with contents in place of references, in `Deferred` too, for as long as the block lasts.

        Those named in `raw` become `RawJson` when they are references. Raises PayloadMissing, PayloadTooLarge,
        PayloadsUnavailable. They have a room of their own: a call may take hours, and what comes of others is not to
        wait for its end.
        """
        references = _references(arguments)
        if not references:
            yield arguments
            return
        async with self._contents(self._calls, namespace, dict.fromkeys(references, 1)) as texts:
            unread: dict[str, Any] = {}
            for name in raw:
                reference = reference_of(arguments.get(name))
                if reference is not None:
                    unread[name] = RawJson(texts[reference])
            others = {name: value for name, value in arguments.items() if name not in unread}
            contents = {}
            for reference in _references(others):
                contents[reference] = await asyncio.to_thread(orjson.loads, texts[reference])
            texts.clear()
            yield {**_with_contents(others, contents), **unread}

    async def evaluate(self, namespace: str, run_id: bytes, question: Evaluate) -> Any:
        """The answer to the machine's question; a large one is stored and answered by reference.

        Raises EvaluationFailed, and EvaluatorsBusy when it could not be answered for now.
        """
        try:
            if question.operation:
                return await self._operate(namespace, run_id, question)
            if question.schema is not None:
                return await self._evaluate_large(namespace, run_id, question)
            if not holds_reference([question.input, question.variables]):
                return await self._answer(namespace, run_id, await self._evaluate_small(question))
            outlined = await self._outlines.read(namespace, question)
            if outlined is None:
                return await self._evaluate_large(namespace, run_id, question)
            return await self._answer(namespace, run_id, await self._evaluate_outlined(outlined))
        except (PayloadMissing, PayloadTooLarge) as error:
            raise EvaluationFailed("runtime", str(error)) from None
        except PayloadsUnavailable as error:
            raise EvaluatorsBusy(str(error)) from None

    async def _evaluate_small(self, question: Evaluate) -> bytes:
        body = orjson.dumps([question.input, question.variables, question.now_ms])
        return await self._small.evaluate_json(question.source, sorted(question.variables), body)

    async def _evaluate_outlined(self, question: Evaluate) -> bytes:
        """The same for a plain expression, which needs no other process, but for the words of its failure."""
        expression = compiled(question.source, tuple(sorted(question.variables)))
        if expression is not None and expression.fast:
            with suppress(ExpressionFault):
                return orjson.dumps([expression.evaluate(question.input, question.variables, question.now_ms)])
        return await self._evaluate_small(question)

    async def _make_outline(self, namespace: str, reference: Reference, room: int) -> Outline | None:
        """Raises PayloadMissing, PayloadsUnavailable, EvaluatorsBusy."""
        async with self._holding(self._room, _OVERHEAD * reference.size):
            text = await self._client.get(namespace, reference)
            evaluators = await self._large_evaluators()
            try:
                return await evaluators.outline(text, room, within_ms=self._within_ms(text))
            except EvaluationFailed as failure:  # whoever needs the whole hears of it
                _log.warning("no_outline", sha256=reference.sha256, bytes=reference.size, error=str(failure))
                return None

    async def _operate(self, namespace: str, run_id: bytes, question: Evaluate) -> Any:
        """Divides a collection among branches, or joins what these gave, without looking into it."""
        named = references_in(question.input)
        size = sum(reference.size for reference in named)
        if size > self.value_bytes:
            raise PayloadTooLarge(f"the value has {size} bytes; the limit is {self.value_bytes}")
        async with self._holding(self._room, _OVERHEAD * size):
            texts = {reference: await self._client.get(namespace, reference) for reference in named}
            if question.operation == "divide":
                text = texts.pop(named[0])
                evaluators = await self._large_evaluators()
                small, pieces = await evaluators.divide(
                    text, question.variables["spread"], self.payload_bytes, within_ms=self._within_ms(text)
                )
                del text
                return await self._stored(namespace, run_id, small, pieces, strict=False)
            whole = concatenated(_array(part, texts) for part in question.input)
            texts.clear()
            if len(whole) <= self.payload_bytes:
                return orjson.loads(whole)
            payload = await asyncio.to_thread(payload_of, whole)
            await self.keep(namespace, run_id, [payload])
            return payload.reference.to_json()

    async def _evaluate_large(self, namespace: str, run_id: bytes, question: Evaluate) -> Any:
        named = references_in_json(orjson.dumps([question.input, question.variables]))
        async with self._contents(self._room, namespace, named) as texts:
            fragments: dict[Reference, Any] = {reference: orjson.Fragment(texts.pop(reference)) for reference in named}
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
        async with self._holding(self._room, _OVERHEAD * len(answer)):
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
        """The processor time that a question of so many bytes may take."""
        return self._limits.evaluate_ms + _PER_MIB_MS * len(body) // 2**20

    async def _large_evaluators(self) -> EvaluatorPool:
        async with self._starting:
            if self._evaluators is None:
                limits = self._limits
                pool = EvaluatorPool(
                    _LANES,
                    limits.evaluate_large_ms,
                    limits.evaluate_large_bytes,
                    2 * limits.value_bytes,
                    large=True,
                    patience=limits.evaluate_patience,
                    idle_s=limits.evaluate_large_idle_s,
                    keep_bytes=limits.evaluate_large_keep_bytes,
                )
                await pool.start()
                self._evaluators = pool
            return self._evaluators


def _expanded(
    reference: Reference,
    inner: Mapping[Reference, Mapping[Reference, int]],
    sizes: dict[Reference, int],
    depth: int = 0,
) -> int:
    """Bytes of the value with contents in place of references, noted in `sizes`; at least one more than any part has.

    A value cannot hold itself: it is named by its hash.
    """
    if depth > _MOST_DEPTH:
        raise PayloadTooLarge(f"values hold references to others more than {_MOST_DEPTH} levels deep")
    size = sizes.get(reference)
    if size is None:
        parts = (times * _expanded(part, inner, sizes, depth + 1) for part, times in inner[reference].items())
        size = sizes[reference] = reference.size + sum(parts)
    return size


def _array(part: Any, texts: Mapping[Reference, bytes]) -> bytes:
    """The JSON of an array, or of what a reference to one stands for."""
    reference = reference_of(part)
    return orjson.dumps(part) if reference is None else texts[reference]


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
