"""What the executors that speak HTTP share: one client, and one memory of credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flint_ops.config import Settings
from flint_worker.authentication import Authenticator, PolicyAuth
from flint_worker.executors.client import HttpClient

__all__ = ["Outbound"]


class Outbound:
    """Made within a running event loop, once per worker."""

    def __init__(self, settings: Settings) -> None:
        self.client = HttpClient(settings)
        self.authenticator = Authenticator(self.client, settings)

    def auth(self, policy: Mapping[str, Any] | None) -> PolicyAuth | None:
        """A policy, if there is one, for requests of `client`."""
        return self.authenticator.auth(policy) if policy else None

    async def close(self) -> None:
        """Ends fetches under way and closes the connections; more than once is harmless."""
        await self.authenticator.close()
        await self.client.close()
