"""Company: entries in the middle of a leg wait for the rest of it, so that they are folded with one change of the run.

Nobody waits for such an entry: its worker went on when JetStream had it. It is put aside until something of its run
comes that somebody waits for (the leg's end, a SEAL, an await, a command), until it has waited long enough, or until
too much waits. Never put aside are entries of urgent runs, of runs whose steps are watched, of runs that get messages
(the next ones wait for the record of these), and what cannot be told.

Nothing is lost by it. What waits is in the journal, and the group's watermark stays before it: each reading that goes
on says up to where the journal is folded with it, as things stand then (`Reading.upto`). Readings are folded in the
order in which they come from here, so whatever lies before has gone on earlier, goes on with it, or waits still. What
was read under a holding that is over is the next owner's to read, and is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from flint_core.queueing import URGENT
from flint_scheduler.announce import Announcer
from flint_scheduler.cards import Phase, RunBook
from flint_scheduler.holdings import GroupHolding
from flint_scheduler.readings import Item, Reading

__all__ = ["Company"]

_WAIT_S: Final = 0.1
_CROWD_WAIT_S: Final = 0.5
"""How long an entry waits at most; the longer where many runs are under way, as each of them takes longer then."""
_CROWD: Final = 32
_EARLIER: Final = 0.25
"""The share of that time by which entries go earlier, with others that have waited so long."""
_MOST_ENTRIES: Final = 10_000
_MOST_BYTES: Final = 16 * 2**20
_OPEN: Final = Phase.OPEN


class _Waiting:
    """Entries of one run, in order."""

    __slots__ = ("items", "since", "size")

    def __init__(self, since: float) -> None:
        self.since = since
        self.items: list[Item] = []
        self.size = 0


class _Group:
    """What waits of one group's journal; the runs in the order of their first entries."""

    __slots__ = ("generation", "holding", "read", "runs")

    def __init__(self, holding: GroupHolding, generation: int) -> None:
        self.holding = holding
        self.generation = generation
        self.read = 0  # the last sequence that came
        self.runs: OrderedDict[bytes, _Waiting] = OrderedDict()  # its first is asked for at each reading

    @property
    def upto(self) -> int:
        """What lies before this sequence, this included, does not wait."""
        for first in self.runs.values():
            return first.items[0][0].sequence - 1
        return self.read


class Company:
    """What waits of all groups of one scheduler. Used from one event loop."""

    def __init__(self, book: RunBook, announcer: Announcer) -> None:
        self._book = book
        self._announcer = announcer
        self._groups: dict[int, _Group] = {}
        self._entries = 0
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether more waits than may."""
        return self._entries > _MOST_ENTRIES or self._bytes > _MOST_BYTES

    @property
    def wait_s(self) -> float:
        """How long an entry waits at most, as things stand."""
        return _WAIT_S if sum([len(group.runs) for group in self._groups.values()]) < _CROWD else _CROWD_WAIT_S

    @property
    def next_at(self) -> float | None:
        """When the first of what waits has waited long enough (loop time); None: nothing waits."""
        first = [waiting.since for group in self._groups.values() for waiting in _first(group)]
        return min(first) + self.wait_s if first else None

    def sort(self, reading: Reading, now: float) -> list[Item]:
        """Take what came of a journal; its `entries` are then what goes on at once, if anything.

        Answers the entries of urgent runs among them.
        """
        group = self._group(reading)
        runs, get = group.runs, self._book.get
        watched = self._announcer.watched
        going: list[Item] = []
        urgent: list[Item] = []
        for item in reading.entries:
            message, _, entry = item
            if entry is None:
                going.append(item)
                continue
            run_id = entry.run_id
            card = get(run_id)
            if card is not None and card.level == URGENT:
                urgent.append(item)
            elif (
                card is not None
                and card.phase is _OPEN
                and not (entry.HasField("end") or entry.seal or entry.awaits_opened)
                and not (card.mail or card.more_mail)
                and not (watched and self._announcer.follows(run_id))
            ):
                waiting = runs.get(run_id)
                if waiting is None:
                    waiting = runs[run_id] = _Waiting(now)
                waiting.items.append(item)
                size = len(message.data)
                waiting.size += size
                self._bytes += size
                self._entries += 1
                continue
            if run_id in runs:
                going += self._leave(group, run_id)
            going.append(item)
        group.read = reading.messages[-1].sequence
        reading.entries = going
        reading.upto = group.upto
        return urgent

    def take(self, group: int, run_id: bytes) -> Reading | None:
        """What waits of one run goes on."""
        found = self._groups.get(group)
        return self._going(found, (run_id,)) if found is not None and run_id in found.runs else None

    def due(self, now: float) -> list[Reading]:
        """What has waited long enough by then goes on, and what nearly has."""
        late = now - self.wait_s * (1 - _EARLIER)
        readings = []
        for group in self._groups.values():
            due = []
            for run_id, waiting in group.runs.items():
                if waiting.since > late:
                    break
                due.append(run_id)
            if due:
                readings.append(self._going(group, due))
        return readings

    def _group(self, reading: Reading) -> _Group:
        group = self._groups.get(reading.holding.group)
        if group is None or group.holding is not reading.holding or group.generation != reading.generation:
            if group is not None:
                for run_id in list(group.runs):
                    self._leave(group, run_id)
            group = self._groups[reading.holding.group] = _Group(reading.holding, reading.generation)
        return group

    def _going(self, group: _Group, run_ids: Iterable[bytes]) -> Reading:
        since = next(iter(group.runs.values())).since
        entries = [item for run_id in run_ids for item in self._leave(group, run_id)]
        return Reading(group.holding, group.generation, [], since, entries, upto=group.upto)

    def _leave(self, group: _Group, run_id: bytes) -> list[Item]:
        waiting = group.runs.pop(run_id)
        self._entries -= len(waiting.items)
        self._bytes -= waiting.size
        return waiting.items


def _first(group: _Group) -> Iterable[_Waiting]:
    for waiting in group.runs.values():
        yield waiting
        return
