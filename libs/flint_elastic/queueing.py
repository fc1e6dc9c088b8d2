"""How many slots a load needs. Pure.

The steady part is the queue with n servers (Erlang C), with the correction of Allen and Cunneen for arrivals and
services that are not exponential: the least n for which P(wait > target) stays within 5 %. Large loads use its limit
(Halfin and Whitt). The part for what already waits is arithmetic: n slots begin n - running legs at once and n/leg_s
more each second. Sources: A. O. Allen, "Probability, Statistics, and Queueing Theory", 2nd edition, 1990, sections 5.2
and 5.4; S. Halfin, W. Whitt, "Heavy-traffic limits for queues with many exponential servers", Operations Research 29
(1981).
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["late_share", "slots_for_backlog", "slots_for_load"]

_LATE: Final = 0.05
_LIMIT_FROM: Final = 500.0
_MOST_MARGIN: Final = 4.0


def late_share(slots: int, load: float, patience: float) -> float:
    """Share of legs that wait longer than `patience` mean leg times, of `load` Erlangs on `slots` slots; 1 when it
    never ends."""
    if load <= 0:
        return 0.0
    if slots <= load:
        return 1.0
    blocked = 1.0
    for servers in range(1, slots + 1):
        blocked = load * blocked / (servers + load * blocked)
    return _late(blocked, slots, load, patience)


def slots_for_load(load: float, target_wait_s: float, leg_s: float, variability: float = 1.0) -> int:
    """Fewest slots on which 95 of 100 legs of a steady load (Erlangs: arrivals per second times leg time) begin within
    the target.

    `variability`: mean of the squared coefficients of variation of gaps and leg times; 1 for exponential ones.
    """
    if load <= 0:
        return 0
    patience = target_wait_s / max(leg_s, 1e-6) / max(variability, 0.05)
    if load > _LIMIT_FROM:
        return math.ceil(load + _margin(load, patience) * math.sqrt(load))
    blocked, servers = 1.0, 0
    while True:
        servers += 1
        blocked = load * blocked / (servers + load * blocked)
        if servers > load and _late(blocked, servers, load, patience) <= _LATE:
            return servers


def slots_for_backlog(waiting: float, within_s: float, leg_s: float) -> float:
    """Slots, on top of those that running and arriving legs need, on which `waiting` legs all begin within a time."""
    return waiting / (1.0 + within_s / max(leg_s, 1e-6))


def _late(blocked: float, servers: int, load: float, patience: float) -> float:
    """Erlang C from Erlang B, times the share of those who wait that wait too long."""
    waits = servers * blocked / (servers - load * (1.0 - blocked))
    return waits * math.exp(-min(700.0, (servers - load) * patience))


def _margin(load: float, patience: float) -> float:
    """Least number of square roots of the load on top of it for which at most 5 % wait too long, by bisection."""
    least, most = 0.0, _MOST_MARGIN
    for _ in range(30):
        margin = (least + most) / 2
        density = math.exp(-margin * margin / 2) / math.sqrt(2 * math.pi)
        below = (1 + math.erf(margin / math.sqrt(2))) / 2
        waits = 1 / (1 + margin * below / density)
        if waits * math.exp(-min(700.0, margin * math.sqrt(load) * patience)) > _LATE:
            least = margin
        else:
            most = margin
    return most
