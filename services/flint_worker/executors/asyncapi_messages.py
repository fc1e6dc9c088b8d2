"""Messages on their way: what is published, what comes in, and which of those that come are kept until when."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol

import orjson

from flint_core.durations import DurationError, parse_duration
from flint_core.expressions import Expression, ExpressionFault, ExpressionSyntaxError, compile_expression
from flint_core.problems import ProblemType
from flint_jq import EvaluationFailed, EvaluatorPool
from flint_ops.clock import now_ms
from flint_worker.executors.asyncapi_documents import Place
from flint_worker.executors.faults import Fault, invalid

__all__ = ["Consumption", "Inbound", "Link", "Outbound", "Stream", "decoded", "encoded"]

_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message to publish. `key`: the idempotency key, for protocols that have a place for it."""

    body: bytes
    content_type: str
    headers: dict[str, str]
    key: str


@dataclass(slots=True)
class Inbound:
    """A message that came. `token` is the protocol's own, to say that it was taken."""

    payload: Any
    headers: dict[str, Any]
    size: int
    correlation_id: str | None = None
    token: Any = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """As the specification describes an inbound message."""
        document: dict[str, Any] = {"payload": self.payload, "headers": self.headers}
        if self.correlation_id is not None:
            document["correlationId"] = self.correlation_id
        return document


class Stream(Protocol):
    """Messages as they come. Every method raises Fault for what goes wrong."""

    async def next(self) -> Inbound | None:
        """The next message; None when the other side has ended the stream."""
        ...

    async def drop(self, message: Inbound) -> None:
        """The message was looked at and is not wanted: it need not come again."""
        ...

    async def accept(self) -> None:
        """All messages that were not dropped are kept: they need not come again. Called once, at the end."""
        ...


class Link(Protocol):
    """One protocol's way to a place. Every method raises Fault for what goes wrong; deadlines are the caller's."""

    async def publish(self, place: Place, message: Outbound, policy: Mapping[str, Any] | None) -> dict[str, Any]:
        """Sends it and returns once the other side has acknowledged it; more about that, if there is any."""
        ...

    def subscribe(
        self, place: Place, policy: Mapping[str, Any] | None, window: int
    ) -> AbstractAsyncContextManager[Stream]:
        """A stream of messages, at most `window` of them neither dropped nor accepted.

        What was neither when the block ends comes again to somebody, where the protocol knows acknowledgements.
        """
        ...


def encoded(message: dict[str, Any], content_type: str, key: str, trace: str) -> Outbound:
    """A message of the arguments, ready to send."""
    payload = message.get("payload")
    headers = {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in message.get("headers", {}).items()
        if value is not None
    }
    if trace:
        headers.setdefault("traceparent", trace)
    if payload is None:
        return Outbound(b"", content_type, headers, key)
    if isinstance(payload, str):
        return Outbound(payload.encode(), content_type or "text/plain; charset=utf-8", headers, key)
    if content_type and "json" not in content_type.lower():
        raise invalid(f"/message/payload: the document wants {content_type[:100]}; only text can be sent as that")
    return Outbound(orjson.dumps(payload), content_type or _JSON, headers, key)


def decoded(body: bytes, content_type: str) -> Any:
    """JSON where the message says so or is JSON; else text; else base64. Nothing is null."""
    if not body:
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if "json" in content_type.lower():
            raise Fault(ProblemType.COMMUNICATION, 502, "A message is not the JSON it claims to be") from None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()


@lru_cache(maxsize=512)
def _compiled(source: str, names: frozenset[str]) -> Expression:
    return compile_expression(source, variables=names)


class Consumption:
    """What a subscription keeps, and when it has enough."""

    def __init__(
        self, subscription: dict[str, Any], evaluators: EvaluatorPool | None, most: int, limit_bytes: int
    ) -> None:
        """Raises Fault for a duration that is none."""
        consume = subscription["consume"]
        self._filter = subscription.get("filter")
        self._while = consume.get("while")
        self._until = consume.get("until")
        self._amount: int | None = consume.get("amount")
        self._evaluators = evaluators
        self._most = most
        self._limit_bytes = limit_bytes
        self._size = 0
        self.messages: list[dict[str, Any]] = []
        self.for_s: float | None = None
        if "for" in consume:
            try:
                self.for_s = parse_duration(consume["for"]).length_ms(int(time.time() * 1000)) / 1000
            except DurationError as error:
                raise invalid(f"/subscription/consume/for: {error}") from None

    @property
    def window(self) -> int:
        """How many messages may be on their way at once."""
        return min(self._amount or self._most, self._most)

    async def judge(self, message: Inbound) -> tuple[bool, bool]:
        """Whether the message is kept, and whether that is enough. Raises Fault."""
        document = message.to_json()
        if self._filter is not None and not await self._holds(self._filter, document):
            return False, False
        if self._while is not None and not await self._holds(self._while, document):
            return False, True
        self._size += message.size
        if len(self.messages) >= self._most or self._size > self._limit_bytes:
            detail = f"more than {self._most} messages (worker.stream_messages) or {self._limit_bytes} bytes"
            raise Fault(ProblemType.PAYLOAD_TOO_LARGE, 413, "The subscription consumed too much", detail)
        self.messages.append(document)
        if self._amount is not None and len(self.messages) >= self._amount:
            return True, True
        return True, self._until is not None and await self._holds(self._until, document)

    async def _holds(self, condition: dict[str, Any], document: dict[str, Any]) -> bool:
        """A condition about one message: `.` is the message, `$messages` those kept so far."""
        source, variables = condition["expression"], dict(condition["variables"])
        try:
            expression = _compiled(source, frozenset({*variables, "messages"}))
            if "messages" in expression.names:
                variables["messages"] = self.messages
            if expression.fast:
                result = expression.evaluate(document, variables, now_ms())
            elif self._evaluators is None:
                raise Fault(ProblemType.EXPRESSION, 400, "This worker evaluates no jq")
            else:
                used = {name: variables[name] for name in expression.names if name in variables}
                result = await self._evaluators.evaluate(expression.source, document, used, now_ms())
        except (ExpressionFault, ExpressionSyntaxError, EvaluationFailed) as error:
            detail = f"«{source[:200]}»: {type(error).__name__}"
            raise Fault(ProblemType.EXPRESSION, 400, "An expression about a message failed", detail) from None
        return result is not None and result is not False
