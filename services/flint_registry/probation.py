"""How long a worker is quarantined, and what comes after it. Pure.

aside (quarantine_s) ──▶ on probation, as long again ──▶ forgotten
          ▲                        └── an outlier again: twice as long, at most longest_s
          └────────────────────────────┘
"""

from __future__ import annotations

from typing import Final

from flint_contracts.gen.flint.registry.v1 import registry_pb2
from flint_ops.config import QuarantineSettings

__all__ = ["length_ms", "put_aside", "put_on_probation"]

_LONGEST_REASON: Final = 500
_MOST_TIMES: Final = 32
"""More doublings than this make no difference to any length that can be set."""


def length_ms(settings: QuarantineSettings, times: int) -> int:
    """Of the quarantine, and of the probation after it, when it is the `times`-th in a row (from 1)."""
    doublings = min(max(times, 1), _MOST_TIMES) - 1
    return int(1000 * min(settings.quarantine_s * 2**doublings, settings.longest_s))


def put_aside(
    card: registry_pb2.WorkerCard,
    reason: str,
    before: registry_pb2.Quarantine | None,
    settings: QuarantineSettings,
    at_ms: int,
) -> registry_pb2.Quarantine:
    """The quarantine of an outlier. `before`: what is known of an earlier one; `at_ms`: epoch milliseconds."""
    told = registry_pb2.Quarantine(
        incarnation=card.incarnation,
        worker_id=card.worker_id,
        pool=card.pool,
        region=card.region,
        reason=reason[:_LONGEST_REASON],
        times=1 + (before.times if before is not None else 0),
    )
    told.time.FromMilliseconds(at_ms)
    if settings.quarantine_s:
        told.state = registry_pb2.Quarantine.STATE_ASIDE
        told.end_time.FromMilliseconds(at_ms + length_ms(settings, told.times))
    return told


def put_on_probation(
    told: registry_pb2.Quarantine, settings: QuarantineSettings, at_ms: int
) -> registry_pb2.Quarantine:
    """What is known of a worker whose quarantine has ended."""
    back = registry_pb2.Quarantine()
    back.CopyFrom(told)
    back.state = registry_pb2.Quarantine.STATE_PROBATION
    back.end_time.FromMilliseconds(at_ms + length_ms(settings, told.times))
    return back
