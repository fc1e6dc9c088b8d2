"""What the specification has and this version of Flint does not: refused by name, with a hint, never ignored."""

from __future__ import annotations

from typing import Final

__all__ = ["CALLS", "FLINT_HINTS", "TASKS", "TOP_LEVEL", "USE"]

TASKS: Final = {
    "listen": "waiting for events is not built yet; poll with `call: http` and `wait` in a loop",
}

CALLS: Final = {
    "openapi": "calling by OpenAPI document is not built yet; use `call: http` with the operation's method and address",
}

TOP_LEVEL: Final = {
    "schedule": "schedules are not built yet; start runs from cron with `flint run`",
}

USE: Final = {
    "authentications": "named authentications are not built yet; write `endpoint.authentication` at the call",
    "catalogs": "catalogs are not built yet; built in are http, sql, email and noop",
    "extensions": "extensions are not built yet; write the tasks before and after outright",
}

FLINT_HINTS: Final = {
    "pool": "naming a pool is not built yet",
    "region": "naming a region is not built yet",
    "idempotencyKey": "keys of one's own are not built yet; every call carries one made of run, step and iteration",
    "concurrency": "concurrency keys are not built yet",
    "cache": "caching is not built yet",
    "compensate": "compensation is not built yet; use `try` with a `catch`",
    "sla": "service levels are not built yet; use `timeout`",
    "residency": "residency is not built yet",
    "parallel": "parallel iterations are not built yet; use `fork` for a fixed number of branches",
    "timezone": "time zones are not built yet; calendar units count in UTC",
    "level": "a definition cannot choose its level yet; give one with each run that is started",
}
