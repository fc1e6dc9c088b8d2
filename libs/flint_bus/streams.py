"""JetStream's administrative API: creating, reading and trimming streams."""

from __future__ import annotations

import base64
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from flint_bus.errors import StreamApiError, StreamMissing
from flint_bus.messages import StoredMessage
from flint_bus.subjects import JOBS_STREAM, journal_filter, journal_stream
from flint_ops.config import JournalSettings

__all__ = ["StreamAdmin", "StreamState", "call_api"]

_API: Final = "$JS.API."
_NO_MESSAGE: Final = 10037
_NO_STREAM: Final = 10059
_OTHER_CONFIG: Final = 10058
_ADMIN_TIMEOUT_S: Final = 10.0
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream at one moment. `created` names its incarnation: deleting and creating it again changes it."""

    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int = 0
    created: str = ""


class Request(Protocol):
    """`Bus.request`."""

    def __call__(self, subject: str, data: bytes, timeout_s: float) -> Awaitable[bytes]:
        """Asks and waits for one answer."""
        ...


async def call_api(request: Request, name: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    """One call of JetStream's API. Raises StreamApiError, and what `request` raises."""
    answer = await request(_API + name, orjson.dumps(body) if body is not None else b"", timeout_s)
    document: dict[str, Any] = orjson.loads(answer)
    error = document.get("error")
    if error:
        raise StreamApiError(
            int(error.get("code", 0)), int(error.get("err_code", 0)), str(error.get("description", ""))
        )
    return document


class StreamAdmin:
    """See `Bus`: each method of the same name."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def create_journal(self, generation: int, settings: JournalSettings) -> None:
        """Limits retention and discard new (R8): what does not fit is refused, never pushed out."""
        await self._create(
            {
                "name": journal_stream(generation),
                "subjects": [journal_filter(generation)],
                "retention": "limits",
                "storage": "file",
                "discard": "new",
                "max_age": settings.max_age_s * _NS,
                "max_bytes": settings.max_bytes,
                "duplicate_window": min(settings.duplicate_window_s, settings.max_age_s) * _NS,
                "num_replicas": settings.replicas,
            }
        )

    async def create_jobs(self, settings: JournalSettings) -> None:
        """Jobs are delivery only: the oldest leave by age, and for new ones when there is no room.

        A job that left before its worker read it is found by its owner, who asks for legs that make no progress.
        """
        await self._create(
            {
                "name": JOBS_STREAM,
                "subjects": ["flint.jobs.>"],
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "max_age": settings.jobs_max_age_s * _NS,
                "max_bytes": settings.jobs_max_bytes,
                "duplicate_window": min(settings.duplicate_window_s, settings.jobs_max_age_s) * _NS,
                "num_replicas": settings.replicas,
            }
        )

    async def _create(self, config: dict[str, Any]) -> None:
        try:
            await call_api(self._request, f"STREAM.CREATE.{config['name']}", config, _ADMIN_TIMEOUT_S)
        except StreamApiError as error:
            if error.err_code != _OTHER_CONFIG:
                raise
            await call_api(self._request, f"STREAM.UPDATE.{config['name']}", config, _ADMIN_TIMEOUT_S)

    async def state(self, stream: str, timeout_s: float) -> StreamState | None:
        """None: no such stream."""
        try:
            document = await call_api(self._request, f"STREAM.INFO.{stream}", None, timeout_s)
        except StreamApiError as error:
            if error.err_code == _NO_STREAM:
                return None
            raise
        state = document["state"]
        return StreamState(
            first_sequence=int(state["first_seq"]),
            last_sequence=int(state["last_seq"]),
            messages=int(state["messages"]),
            bytes=int(state.get("bytes", 0)),
            created=str(document.get("created", "")),
        )

    async def last_message(self, stream: str, subject: str, timeout_s: float) -> StoredMessage | None:
        """Through the leader, not by direct get: a replica may be behind."""
        try:
            document = await call_api(self._request, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout_s)
        except StreamApiError as error:
            if error.err_code == _NO_MESSAGE:
                return None
            if error.err_code == _NO_STREAM:
                raise StreamMissing(f"no stream {stream}") from error
            raise
        message = document["message"]
        headers = message.get("hdrs")
        return StoredMessage(
            subject=str(message["subject"]),
            sequence=int(message["seq"]),
            data=base64.b64decode(message.get("data", "")),
            raw_headers=base64.b64decode(headers) if headers else None,
        )

    async def next_sequence(self, stream: str, subject: str, sequence: int, timeout_s: float) -> int | None:
        """Through the leader, like `last_message`."""
        body = {"seq": sequence, "next_by_subj": subject}
        try:
            document = await call_api(self._request, f"STREAM.MSG.GET.{stream}", body, timeout_s)
        except StreamApiError as error:
            if error.err_code == _NO_MESSAGE:
                return None
            if error.err_code == _NO_STREAM:
                raise StreamMissing(f"no stream {stream}") from error
            raise
        return int(document["message"]["seq"])

    async def purge_up_to(self, stream: str, sequence: int, subject: str, timeout_s: float) -> int:
        """JetStream's `seq` is exclusive."""
        body: dict[str, Any] = {"seq": sequence + 1}
        if subject:
            body["filter"] = subject
        try:
            document = await call_api(self._request, f"STREAM.PURGE.{stream}", body, timeout_s)
        except StreamApiError as error:
            if error.err_code == _NO_STREAM:
                return 0
            raise
        return int(document.get("purged", 0))

    async def delete(self, stream: str, timeout_s: float) -> bool:
        """False: there was none."""
        try:
            await call_api(self._request, f"STREAM.DELETE.{stream}", None, timeout_s)
        except StreamApiError as error:
            if error.err_code == _NO_STREAM:
                return False
            raise
        return True
