"""Lanes: what a worker's legs append to the journal travels together (R8, R9; decision 0027).

A lane is a subject that nobody else writes to: one of the incarnation's own for each shard group, or, for an urgent
leg, its run's. States: QUIET → SENT → QUIET again, it is stored; or → SETTLING: no answer, the stream is missing or
full, the expectation was wrong. A message whose fate is not known is sent again with the same id and the same expected
sequence before any other of its lane, for as long as somebody waits and the lease holds; when nobody waits (their legs
were dropped) it is UNSETTLED until somebody does. Repeating is safe: a message can be stored once only.

What settles is a task; when it dies by a defect, all who wait are told of it, and who comes next begins another.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from functools import partial
from typing import Final

from flint_bus import (
    AppendUnknown,
    Bus,
    BusError,
    MessageTooLarge,
    SequenceMismatch,
    StoredMessage,
    StreamFull,
    StreamMissing,
    journal_stream,
)
from flint_bus.subjects import journal_lane_subject, journal_subject
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.journal import FRAME_BYTES, together
from flint_core.queueing import URGENT
from flint_ops.clock import boottime
from flint_ops.logging import get_logger
from flint_worker.lease import Lease
from flint_worker.telemetry import APPEND_RETRIES, APPENDS

__all__ = ["Lane", "Lanes", "LegStopped", "Member"]

_PURGED_AFTER_S: Final = 8.0
"""Below the smallest `journal.keep_folded_s`."""
_APPEND_TIMEOUT_S: Final = 2.0
_READ_TIMEOUT_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0
_TOGETHER: Final = 100
_TOGETHER_BYTES: Final = 256 * 1024
"""Entries that travel together, and their size. A larger entry travels alone."""

_log = get_logger("flint_worker.lanes")


class LegStopped(Exception):
    """The leg must stop without another word, because it is not its word any more or has been said.

    `reason`: lease, superseded, given-up, failed. What is not stored for another reason ends the run (leg.py).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Member:
    """A leg in a lane. It appends one entry at a time."""

    __slots__ = ("given_up", "joined", "pending", "stored")

    def __init__(self) -> None:
        self.joined: int | None = None
        """`Lane.losses` when an entry of it was stored there; None: none was."""
        self.given_up = False
        self.pending: asyncio.Future[None] | None = None
        """Its last append."""
        self.stored = 0
        """How many entries of it were stored."""


class _Append:
    __slots__ = ("again", "alone", "data", "member", "stored")

    def __init__(self, data: bytes, member: Member, stored: asyncio.Future[None]) -> None:
        self.data = data
        self.member = member
        self.stored = stored
        self.alone = False  # the message in which it was with others was refused
        self.again = False  # the lane had lost its end

    def fail(self, error: Exception) -> None:
        if not self.stored.done():
            self.stored.set_exception(error)

    def succeed(self) -> None:
        if not self.stored.done():
            self.member.stored += 1
            self.stored.set_result(None)


class _Message:
    """What is under way."""

    __slots__ = ("appends", "data", "msg_id")

    def __init__(self, appends: list[_Append], data: bytes, msg_id: str) -> None:
        self.appends = appends
        self.data = data
        self.msg_id = msg_id


class Lane:
    """One subject, one message at a time. Belongs to its event loop."""

    def __init__(
        self, bus: Bus, lease: Lease, tasks: set[asyncio.Task[None]], stream: str, subject: str, name: str
    ) -> None:
        """`name` begins the messages' ids."""
        self._bus = bus
        self._lease = lease
        self._tasks = tasks
        self._stream = stream
        self._subject = subject
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._shared = True
        self._expected = 0
        self._number = 0
        self._stored_at = boottime()
        self._queue: deque[_Append] = deque()  # at most one append of each leg
        self._planned = False
        self._message: _Message | None = None
        self._settling = False
        self.losses = 0
        """How often entries of it were lost."""
        self.unsure = False
        """Whether a message is being tried again."""

    @classmethod
    def of_run(cls, bus: Bus, lease: Lease, tasks: set[asyncio.Task[None]], job: dispatch_pb2.Job) -> Lane:
        """The run's own subject, for one leg: behind the SEAL that the job tells of."""
        subject = journal_subject(job.generation, job.group, job.run_id)
        lane = cls(bus, lease, tasks, journal_stream(job.generation), subject, job.leg_nonce.hex())
        lane._shared = False
        lane._expected = job.expected_sequence
        lane._number = job.position
        return lane

    def append(self, data: bytes, member: Member) -> asyncio.Future[None]:
        """Done when the entry is stored. A leg appends one at a time.

        Raises LegStopped, MessageTooLarge, or AppendRefused when it will never be stored. When it is cancelled, the
        entry may be stored or not.
        """
        stored = member.pending = self._loop.create_future()
        self._queue.append(_Append(data, member, stored))
        if self._message is None:
            if self._shared:
                self._go_on()  # what others append in this turn of the event loop goes with it
            else:
                self._send()
        elif self.unsure and not self._settling:
            self._settle_soon(self._message, AppendUnknown("nobody waited for it"))
        return stored

    def give_up(self, member: Member) -> None:
        """Its owner says that the journal is gone: the leg does not wait for what is being tried again."""
        member.given_up = True
        if self.unsure and member.pending is not None and not member.pending.done():
            member.pending.set_exception(LegStopped("given-up"))

    # -- sending -------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self._queue and not self._planned:
            self._planned = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._planned = False
        if self._message is not None:
            return
        if not self._lease.valid():
            self._stop_all(LegStopped("lease"))
            return
        appends = self._take()
        if not appends:
            return
        data = appends[0].data if len(appends) == 1 else together(append.data for append in appends)
        self._number += 1
        message = self._message = _Message(appends, data, f"{self._name}.{self._number}")
        try:
            answer = self._bus.append_now(
                self._subject,
                data,
                msg_id=message.msg_id,
                stream=self._stream,
                expected_sequence=self._expected,
                timeout_s=_APPEND_TIMEOUT_S,
            )
        except MessageTooLarge as error:  # the server takes less than it did
            self._refused(message, error)
        else:
            answer.add_done_callback(partial(self._answered, message))

    def _take(self) -> list[_Append]:
        """The next appends that travel together; at least one if any is left."""
        taken: list[_Append] = []
        queue = self._queue
        room = min(_TOGETHER_BYTES, self._bus.max_append)
        while queue and len(taken) < _TOGETHER:
            append = queue[0]
            if append.stored.done():  # its leg has gone
                queue.popleft()
                continue
            joined = append.member.joined
            if joined is not None and joined != self.losses:
                append.fail(LegStopped("superseded"))
                continue
            room -= len(append.data) + FRAME_BYTES
            if taken and (room < 0 or append.alone):
                break
            taken.append(queue.popleft())
            if append.alone:
                break
        return taken

    def _answered(self, message: _Message, answer: asyncio.Future[int]) -> None:
        try:
            sequence = answer.result()
        except BusError as error:
            self._settle_soon(message, error)
        else:
            self._stored(message, sequence)

    # -- what became of it ---------------------------------------------------------------------------------------------

    def _stored(self, message: _Message, sequence: int) -> None:
        self._message = None
        self.unsure = False
        self._expected = sequence
        self._stored_at = boottime()
        appends = message.appends
        APPENDS.add(len(appends))
        for append in appends:
            append.member.joined = self.losses
        if self._shared:
            self._bus.telling.tell(*[append.succeed for append in appends])
        else:
            for append in appends:
                append.succeed()
        self._go_on()  # behind those who have been told, who may append more in the same turn

    def _refused(self, message: _Message, error: Exception) -> None:
        """It is not stored and never will be: of several entries, the one that is to blame is found by itself."""
        self._message = None
        self.unsure = False
        self._number -= 1
        if len(message.appends) == 1:
            message.appends[0].fail(error)
        for append in reversed(message.appends):
            append.alone = True
            self._queue.appendleft(append)
        self._go_on()

    def _lost(self, message: _Message, last: StoredMessage | None) -> None:
        """The lane ends before what was expected, or somebody else writes to the run's subject."""
        self._message = None
        self.unsure = False
        self.losses += 1
        if self._shared:
            _log.warning(
                "journal_went_back", subject=self._subject, expected=self._expected, entries=len(message.appends)
            )
        self._expected = last.sequence if last is not None else 0
        for append in reversed(message.appends):
            if self._shared and append.member.joined is None and not append.again:
                append.again = True
                self._queue.appendleft(append)  # the first entry of its leg here: nothing of it is lost
            else:
                append.fail(LegStopped("superseded"))
        self._go_on()

    def _stop_all(self, error: Exception) -> None:
        for append in self._message.appends if self._message is not None else ():
            append.fail(error)
        while self._queue:
            self._queue.popleft().fail(error)

    # -- settling ------------------------------------------------------------------------------------------------------

    def _settle_soon(self, message: _Message, error: BusError) -> None:
        self._settling = True
        task = asyncio.create_task(self._settle(message, error), name="journal lane")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, message: _Message, error: BusError) -> None:
        """Until it is known what became of the message, or nobody waits."""
        try:
            await self._until_known(message, error)
        except Exception as reason:
            if not isinstance(reason, LegStopped):
                _log.exception("journal_lane_broken", subject=self._subject)
            self.unsure = True
            self._stop_all(reason)
        finally:
            self._settling = False

    async def _until_known(self, message: _Message, error: BusError) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            if isinstance(error, SequenceMismatch):
                # The lane's last message is the one under way, if an acknowledgement was lost (R9).
                try:
                    last = await self._bus.last_message(self._stream, self._subject, _READ_TIMEOUT_S)
                except BusError as failed:
                    error = AppendUnknown(str(failed))
                    continue
                if last is not None and last.msg_id == message.msg_id:
                    self._stored(message, last.sequence)
                    return
                if last is not None or not self._expected or boottime() - self._stored_at <= _PURGED_AFTER_S:
                    self._lost(message, last)
                    return
                self._expected = 0  # its messages have left by age or purge: its sequence is 0 again (R8)
            elif isinstance(error, AppendUnknown | StreamMissing | StreamFull):
                APPEND_RETRIES.inc()
                self.unsure = True
                if not self._awaited(message):
                    return
                await asyncio.sleep(min(pause_s, max(0.001, self._lease.remaining_s)))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                self._refused(message, error)
                return
            if not self._lease.valid():
                raise LegStopped("lease")
            try:
                sequence = await self._bus.append(
                    self._subject,
                    message.data,
                    msg_id=message.msg_id,
                    stream=self._stream,
                    expected_sequence=self._expected,
                    timeout_s=_APPEND_TIMEOUT_S,
                )
            except BusError as failed:
                error = failed
            else:
                self._stored(message, sequence)
                return

    def _awaited(self, message: _Message) -> bool:
        """Whether anybody waits who has not given up."""
        awaited = False
        for append in (*message.appends, *self._queue):
            if append.member.given_up:
                append.fail(LegStopped("given-up"))
            awaited = awaited or not append.stored.done()
        return awaited


class Lanes:
    """The lanes of one incarnation."""

    def __init__(self, bus: Bus, lease: Lease) -> None:
        self._bus = bus
        self._lease = lease
        self._generation = 0
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, job: dispatch_pb2.Job) -> Lane:
        """Where the leg's entries go: an urgent one's by themselves, so that they never wait for others."""
        if job.level == URGENT:
            return Lane.of_run(self._bus, self._lease, self._tasks, job)
        key = job.generation, job.group
        lane = self._lanes.get(key)
        if lane is None:
            if job.generation > self._generation:
                self._generation = job.generation
                self._lanes.clear()  # legs of a former generation still have theirs
            name = os.urandom(12).hex()
            subject = journal_lane_subject(job.generation, job.group, name)
            lane = Lane(self._bus, self._lease, self._tasks, journal_stream(job.generation), subject, name)
            self._lanes[key] = lane
        return lane

    async def close(self) -> None:
        """Stops what is being settled. The lease has ended: nothing is sent any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
