"""Pools as callers see and change them: workers, the leader's outlook, settings, the ledger. Any replica answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from flint_bus import Bus, BusError
from flint_bus.subjects import FLEET_SETTINGS
from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.config import FleetSettings, PoolSettings
from flint_ops.config.pools import merged
from flint_ops.logging import get_logger
from flint_registry.scaling.outlook import Outlooks
from flint_registry.scaling.policies import Policies, PoolKey
from flint_registry.view import FleetView
from flint_rpc.errors import FieldViolation, component_unavailable, field_invalid
from flint_rpc.names import is_label
from flint_store import scaling
from flint_store.errors import StoreUnavailable

__all__ = ["Pools"]

_log = get_logger("flint_registry.pools")

_RETRY_AFTER_S: Final = 0.5
_MODE = fleet_pb2.PoolSettings.Mode
_MODES: Final = {"fixed": _MODE.MODE_FIXED, "shadow": _MODE.MODE_SHADOW, "automatic": _MODE.MODE_AUTOMATIC}

_FIELDS: Final = {
    "mode": "mode",
    "minimum_workers": "minimum_workers",
    "maximum_workers": "maximum_workers",
    "target_wait": "target_wait_s",
    "idle_time": "idle_s",
    "buffer_slots": "buffer_slots",
    "standby_slots": "standby_slots",
    "worker_slots": "worker_slots",
    "dedicated_to": "dedicated_to",
}
"""Fields of the contract and members of the configuration."""
_RANGES: Final = {
    "minimum_workers": (0, 10_000),
    "maximum_workers": (1, 10_000),
    "target_wait_s": (0.1, 3600),
    "idle_s": (1, 86_400),
    "buffer_slots": (0, 100_000),
    "standby_slots": (0, 100_000),
    "worker_slots": (1, 10_000),
}


class Pools:
    """Used from one event loop."""

    def __init__(
        self, settings: FleetSettings, engine: AsyncEngine, view: FleetView, outlooks: Outlooks, policies: Policies
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._view = view
        self._outlooks = outlooks
        self._policies = policies
        self.bus: Bus | None = None
        """Where changes are told to the schedulers; None while there is no connection."""

    async def listed(self) -> list[fleet_pb2.Pool]:
        """Pools with workers, with work, or configured, by region and name."""
        await self._read()
        keys = self._policies.pools() | set(self._outlooks.keys())
        keys |= {(worker.card.region, worker.card.pool) for worker in self._view.live()}
        return [self._shown(key) for key in sorted(keys)]

    async def update(
        self, region: str, pool: str, settings: fleet_pb2.PoolSettings, fields: Mapping[str, None]
    ) -> fleet_pb2.Pool:
        """Changes the named fields; those that are not set go back to the default. Raises Refused."""
        values, unset = _changes(settings, fields)
        wrong = [
            FieldViolation(f"pool.{name}", "must be a DNS label of 1 to 63 characters")
            for name, text in (("region", region), ("pool", pool))
            if not is_label(text)
        ]
        for name, value in values.items():
            least, most = _RANGES.get(name, (None, None))
            if least is not None and most is not None and not least <= value <= most:
                wrong.append(FieldViolation(f"pool.settings.{name}", f"must be {least:g} to {most:g}"))
        if values.get("dedicated_to") and not is_label(values["dedicated_to"]):
            wrong.append(FieldViolation("pool.settings.dedicated_to", "must be the name of a namespace, or empty"))
        if wrong:
            raise field_invalid(*wrong)
        await self._read()
        own = {**self._policies.own((region, pool)), **values}
        would_be = merged(self._settings, pool, {name: value for name, value in own.items() if name not in unset})
        if "maximum_workers" in own and would_be.minimum_workers > own["maximum_workers"]:
            raise field_invalid(("pool.settings.maximum_workers", "is below minimum_workers"))
        try:
            await scaling.set_pool(self._engine, region, pool, values, unset)
        except StoreUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error), retry_after_s=_RETRY_AFTER_S) from error
        await self._read()
        self._tell(region, pool)
        return self._shown((region, pool))

    async def decisions(self, request: registry_pb2.ListScalingDecisionsRequest) -> list[fleet_pb2.ScalingDecision]:
        """The ledger. Raises Refused."""
        try:
            rows = await scaling.list_decisions(
                self._engine,
                region=request.region,
                pool=request.pool,
                before=request.before_id,
                changes_only=request.changes_only,
                limit=max(1, min(1000, request.limit)),
            )
        except StoreUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error), retry_after_s=_RETRY_AFTER_S) from error
        return [_decision(row) for row in rows]

    def _tell(self, region: str, pool: str) -> None:
        if self.bus is None:
            return  # schedulers read again by themselves
        try:
            self.bus.publish_now(FLEET_SETTINGS, registry_pb2.PoolChanged(region=region, pool=pool).SerializeToString())
        except BusError as error:
            _log.info("pool_change_not_told", error=str(error))

    async def _read(self) -> None:
        try:
            await self._policies.refresh()
        except StoreUnavailable as error:
            raise component_unavailable("PostgreSQL", str(error), retry_after_s=_RETRY_AFTER_S) from error

    def _shown(self, key: PoolKey) -> fleet_pb2.Pool:
        region, name = key
        pool = fleet_pb2.Pool(name=f"regions/{region}/pools/{name}", pool=name, region=region)
        for worker in self._view.live():
            if (worker.card.region, worker.card.pool) != key:
                continue
            pool.workers += 1
            pool.slots += worker.card.slots
            pool.legs += worker.beat.legs if worker.beat is not None else 0
            pool.draining_workers += self._view.state(worker) == fleet_pb2.Worker.STATE_DRAINING
        outlook = self._outlooks.get(key)
        if outlook is not None:
            pool.starting_workers = outlook.starting_workers
            pool.waiting_runs = outlook.waiting_runs
            if outlook.waiting_runs:
                pool.longest_wait.FromMilliseconds(outlook.longest_wait_ms)
            if outlook.HasField("wanted_workers"):
                pool.wanted_workers = outlook.wanted_workers
        plan = self._policies.plan(key)
        pool.settings.CopyFrom(_settings(plan.settings, scaled=plan.own and self._settings.provisioner != "none"))
        return pool


def _settings(settings: PoolSettings, *, scaled: bool) -> fleet_pb2.PoolSettings:
    """As shown. A pool whose workers nobody could start is fixed, whatever its mode says."""
    mode = settings.mode if scaled or settings.mode == "shadow" else "fixed"
    told = fleet_pb2.PoolSettings(
        mode=_MODES[mode],
        minimum_workers=settings.minimum_workers,
        maximum_workers=settings.maximum_workers,
        buffer_slots=settings.buffer_slots,
        standby_slots=settings.standby_slots,
        dedicated_to=settings.dedicated_to,
    )
    if settings.worker_slots:
        told.worker_slots = settings.worker_slots
    told.target_wait.FromMilliseconds(round(settings.target_wait_s * 1000))
    told.idle_time.FromMilliseconds(round(settings.idle_s * 1000))
    return told


def _changes(settings: fleet_pb2.PoolSettings, fields: Mapping[str, None]) -> tuple[dict[str, Any], list[str]]:
    """Members to set and to unset. Raises Refused for a field that there is not."""
    values: dict[str, Any] = {}
    unset = []
    for field in fields:
        member = _FIELDS.get(field)
        if member is None:
            raise field_invalid(("update_mask", f"names no field of settings: {field[:100]}"))
        if field == "mode":
            name = next((word for word, mode in _MODES.items() if mode == settings.mode), None)
            if name is None:
                unset.append(member)
            else:
                values[member] = name
        elif not settings.HasField(field):  # type: ignore[arg-type]
            unset.append(member)
        elif field in ("target_wait", "idle_time"):
            values[member] = getattr(settings, field).ToMilliseconds() / 1000
        else:
            values[member] = getattr(settings, field)
    return values, unset


def _decision(row: scaling.DecisionRow) -> fleet_pb2.ScalingDecision:
    told = fleet_pb2.ScalingDecision(
        id=row.decision_id,
        pool=f"regions/{row.region}/pools/{row.pool}",
        action=row.action,
        workers=row.workers,
        wanted_workers=row.wanted,
        shadow=row.shadow,
        reason=row.reason,
        inputs=row.inputs,
        failure=row.failure,
        verdict=row.verdict,
        evaluation=row.evaluation,
    )
    told.time.FromDatetime(row.decided_at.astimezone(UTC).replace(tzinfo=None))
    return told
