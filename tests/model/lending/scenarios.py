"""What is explored: all rules on; and each rule off."""

from __future__ import annotations

from typing import Any

from model.lending.state import LendingRules, without

__all__ = ["BROKEN", "COMPLETE", "FULL"]

COMPLETE: dict[str, dict[str, Any]] = {
    "lending-one-slot": {},
    "lending-join": {"runs": ((1, 1), (1, 0)), "alone": True},
    "lending-takeover": {"runs": ((1, 1), (1, 0)), "takeovers": 1},
    "lending-drain": {"runs": ((1, 0), (1, 0)), "drains": 1},
}
FULL: dict[str, dict[str, Any]] = {
    "lending-two-slots": {"slots": 2, "runs": ((2, 1), (1, 0))},
    "lending-drain-four": {"runs": ((2, 0), (2, 0)), "drains": 1},
}

BROKEN: dict[str, tuple[str, LendingRules, dict[str, Any]]] = {
    "share": ("L2", without("share", "left"), {"slots": 2, "runs": ((4, 0), (4, 0))}),
    "left": ("L2", without("left"), {"slots": 2, "runs": ((4, 0), (4, 0))}),
    "returned": ("I5", without("returned"), {"slots": 2, "runs": ((2, 0), (1, 0))}),
    "queue": ("L1", without("queue"), {}),
    "ask": ("I5", without("ask"), {}),
    "waiting_only": ("L3", without("waiting_only"), {}),
    "granted": ("L4", without("granted"), {"slots": 2, "runs": ((0, 3), (0, 1))}),
    "kept": ("L4", without("kept"), {"slots": 2, "runs": ((0, 3), (0, 1))}),
    "directed": ("L4", without("directed"), {}),
    "leaving": ("I5", without("leaving"), {"runs": ((1, 0), (1, 0)), "drains": 1}),
}
