"""Tokens that were fetched, remembered by policy, for all runs of a worker.

A token is `fresh` until shortly before it expires, then `aging`: still given out while one fetch for all gets the
next one; then it is `gone` and everybody waits for that fetch. A refused token is gone at once. A fetch goes on when
the call that began it is cancelled, for others may wait for it; it ends by its own deadline. Everything is lost with
the process, which costs a fetch.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Final

from flint_worker.authentication.authorities import Authorities
from flint_worker.authentication.grants import Grant, Granted, request_token
from flint_worker.authentication.policies import AuthenticationFailed, Policy
from flint_worker.executors.client import HttpClient

__all__ = ["TokenCache"]

_AGING: Final = 0.2
"""The part of its life in which a token is replaced, …"""
_AGING_S: Final = 60.0
"""… at most so long."""
_UNTOLD_S: Final = 300.0
"""How long a token is used whose life the authority does not tell."""


class _Entry:
    __slots__ = ("aging_at", "fetch", "gone_at", "refresh_token", "token")

    def __init__(self) -> None:
        self.token = ""
        self.aging_at = self.gone_at = 0.0  # monotonic, seconds
        self.refresh_token = ""
        self.fetch: asyncio.Task[str] | None = None


class TokenCache:
    """Belongs to one event loop. At most `entries` policies are remembered, the longest unused one is forgotten."""

    def __init__(self, client: HttpClient, entries: int, document_bytes: int) -> None:
        self._client = client
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._limit = entries
        self._authorities = Authorities(client, document_bytes)

    async def token(self, policy: Policy) -> str:
        """A token that is good for now. Raises AuthenticationFailed, or a Fault when the authority is not reached."""
        entry = self._entry(policy.key)
        now = time.monotonic()
        if entry.token and now < entry.aging_at:
            return entry.token
        if entry.fetch is None:
            entry.fetch = asyncio.create_task(self._fetch(entry, policy), name="flint-token")
            entry.fetch.add_done_callback(lambda done: _settle(entry, done))
        if entry.token and now < entry.gone_at:
            return entry.token
        return await asyncio.shield(entry.fetch)

    def refused(self, key: bytes, token: str) -> None:
        """A server did not accept this token. A newer one that was fetched meanwhile stays."""
        entry = self._entries.get(key)
        if entry is not None and entry.token == token:
            entry.token = ""

    async def close(self) -> None:
        """Ends the fetches under way."""
        fetches = [entry.fetch for entry in self._entries.values() if entry.fetch is not None]
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    def _entry(self, key: bytes) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            idle = [other for other, candidate in self._entries.items() if candidate.fetch is None and other != key]
            for other in idle[: max(0, len(self._entries) - self._limit)]:
                del self._entries[other]
        else:
            self._entries.move_to_end(key)
        return entry

    async def _fetch(self, entry: _Entry, policy: Policy) -> str:
        began = time.monotonic()
        granted = await self._granted(entry, policy)
        life_s = _UNTOLD_S if granted.life_s is None else granted.life_s
        entry.token = granted.token
        entry.refresh_token = granted.refresh_token or entry.refresh_token
        entry.gone_at = began + life_s
        entry.aging_at = entry.gone_at - min(life_s * _AGING, _AGING_S)
        return granted.token

    async def _granted(self, entry: _Entry, policy: Policy) -> Granted:
        """By the refresh token of an earlier answer, if it is still accepted; else by the policy's grant."""
        grant: Grant = await self._authorities.grant_for(policy)
        if entry.refresh_token:
            try:
                return await request_token(self._client, grant, entry.refresh_token)
            except AuthenticationFailed:
                entry.refresh_token = ""  # used up or withdrawn: the grant itself decides
        return await request_token(self._client, grant)


def _settle(entry: _Entry, done: asyncio.Task[str]) -> None:
    entry.fetch = None
    if not done.cancelled():
        done.exception()  # whoever waited has it; an aging token's fetch is tried again by the next call
