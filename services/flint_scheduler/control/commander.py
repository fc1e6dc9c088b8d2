"""The commander: carries out what is asked of the runs that this scheduler owns.

    inbox row ── nudge, sweep ──▶ serve ──▶ a command of the fold (cancel, terminate, pause, resume)
                                      ├──▶ the worker is asked to give the leg back (pause, reset of a running run)
                                      ├──▶ the place in the queue (level)
                                      └──▶ a commit of its own (reset of a run without a leg)

A row stays until the commit that does what it asks for, so whoever owns the run next finds it again; carrying it out
twice changes nothing. Called from attention's loop, one batch at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import orjson
from sqlalchemy.exc import DBAPIError

from flint_bus import Bus
from flint_bus.subjects import control_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_ops.logging import get_logger
from flint_scheduler.accept import ENDED
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import Phase, RunBook, RunCard, card_of_row
from flint_scheduler.clock import RecordClock
from flint_scheduler.drafts import Command, CommandKind
from flint_scheduler.fold import Folder
from flint_scheduler.holdings import Holdings
from flint_scheduler.lane import LaneClosed
from flint_scheduler.ready import ReadyQueue
from flint_scheduler.record import Record
from flint_store.commands import CommandRow, Verb, delete_commands, read_commands
from flint_store.fence import Fenced
from flint_store.legs import load_runs
from flint_store.resets import reset_run

__all__ = ["Commander"]

log = get_logger(__name__)

_RESETTABLE = (Phase.READY, Phase.WAITING, Phase.PAUSED)


class Commander:
    """Serves the commands of one scheduler's runs."""

    def __init__(
        self,
        record: Record,
        bus: Bus,
        holdings: Holdings,
        book: RunBook,
        queue: ReadyQueue,
        folder: Folder,
        announcer: Announcer,
        clock: RecordClock,
    ) -> None:
        self._record = record
        self._bus = bus
        self._holdings = holdings
        self._book = book
        self._queue = queue
        self._folder = folder
        self._announcer = announcer
        self._clock = clock
        self.on_ready: Callable[[], None] = lambda: None
        self.on_waiting: Callable[[RunCard], None] = lambda card: None

    async def serve(self, run_ids: Sequence[bytes]) -> None:
        """Carry out what is asked of these runs. Raises RecordUnavailable, Fenced."""
        asked = await self._record.read(lambda c: read_commands(c, run_ids))
        done: list[tuple[bytes, CommandRow]] = []
        for run_id, rows in asked.items():
            card = self._book.get(run_id)
            kinds = {row.kind: row for row in rows}
            if card is None:
                if Verb.RESET in kinds:
                    await self._reset_stored(run_id, kinds[Verb.RESET])
                continue
            if Verb.TERMINATE in kinds:
                self._command(Command(card, CommandKind.TERMINATE, reason=_reason(kinds[Verb.TERMINATE])))
                continue
            if Verb.LEVEL in kinds:
                self._set_level(card, int(kinds[Verb.LEVEL].payload))
                done.append((run_id, kinds[Verb.LEVEL]))
            if Verb.RESET in kinds and Verb.CANCEL not in kinds:
                await self._reset(card, kinds[Verb.RESET])
            elif Verb.PAUSE in kinds:
                self._pause(card)
            elif Verb.RESUME in kinds:
                self._command(Command(card, CommandKind.RESUME))
            elif kinds.keys() == {Verb.LEVEL}:
                self._leave(card)
        if done:
            await self._record.read(lambda c: delete_commands(c, done))

    def _command(self, command: Command) -> None:
        with contextlib.suppress(LaneClosed):
            self._folder.command(command)

    # -- pauses --------------------------------------------------------------------------------------------------------

    def _pause(self, card: RunCard) -> None:
        self._command(Command(card, CommandKind.PAUSE))
        self._give_back(card)

    def _give_back(self, card: RunCard) -> None:
        """Ask the worker for the leg at its next boundary; asked again with each sweep until it ends."""
        if card.phase is not Phase.OPEN or card.claimant is None or card.nonce is None:
            return
        leg = dispatch_pb2.LegRef(run_id=card.run_id, leg_nonce=card.nonce)
        request = dispatch_pb2.ControlRequest(pause=dispatch_pb2.PauseLegs(legs=[leg]))
        self._bus.publish_now(control_subject(card.claimant), request.SerializeToString())

    def drop_leg(self, run_id: bytes, claimant: str, nonce: bytes) -> None:
        """The run has ended without its leg: its worker is told to stop. What it still says is not recorded."""
        leg = dispatch_pb2.LegRef(run_id=run_id, leg_nonce=nonce)
        request = dispatch_pb2.ControlRequest(drop=dispatch_pb2.DropLegs(legs=[leg]))
        self._bus.publish_now(control_subject(claimant), request.SerializeToString())

    # -- levels --------------------------------------------------------------------------------------------------------

    def _set_level(self, card: RunCard, level: int) -> None:
        if card.level == level:
            return
        if card.phase is Phase.READY:
            self._queue.change_level(card, level)
            self.on_ready()
        else:
            card.level = level

    def _leave(self, card: RunCard) -> None:
        """It was brought into memory for this alone."""
        if card.phase is Phase.PAUSED:
            self._book.drop(card)
        elif card.phase is Phase.WAITING:
            self.on_waiting(card)

    # -- resets --------------------------------------------------------------------------------------------------------

    async def _reset(self, card: RunCard, row: CommandRow) -> None:
        if card.phase in _RESETTABLE:
            await self._take_back(card, row)
        elif card.phase in (Phase.OPEN, Phase.SEALING):
            card.pausing = True  # it is paused when its leg ends, and taken back then
            self._give_back(card)
        # else a commit is under way: the sweep comes again

    async def _reset_stored(self, run_id: bytes, row: CommandRow) -> None:
        """A run that has ended, or that was not kept in memory."""
        found = await self._record.read(lambda c: load_runs(c, [run_id]))
        if not found or not self._holdings.owns(found[0].group) or self._book.get(run_id) is not None:
            return
        card = card_of_row(found[0], asyncio.get_running_loop().time())
        if found[0].state in ENDED:
            card.phase = Phase.PAUSED  # as far as anybody else is concerned: it has no leg
        self._book.add(card)
        await self._take_back(card, row)

    async def _take_back(self, card: RunCard, row: CommandRow) -> None:
        session = self._holdings.session
        if session is None:
            return
        wanted = orjson.loads(row.payload)
        card.phase = Phase.RESETTING
        change = card.change + 1
        self._announcer.takes_back(card, change)
        try:
            at = await self._record.lane(
                "control",
                lambda c: reset_run(c, session, card.run_id, change, int(wanted["reset"]), int(wanted["kept"])),
            )
        except Fenced:
            raise
        except BaseException as error:
            # It may have happened: what is in memory is thrown away and read again.
            self._book.drop(card)
            card.phase = Phase.CLOSING
            self._holdings.reread({card.group})
            if isinstance(error, DBAPIError):
                log.warning("reset_refused_by_record", run=card.run_id.hex(), error=str(error.orig))
                return
            raise
        self._clock.heard(at)
        if self._book.get(card.run_id) is not card:
            return
        fresh = (await self._record.read(lambda c: load_runs(c, [card.run_id])))[0]
        self._book.drop(card)
        now = asyncio.get_running_loop().time()
        again = card_of_row(fresh, now)
        self._book.add(again)
        self._queue.push(again, now)
        self._announcer.changed(again, [])
        self._announcer.flush()
        self.on_ready()
        log.info("run_reset", run=card.run_id.hex(), reset=wanted["reset"], kept=wanted["kept"])


def _reason(row: CommandRow) -> str:
    return row.payload.decode(errors="replace")
