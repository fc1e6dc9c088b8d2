"""Pools and the autoscaler's ledger: from and to the contract's messages."""

from __future__ import annotations

from typing import Any, Final

import orjson
from google.protobuf.field_mask_pb2 import FieldMask

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_sdk._messages import moment
from flint_sdk._models import Pool, PoolSettings, ScalingDecision

__all__ = ["decision_from", "fleet_pool_from", "pool_name", "update_request"]

_MODES: Final = fleet_pb2.PoolSettings.Mode
_PLAIN: Final = frozenset(
    {"minimum_workers", "maximum_workers", "buffer_slots", "standby_slots", "worker_slots", "dedicated_to"}
)
_TIMES: Final = {"target_wait_s": "target_wait", "idle_s": "idle_time"}


def pool_name(pool: str, region: str) -> str:
    """A pool's resource name; a whole one is left as it is."""
    return pool if "/" in pool else f"regions/{region}/pools/{pool}"


def fleet_pool_from(message: fleet_pb2.Pool) -> Pool:
    """From the contract's message."""
    told = message.settings
    return Pool(
        pool=message.pool,
        region=message.region,
        workers=message.workers,
        slots=message.slots,
        legs=message.legs,
        draining_workers=message.draining_workers,
        starting_workers=message.starting_workers,
        waiting_runs=message.waiting_runs,
        longest_wait_s=message.longest_wait.ToMilliseconds() / 1000,
        wanted_workers=message.wanted_workers if message.HasField("wanted_workers") else None,
        settings=PoolSettings(
            mode=_MODES.Name(told.mode).removeprefix("MODE_").lower(),
            minimum_workers=told.minimum_workers,
            maximum_workers=told.maximum_workers,
            target_wait_s=told.target_wait.ToMilliseconds() / 1000,
            idle_s=told.idle_time.ToMilliseconds() / 1000,
            buffer_slots=told.buffer_slots,
            standby_slots=told.standby_slots,
            worker_slots=told.worker_slots if told.HasField("worker_slots") else None,
            dedicated_to=told.dedicated_to,
        ),
    )


def update_request(name: str, changes: dict[str, Any]) -> fleet_pb2.UpdatePoolRequest:
    """The request that changes these members of PoolSettings; None goes back to the default. Raises ValueError."""
    settings = fleet_pb2.PoolSettings()
    paths = []
    for member, value in changes.items():
        if member == "mode":
            settings.mode = _MODES.Value(f"MODE_{value.upper()}") if value else _MODES.MODE_UNSPECIFIED
            paths.append("settings.mode")
        elif member in _TIMES:
            paths.append(f"settings.{_TIMES[member]}")
            if value is not None:
                getattr(settings, _TIMES[member]).FromMilliseconds(round(value * 1000))
        elif member in _PLAIN:
            paths.append(f"settings.{member}")
            if value is not None:
                setattr(settings, member, value)
        else:
            raise ValueError(f"a pool has no setting {member}")
    return fleet_pb2.UpdatePoolRequest(
        pool=fleet_pb2.Pool(name=name, settings=settings), update_mask=FieldMask(paths=paths)
    )


def decision_from(message: fleet_pb2.ScalingDecision) -> ScalingDecision:
    """From the contract's message."""
    kind = fleet_pb2.ScalingDecision
    verdict = kind.Verdict.Name(message.verdict).removeprefix("VERDICT_").lower() if message.verdict else ""
    return ScalingDecision(
        id=message.id,
        pool=message.pool,
        time=moment(message, "time"),
        action=kind.Action.Name(message.action).removeprefix("ACTION_").lower(),
        workers=message.workers,
        wanted_workers=message.wanted_workers,
        shadow=message.shadow,
        reason=message.reason,
        failure=message.failure,
        verdict=verdict.replace("_", " "),
        inputs=orjson.loads(message.inputs or b"null"),
        evaluation=orjson.loads(message.evaluation or b"null"),
    )
