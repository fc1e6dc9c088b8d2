"""What the autoscaler asks of a provisioner, whatever machines stand behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "NoneProvisioner",
    "Order",
    "Provisioned",
    "Provisioner",
    "ProvisionerRefused",
    "ProvisionerUnavailable",
]


class ProvisionerUnavailable(Exception):
    """It does not answer now, or asks to be left alone for `retry_after_s`. What was wanted may have happened."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProvisionerRefused(Exception):
    """It will not do what was wanted: no room, no permission, a wrong template. Asking again soon is useless."""


@dataclass(frozen=True, slots=True)
class Order:
    """A worker to start. `worker_id` was never used before; `slots` 0 leaves them to the worker's settings."""

    worker_id: str
    pool: str
    region: str
    slots: int = 0


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A worker as its provisioner sees it. Times are Unix milliseconds."""

    worker_id: str
    pool: str
    region: str
    started_ms: int
    ended_ms: int = 0
    """When its process was seen to have ended; 0: it was not. Set only where nothing of it can run any more."""
    failed: bool = False
    """It ended, or cannot begin, without having been asked to."""
    detail: str = ""
    """How it ended, or why it does not begin, in words."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more, surely."""
        return self.ended_ms > 0


class Provisioner(Protocol):
    """Starts and ends workers. Any registry may use one at any time: state is the provisioner's own, so a new leader
    finds what the one before it started. Calls may be made side by side, have deadlines of their own, may be repeated,
    and raise ProvisionerUnavailable or ProvisionerRefused.
    """

    name: str
    """For logs and the ledger: local, kubernetes, none."""

    async def start(self, orders: Sequence[Order]) -> None:
        """Starts workers. Of what is refused in the middle, what came before it has been started."""

    async def list(self) -> list[Provisioned]:
        """What runs, and what ended lately."""

    async def end(self, worker_ids: Iterable[str]) -> None:
        """Asks workers to end; they drain. Also removes what is left of those that ended."""

    def watch(self) -> AsyncGenerator[Provisioned, None]:
        """Workers whose end was seen, those of the past first, for ever; the same one may come again."""

    async def close(self) -> None:
        """Gives up connections; workers run on."""


class NoneProvisioner:
    """No machines: workers are started by whoever runs Flint."""

    name = "none"

    async def start(self, orders: Sequence[Order]) -> None:
        """Refuses."""
        raise ProvisionerRefused("no provisioner is configured (fleet.provisioner)")

    async def list(self) -> list[Provisioned]:
        """Nothing."""
        return []

    async def end(self, worker_ids: Iterable[str]) -> None:
        """Nothing to do."""

    async def watch(self) -> AsyncGenerator[Provisioned, None]:
        """Never yields."""
        await asyncio.Event().wait()
        yield Provisioned("", "", "", 0)

    async def close(self) -> None:
        """Nothing to do."""
