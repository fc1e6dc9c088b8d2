"""What is explored: all rules on, with so many faults; and each rule off."""

from __future__ import annotations

from typing import Any

from model.branches.state import BranchRules, without

__all__ = ["BROKEN", "COMPLETE", "FULL"]

# One cancel and one failure at most, beside takeovers and lost nudges.
COMPLETE: dict[str, dict[str, Any]] = {
    "branches-2": {"faults": 2},
    "branches-wide-2": {"window": 2, "faults": 2},
    "branches-endless-2": {"window": 2, "faults": 2, "endless": True},
}
FULL: dict[str, dict[str, Any]] = {
    "branches-three-3": {"chunks": 3, "window": 2, "faults": 3},
    "branches-three-endless-3": {"chunks": 3, "window": 2, "faults": 3, "endless": True},
}

# Which promise breaks; without which rules; with what besides.
BROKEN: dict[str, tuple[str, BranchRules, dict[str, Any]]] = {
    "request_id": ("B1", without("request_id"), {}),
    "start_open": ("B4", without("start_open"), {}),
    "lowest": ("B3", without("lowest"), {"faults": 2}),
    "window": ("B3", without("window"), {}),
    "all_ended": ("B2", without("all_ended"), {}),
    "decided": ("I5", without("decided"), {"window": 2, "endless": True}),
    "message_key": ("B2", without("message_key", "answer_open"), {}),
    "answer_open": ("B2", without("answer_open", "message_key"), {}),
    "unserved": ("I5", without("unserved"), {}),
    "close_serves": ("I5", without("close_serves"), {"window": 2, "endless": True}),
    "cancel_chunks": ("I5", without("cancel_chunks"), {"window": 2, "endless": True}),
}
