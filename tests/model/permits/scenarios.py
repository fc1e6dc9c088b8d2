"""What is explored: all rules on, with so many faults; and each rule off."""

from __future__ import annotations

from typing import Any

from model.permits.state import PermitRules, without

__all__ = ["BROKEN", "COMPLETE", "FULL"]

COMPLETE: dict[str, dict[str, Any]] = {
    "permits-2": {"faults": 2},
    "permits-two-of-three-2": {"faults": 2, "limit": 2},
    "permits-two-runs-3": {"faults": 3, "runs": 2},
}
FULL: dict[str, dict[str, Any]] = {
    "permits-4": {"faults": 4},
    "permits-two-of-four-3": {"faults": 3, "runs": 4, "limit": 2},
}

# Which promise breaks; without which rules; with how many faults.
BROKEN: dict[str, tuple[str, PermitRules, int]] = {
    "lock": ("P1", without("lock"), 0),
    "same_commit": ("P2", without("same_commit"), 0),
    "reuse": ("I5", without("reuse"), 1),
    "in_fold": ("I5", without("in_fold"), 1),
    "linger": ("P2", without("linger"), 1),
    "sure": ("P2", without("sure"), 2),
    "sweep_after": ("I5", without("sweep_after"), 2),
    "sweep": ("I5", without("sweep"), 1),
    "order": ("P3", without("order"), 0),
    "patience": ("I5", without("patience"), 1),
}
