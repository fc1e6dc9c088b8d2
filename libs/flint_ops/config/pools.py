"""A pool's settings: what an operator set for it over the configured ones over the defaults. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flint_ops.config.settings import FleetSettings, PoolSettings

__all__ = ["merged"]


def merged(settings: FleetSettings, pool: str, own: Mapping[str, Any]) -> PoolSettings:
    """A pool's settings: its own over the configured ones over the defaults.

    Members of `own` that this build does not know are passed over. Where bounds contradict each other the minimum
    counts.
    """
    members = settings.defaults.model_dump()
    if (configured := settings.pools.get(pool)) is not None:
        members |= {name: getattr(configured, name) for name in configured.model_fields_set}
    members |= {name: value for name, value in own.items() if name in members}
    members["maximum_workers"] = max(1, members["maximum_workers"], members["minimum_workers"])
    return PoolSettings.model_validate(members)
