"""The model's judge and the scheduler's give the same verdict on every small case, so the two stay in step."""

from __future__ import annotations

from itertools import product

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_scheduler import judgement
from model.fold import judge
from model.rules import ALL_ON
from model.state import EXECUTED, Card, Entry, Item

_LEGS = (0, 1, 2, 3)  # 0: none
_WORKERS = (1, 2)
_SESSIONS = (1, 2)
_POSITIONS = (0, 1, 2, 3)

# A leg is a number and a nonce in the scheduler, one identity here: legs 2 and 3 share the number, 1 and 3 the nonce.
_NUMBER = {0: 0, 1: 1, 2: 2, 3: 2}
_NONCE = {0: b"", 1: b"\x01" * 16, 2: b"\x02" * 16, 3: b"\x01" * 16}


def _message(entry: Entry) -> journal_pb2.JournalEntry:
    message = journal_pb2.JournalEntry(leg=_NUMBER[entry.leg], leg_nonce=_NONCE[entry.leg])
    if entry.seal:
        message.seal = True
        message.seal_session = bytes([entry.writer]) * 16
    else:
        message.claimant = f"worker-{entry.writer}"
        message.index = len(entry.history)
    return message


def _entries() -> list[Entry]:
    seals = [Entry(leg, session, ()) for leg, session in product(_LEGS, _SESSIONS)]
    return seals + [
        Entry(leg, worker, tuple(Item(leg, worker, EXECUTED) for _ in range(index)))
        for leg, worker, index in product(_LEGS[1:], _WORKERS, range(1, 5))
    ]


def _built(entry: Entry, card: Card, position: int, session: int) -> str:
    return judgement.judge(
        _message(entry),
        nonce=_NONCE[card.leg] if card.leg else None,
        leg=_NUMBER[card.leg],
        claimant=f"worker-{card.claimant}" if card.leg else None,
        position=position,
        session=bytes([session]) * 16,
        sealing=card.phase == "sealing",
    ).value


def test_the_model_judges_as_the_scheduler_does() -> None:
    verdicts: dict[str, int] = {}
    for entry, leg, worker, phase, position, session in product(
        _entries(), _LEGS, _WORKERS, ("open", "sealing"), _POSITIONS, _SESSIONS
    ):
        card = Card(phase, 1, leg, worker if leg else 0, position=position)
        expected = judge(entry, card, position, session, ALL_ON)
        assert _built(entry, card, position, session) == expected, (entry, card, position, session)
        verdicts[expected] = verdicts.get(expected, 0) + 1
    assert verdicts.keys() == {v.value for v in judgement.Verdict}  # every verdict occurs
