"""The owner's memory of its runs: one card a run, rebuilt from PostgreSQL at any time.

A card is in exactly one phase, and each phase has one room that may change it:

    READY ── dispatch ──▶ OPENING ── commit ──▶ OPEN ── fold ──▶ ended (the card goes)
      ▲                                          │  └─ fold ──▶ WAITING ── timers ──▶ READY
      └──────────────── fold ── SEALING ◀── recovery

So no two commits of one owner ever touch the same run at the same time. Cards of runs whose wait is far off, or that
wait for something other than time, are dropped; the sweep or a message brings them back. Losing all cards costs a read
of the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_core.queueing import DEFAULT_POOL, URGENT, Placement, QueueHints
from flint_store.branches import BRANCH_REQUEST_PREFIX

if TYPE_CHECKING:
    from flint_store.legs import LegStart, RunRow

__all__ = ["NO_MAIL", "Phase", "RunBook", "RunCard", "card_of_row"]


NO_MAIL: Final[frozenset[str]] = frozenset()
_DEFAULT_PLACE: Final = (DEFAULT_POOL, "")


class Phase(IntEnum):
    """Which room may change the run now."""

    READY = 0  # in the ready queue
    OPENING = 1  # a leg's opening is being committed
    OPEN = 2  # a leg is open; the fold changes it
    SEALING = 3  # a SEAL is on its way; the fold closes the leg when it arrives
    WAITING = 4  # its timer is due soon; a message makes it ready too
    PAUSED = 6  # nobody's, until a command comes; not kept in memory
    RESETTING = 7  # being taken back to an earlier point (control.resets)
    CLOSING = 5  # being ended without a leg (a cancel), or made ready so that a leg undoes what it did


_STATES: Final = {
    Phase.OPEN: runs_pb2.Run.STATE_RUNNING,
    Phase.SEALING: runs_pb2.Run.STATE_RUNNING,
    Phase.WAITING: runs_pb2.Run.STATE_WAITING,
    Phase.PAUSED: runs_pb2.Run.STATE_PAUSED,
}


@dataclass(slots=True)
class RunCard:
    """One run that has not ended."""

    run_id: bytes
    namespace: str
    workflow_id: str
    version: str
    definition_hash: bytes
    group: int
    level: int
    created_ms: int
    trace_id: bytes
    phase: Phase
    change: int = 1
    position: int = 0
    leg: int = 0
    nonce: bytes | None = None
    claimant: str | None = None
    generation: int = 0
    losses: int = 0
    cancel_requested: bool = False
    cancel_error: runs_pb2.Problem | None = None  # tells why
    request_id: str = ""
    started_ms: int = 0
    wake_at_ms: int = 0
    arrival: int = 0  # place in the ready queue within its level; kept when a leg comes back
    ready_since: float = 0.0  # loop time
    progress_at: float = 0.0  # loop time of the leg's opening or last entry
    expected_sequence: int | None = None  # last sequence of the run's subject, known while its SEAL is fresh
    seal_doubt: bool = False  # more than one SEAL may stand behind the leg: the first one's sequence is not the last
    releases: int = 0  # legs in a row that their workers let go without an entry
    loss: bool = False  # the SEAL under way is for a leg whose worker was lost
    start: LegStart | None = None  # what the first leg begins from, while it is still in memory
    held: bool = False  # whether a slot of its claimant is counted for it
    cancel_sent_at: float = -1e9  # loop time; a cancel is sent again until the leg ends
    job_sequence: int = 0  # of the open leg's job, dense per session and worker
    watcher: str = ""  # where the end goes: the gateway that started it
    parent_run_id: bytes | None = None
    parent_key: str | None = None  # the parent's await that this run's end answers
    has_awaits: bool = False  # whether it ever opened an await
    compensates: bool = False  # a cancel does not end it at once: a leg undoes first what it did
    mail: frozenset[str] = NO_MAIL  # keys of messages that were handed to the open leg and are not consumed yet
    more_mail: bool = False  # its inbox holds, or may hold, messages beyond these
    hints: QueueHints | None = None  # what it asks of the queue; None: nothing
    placement: Placement | None = None  # where its next leg goes, after a step that named a pool; None: as hinted
    token: int = 0  # of its entry in the ready queue; what stands there under another one is stale
    spot: int = -1  # level at which it stands there; -1 nowhere, -2 held
    aged: int = 0  # levels it has gained by waiting

    pausing: bool = False  # it is paused when its leg ends: by a command, or to be reset
    cancel_grace_ms: int = -1  # how long calls in progress may go on after a cancel; -1: the usual time

    @property
    def has_mail(self) -> bool:
        """Whether something waits in its inbox, as far as is known here. If it is wrong one leg opens for nothing."""
        return bool(self.mail) or self.more_mail

    @property
    def is_branch(self) -> bool:
        """Whether it executes branches of another run's fork."""
        return self.request_id.startswith(BRANCH_REQUEST_PREFIX)

    @property
    def place(self) -> tuple[str, str]:
        """Pool and region of its next leg."""
        where = self.placement or self.hints
        return (where.pool, where.region) if where is not None else _DEFAULT_PLACE

    @property
    def queue_level(self) -> int:
        """The level at which it waits for its next leg: what it gained by waiting never makes it urgent."""
        placed = self.placement
        level = placed.level if placed is not None and placed.level is not None else self.level
        return max(level - self.aged, URGENT + 1) if self.aged and level > URGENT else level

    @property
    def state(self) -> runs_pb2.Run.State.ValueType:
        """The run's public state."""
        return _STATES.get(self.phase, runs_pb2.Run.STATE_QUEUED)


def card_of_row(row: RunRow, now: float) -> RunCard:
    """The card of a run as it stands in the record."""
    if row.leg_nonce is not None:
        phase = Phase.OPEN
    elif row.state == runs_pb2.Run.STATE_WAITING:
        phase = Phase.WAITING
    elif row.state == runs_pb2.Run.STATE_PAUSED:
        phase = Phase.PAUSED
    else:
        phase = Phase.READY
    return RunCard(
        run_id=row.run_id,
        namespace=row.namespace,
        workflow_id=row.workflow_id,
        version=row.version,
        definition_hash=row.definition_hash,
        group=row.group,
        level=row.level,
        created_ms=int(row.created_at.timestamp() * 1000),
        trace_id=row.trace_id,
        phase=phase,
        change=row.change,
        position=row.position,
        leg=row.leg,
        nonce=row.leg_nonce,
        claimant=row.claimant,
        generation=row.leg_generation,
        losses=row.losses,
        cancel_requested=row.cancel_requested,
        request_id=row.request_id,
        started_ms=int(row.started_at.timestamp() * 1000) if row.started_at else 0,
        wake_at_ms=int(row.wake_at.timestamp() * 1000) if row.wake_at else 0,
        progress_at=now,
        parent_run_id=row.parent_run_id,
        parent_key=row.parent_key,
        has_awaits=row.has_awaits,
        compensates=row.compensates,
        cancel_error=runs_pb2.Problem.FromString(row.cancel_error) if row.cancel_error else None,
        hints=row.hints,
        placement=row.placement,
    )


class RunBook:
    """All cards of the groups that this scheduler owns."""

    def __init__(self) -> None:
        self._cards: dict[bytes, RunCard] = {}

    def __len__(self) -> int:
        return len(self._cards)

    def __iter__(self) -> Iterator[RunCard]:
        return iter(self._cards.values())

    def get(self, run_id: bytes) -> RunCard | None:
        """The card, if the run is active and mine."""
        return self._cards.get(run_id)

    def add(self, card: RunCard) -> None:
        """Remember a run; one card a run."""
        self._cards[card.run_id] = card

    def drop(self, card: RunCard) -> None:
        """Forget a run that has ended, or waits for long."""
        self._cards.pop(card.run_id, None)

    def drop_groups(self, groups: Iterable[int]) -> list[RunCard]:
        """Forget all runs of groups that are mine no longer."""
        gone = set(groups)
        dropped = [c for c in self._cards.values() if c.group in gone]
        for card in dropped:
            del self._cards[card.run_id]
        return dropped
