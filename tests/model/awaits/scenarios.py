"""What is explored: all rules on, with so many faults; and each rule off."""

from __future__ import annotations

from typing import Any

from model.awaits.state import AwaitRules, without

__all__ = ["BROKEN", "COMPLETE", "FULL"]

# A cancel by somebody and one fault at most (two); a child that ends by itself, and one that does not.
COMPLETE: dict[str, dict[str, Any]] = {
    "awaits-1": {"faults": 1},
    "awaits-timeout-1": {"faults": 1, "timeout": True},
    "awaits-endless-1": {"faults": 1, "endless": True},
}
FULL: dict[str, dict[str, Any]] = {
    "awaits-2": {"faults": 2, "each": 2},
    "awaits-timeout-2": {"faults": 2, "each": 2, "timeout": True},
    "awaits-endless-2": {"faults": 2, "each": 2, "endless": True},
}

# Which promise breaks; without which rules; of which kind the child is.
BROKEN: dict[str, tuple[str, AwaitRules, str]] = {
    "compare": ("I5", without("compare"), ""),
    "batch": ("A2", without("batch"), "endless"),
    "sweep": ("I5", without("sweep"), ""),
    "request_id": ("A1", without("request_id"), ""),
    "start_open": ("I5", without("start_open"), "endless"),
    "settle_open": ("I5", without("settle_open"), "endless"),
    "close_serves": ("I5", without("close_serves"), "endless"),
    "end_closes": ("I5", without("end_closes"), "endless"),
    "cancel_child": ("I5", without("cancel_child"), "endless"),
    "answer_in_fold": ("I5", without("answer_in_fold"), ""),
    "mail_ready": ("I5", without("mail_ready"), ""),
    "consume_in_fold": ("I5", without("consume_in_fold"), ""),
    "too_late": ("A3", without("too_late"), "timeout"),
    "letters_once": ("A3", without("letters_once", "too_late"), ""),
    "undo_leg": ("A5", without("undo_leg"), ""),
    "undo_told": ("A5", without("undo_told"), ""),
}
