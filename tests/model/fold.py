"""Judging and folding: the model's counterpart of the scheduler's `judgement.py` and `fold.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from model.rules import Rules
from model.state import BLOCKED, EXECUTED, Card, Entry, Row, steps_of

__all__ = ["Folded", "fold", "judge"]


def judge(entry: Entry, card: Card, position: int, session: int, rules: Rules) -> str:
    """What becomes of an entry: accepted, seal, duplicate, gap or stale."""
    if card.leg == 0 or entry.leg == 0 or (rules.leg_check and entry.leg != card.leg):
        return "stale"
    if entry.seal:
        if entry.leg != card.leg:
            return "stale"
        mine = card.phase == "sealing" and entry.writer == session
        return "seal" if mine or not rules.seal_own else "stale"
    if rules.claimant and entry.writer != card.claimant:
        return "stale"
    index = len(entry.history)
    if index <= position:
        return "duplicate"
    return "accepted" if index == position + 1 or not rules.gap_check else "gap"


class Folded(NamedTuple):
    """What a batch makes of the row and the card (None: the run has ended)."""

    row: Row
    card: Card | None
    changed: bool  # something in it counted
    wrong: str = ""  # what property I3 has against it


def fold(
    row: Row,
    card: Card,
    batch: Iterable[tuple[int, Entry]],
    session: int,
    generation: int,
    steps: int,
    rules: Rules,
) -> Folded:
    """Judge a batch of (sequence, entry) against the card and apply what counts to the row."""
    changed, wrong = False, ""
    for sequence, entry in batch:
        if card.phase not in ("open", "sealing"):
            break
        verdict = judge(entry, card, card.position, session, rules)
        if verdict == "seal":
            fresh = not (card.doubt and rules.seal_doubt)
            row = row._replace(leg=0, claimant=0)
            card = card._replace(
                phase="ready",
                leg=0,
                claimant=0,
                doubt=False,
                expected=sequence if fresh else -1,
                expected_generation=generation,
            )
            changed = True
        elif verdict == "accepted":
            wrong = wrong or _against(row, entry)
            changed = True
            row = row._replace(history=entry.history)
            card = card._replace(position=len(entry.history))
            kind = entry.history[-1].kind
            if steps_of(entry.history) >= steps:
                return Folded(row._replace(leg=0, claimant=0), None, True, wrong)
            if kind != EXECUTED:
                row = row._replace(leg=0, claimant=0, waiting=kind == BLOCKED)
                phase = "waiting" if kind == BLOCKED else "ready"
                card = card._replace(phase=phase, leg=0, claimant=0, expected=-1, doubt=False)
    return Folded(row, card, changed, wrong)


def _against(row: Row, entry: Entry) -> str:
    index, recorded = len(entry.history), row.history
    if index <= len(recorded):
        return f"entry {index} is recorded a second time"
    if entry.leg != row.leg or entry.writer != row.claimant:
        return f"entry {index} of another leg or worker than the current ones is recorded"
    if entry.history[:-1] != recorded:
        return f"entry {index} was built on another history than the recorded one"
    return ""
