"""How each pool is scaled: what an operator set through the API, over the configuration, over its defaults.

States: **stale** → read from PostgreSQL every few seconds, and at once after a change → **known**. Without PostgreSQL
the last that was read stays in force; before the first reading the configuration alone is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_elastic import PolicyInvalid, PoolPolicy
from flint_ops.config import FleetSettings
from flint_ops.config.pools import merged
from flint_ops.config.settings import PoolSettings
from flint_ops.logging import get_logger
from flint_store import scaling

__all__ = ["DEFAULT_POOL", "USUAL_SLOTS", "Policies", "PoolKey", "PoolPlan", "policy_of"]

DEFAULT_POOL: Final = "default"
USUAL_SLOTS: Final = 500
"""Slots of a worker of which nothing is known yet: the default of worker.slots."""

PoolKey: TypeAlias = tuple[str, str]
"""Region and pool."""

_log = get_logger("flint_registry.scaling")


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """How one pool is scaled now."""

    settings: PoolSettings
    own: bool
    """Whether somebody configured it, so that it is scaled."""

    @property
    def mode(self) -> str:
        """fixed, shadow or automatic."""
        return self.settings.mode


class Policies:
    """What is in force for each pool. Used from one event loop."""

    def __init__(self, settings: FleetSettings, engine: AsyncEngine) -> None:
        self._settings = settings
        self._engine = engine
        self._rows: dict[PoolKey, scaling.PoolRow] = {}

    async def refresh(self) -> None:
        """Reads what operators set. Raises StoreUnavailable."""
        self._rows = {(row.region, row.pool): row for row in await scaling.pools(self._engine)}

    def pools(self) -> set[PoolKey]:
        """The pools that somebody configured; the default pool is one of them."""
        named = {(self._settings.region, name) for name in (DEFAULT_POOL, *self._settings.pools)}
        return named | {key for key, row in self._rows.items() if row.settings}

    def plan(self, key: PoolKey) -> PoolPlan:
        """What is in force for a pool."""
        row = self._rows.get(key)
        return PoolPlan(merged(self._settings, key[1], row.settings if row is not None else {}), key in self.pools())

    def own(self, key: PoolKey) -> Mapping[str, Any]:
        """What an operator set for a pool."""
        row = self._rows.get(key)
        return {} if row is None else row.settings

    def learned(self, key: PoolKey) -> Mapping[str, Any] | None:
        """What an earlier leader learned of a pool."""
        row = self._rows.get(key)
        return None if row is None else row.learned


def policy_of(settings: PoolSettings, seen_slots: int, decide_s: float) -> PoolPolicy:
    """The policy for `decide`. `seen_slots`: of a live worker of the pool, 0 when there is none."""
    policy = PoolPolicy(
        minimum=settings.minimum_workers,
        maximum=settings.maximum_workers,
        slots_per_worker=settings.worker_slots or seen_slots or USUAL_SLOTS,
        buffer_slots=settings.buffer_slots,
        standby_slots=settings.standby_slots,
        target_wait_s=settings.target_wait_s,
        idle_before_end_s=settings.idle_s,
        cooldown_down_s=min(settings.cooldown_s, settings.idle_s),
        dedicated_to=settings.dedicated_to,
        shadow=settings.mode == "shadow",
    )
    try:
        return replace(policy, startup_s=max(policy.startup_s, decide_s))
    except PolicyInvalid as error:
        _log.error("policy_invalid", error=str(error))
        return policy
