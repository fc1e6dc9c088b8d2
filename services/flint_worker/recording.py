"""What a leg has to say, and how it says it: entries of the journal, the run's end among them.

Gathered between two entries: events that were fed to the machine, its traces, awaits that were opened and closed,
messages that were consumed. `_append` writes all of it as one entry; nothing is forgotten before that is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flint_bus import Bus, MessageTooLarge
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.events import Event, encode_events
from flint_core.machine import End, Failed, Machine, MachineLimits, StateTooLarge, StepTrace, Succeeded
from flint_core.problems import Problem, ProblemType
from flint_ops.config import LimitSettings
from flint_worker.branches import BranchInputs
from flint_worker.calls import Caller
from flint_worker.definitions import Definitions
from flint_worker.effects import Effects
from flint_worker.journal import JournalWriter, LegStopped
from flint_worker.lanes import Lanes
from flint_worker.lease import Lease
from flint_worker.records import add_awaits, run_end, step_records
from flint_worker.values import Values

__all__ = ["ENTRY_AWAITS", "ENTRY_AWAIT_BYTES", "LegServices", "Recording"]

ENTRY_AWAITS: Final = 500
ENTRY_AWAIT_BYTES: Final = 512 * 1024
"""Requests of awaits in one entry; further ones go into entries of their own."""
_SNAPSHOT_ENTRIES: Final = 64
_SNAPSHOT_BYTES: Final = 200_000
"""A snapshot every so often bounds what the next leg must be sent and must replay."""


@dataclass(frozen=True, slots=True)
class LegServices:
    """What legs share."""

    bus: Bus
    definitions: Definitions
    values: Values
    branches: BranchInputs
    caller: Caller
    limits: LimitSettings
    machine_limits: MachineLimits
    inline_wait_ms: int


class Recording:
    """The part of a leg that writes its entries."""

    __slots__ = (
        "_bytes_since_snapshot",
        "_compensates",
        "_consumed",
        "_effects",
        "_entries_since_snapshot",
        "_fed",
        "_journal",
        "_lease",
        "_machine",
        "_rebuilt",
        "_records",
        "_services",
        "_taken",
        "_told",
        "_unrecorded",
        "_unrecorded_bytes",
        "begun",
        "job",
    )

    def __init__(self, job: dispatch_pb2.Job, lease: Lease, services: LegServices, lanes: Lanes) -> None:
        self.job = job
        self.begun = False
        """Whether anything left this process: a call was started or an entry sent."""
        self._lease = lease
        self._services = services
        self._journal = JournalWriter(services.bus, lease, job, lanes)
        self._effects = Effects(job.awaits)
        self._machine: Machine
        self._unrecorded: list[Event] = []
        self._unrecorded_bytes = 0
        self._records: list[StepTrace] = []
        events = job.events
        self._entries_since_snapshot = len(events)
        self._bytes_since_snapshot = sum(map(len, events)) if events else 0
        self._consumed: list[str] = []
        self._taken: list[str] = []
        self._compensates = self._told = job.compensates  # something is to be undone; and that was recorded
        self._fed = False
        self._rebuilt = False  # the next entry holds the state that was rebuilt after a reset

    async def _append(
        self, *, with_snapshot: bool = False, end: End | None = None, leg_end: journal_pb2.LegEnd | None = None
    ) -> None:
        """One entry: everything fed and traced since the last one. Raises LegStopped, also after a failed end.

        `end`: the run's; `leg_end`: another end of the leg.
        """
        ends = end is not None or leg_end is not None
        events = encode_events(self._unrecorded) if self._unrecorded else b""
        size = len(events) + self._bytes_since_snapshot
        if not ends and (self._entries_since_snapshot >= _SNAPSHOT_ENTRIES or size > _SNAPSHOT_BYTES):
            with_snapshot = True
        if self._rebuilt and self._fed and end is None:
            with_snapshot = True  # nobody rebuilds it again
        try:
            snapshot = self._machine.snapshot() if with_snapshot else b""
        except StateTooLarge as error:
            await self._fail_by_size("State too large", str(error))
            raise LegStopped("failed") from None
        self.begun = True
        compensates = self._compensates and end is None
        entry = step_records(self._records, events)
        if end is not None:
            entry += run_end(end)
        effects = self._effects
        awaits = end is None and (effects.opened or effects.closed)
        if snapshot or leg_end is not None or awaits or self._consumed or self._taken or compensates:
            entry += self._rest(snapshot, leg_end, compensates, awaits=bool(awaits))
        try:
            await self._journal.append(entry)
        except MessageTooLarge as error:
            if ends and not snapshot:
                raise
            self._unrecorded, self._records = [], []
            await self._fail_by_size("Payload too large", str(error))
            raise LegStopped("failed") from None
        self._told = self._told or compensates
        self._unrecorded = []
        self._unrecorded_bytes = 0
        self._records = []
        if snapshot:
            self._rebuilt = False
            self._entries_since_snapshot = self._bytes_since_snapshot = 0
        else:
            self._entries_since_snapshot += 1
            self._bytes_since_snapshot = size

    def _rest(self, snapshot: bytes, leg_end: journal_pb2.LegEnd | None, compensates: bool, *, awaits: bool) -> bytes:
        """What few entries hold. What it tells of awaits and messages is told with that."""
        entry = journal_pb2.JournalEntry(snapshot=snapshot, compensates=compensates, end=leg_end)
        if awaits:
            effects = self._effects
            if effects.opened:
                opened = effects.take_opened(ENTRY_AWAITS, ENTRY_AWAIT_BYTES)
                add_awaits(entry, opened, self._machine.now_ms)
            if effects.closed:
                entry.awaits_closed.extend(effects.closed)
                effects.closed = []
        if self._consumed:
            entry.consumed.extend(self._consumed)
            self._consumed = []
        if self._taken:
            entry.taken.extend(self._taken)
            self._taken = []
        return entry.SerializeToString()

    async def _end_with(self, end: End) -> str:
        """The run's end; the outcome of its last step is in the same entry."""
        try:
            await self._append(end=end)
        except MessageTooLarge as error:
            self._unrecorded, self._records = [], []
            end = Failed(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, "Payload too large", str(error)))
            await self._append(end=end)
        if isinstance(end, Succeeded):
            return "succeeded"
        return "failed" if isinstance(end, Failed) else "cancelled"

    async def _fail_by_size(self, title: str, detail: str) -> None:
        await self._effects.stop()
        await self._end_with(Failed(Problem(ProblemType.PAYLOAD_TOO_LARGE, 413, title, detail)))
