"""What is explored: all rules on, with so many faults; and each rule off."""

from __future__ import annotations

from typing import Any

from model.groups.state import GroupRules, without

__all__ = ["BROKEN", "COMPLETE", "FULL"]

_JOIN = {"joiners": 1}
_LEAVE = {"leaves": 1}

COMPLETE: dict[str, dict[str, Any]] = {
    "groups-1": {"legs": 2},
    "groups-join-1": {"joiners": 1},
    "groups-leave-1": {"leaves": 1, "from_start": True},
    "groups-key-1": {"joiners": 1, "kinds": ("key",)},
    "groups-2": {"faults": 2},
}
FULL: dict[str, dict[str, Any]] = {
    "groups-join-2": {"joiners": 1, "faults": 2},
    "groups-join-start-1": {"joiners": 1, "from_start": True},
    "groups-two-1": {"groups": 2},
    "groups-3": {"faults": 3},
}

# Which promise breaks; without which rules; how.
BROKEN: dict[str, tuple[str, GroupRules, dict[str, Any]]] = {
    "fence": ("M1", without("fence"), {}),
    "end_owner": ("M1", without("end_owner"), {}),
    "term": ("M4", without("term"), {}),
    "term_first": ("M4", without("term_first"), {}),
    "key_back": ("I5", without("key_back"), {}),
    "change": ("M3", without("change"), _JOIN),
    "settle": ("M1", without("settle"), _JOIN),
    "give_commit": ("M4", without("give_commit"), _JOIN),
    "create": ("M4", without("create"), _JOIN),
    "only_lease": ("M4", without("only_lease"), {"joiners": 2, "kinds": ("lease",), "legs": 0}),
    "folded": ("M2", without("folded"), _LEAVE),
    "reread": ("I5", without("reread"), {}),
    "sweep": ("I5", without("sweep"), {"from_start": True}),
    "fenced_sweep": ("I5", without("fenced_sweep"), {"joiners": 1, "kinds": ("key",)}),
    "step_down": ("I5", without("step_down"), {"faults": 2}),
}
