"""The hub: everybody who waits for a run to end, or watches it, and where their news comes from.

News: ChangeBatches that owners publish to this gateway's subject after their commits. For runs started here the owner
knows the subject from the start; for others the hub says what it is interested in, then reads the run (in that order,
so that nothing falls between). Every interest is renewed each 25 s, when a group changes hands, and when NATS
reconnects.

Safety net: while anybody waits, every run that is waited for longer than 2 s is read again each 2 s, in batches. So a
lost message, owner or NATS delays an answer by some seconds and loses none. With nobody waiting the hub is idle.

Ends that were heard of are kept, and a wait for such a run is answered at once; a reset, of which its owner tells every
gateway before its commit, ends that.

States: CLOSED → OPEN (`start`) → CLOSED (`close`: all who wait are told UNAVAILABLE with RetryInfo, so that clients go
on at another gateway). When the safety net's task dies (only of a defect) the gateway stops in order.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import grpc

from flint_bus.bus import Bus
from flint_bus.messages import Message
from flint_bus.subjects import OWNERS, RESETS
from flint_bus.subscription import Subscription
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_gateway.interests import Interests
from flint_gateway.reading import Answer, RunReader
from flint_gateway.results import TERMINAL, ResultCache
from flint_gateway.watches import Watch
from flint_ops import metrics
from flint_rpc.errors import ErrorReason, Refused
from flint_rpc.names import RunName, parse_run

__all__ = ["Hub", "Sink", "run_not_found", "stopping"]

CHECK_PERIOD_S = 2.0
RENEW_PERIOD_S = 25.0
_STARTED_LIMIT = 50_000
_NAMES_LIMIT = 1_000_000
_CHECKS_PER_ROUND = 5_000

_OPEN = metrics.gauge("gateway_watches", "Open watches and waits")
_NAMES = metrics.gauge("gateway_awaited_runs", "Runs that somebody waits for")
_NEWS = metrics.counter("gateway_ends", "Ends of awaited runs, by where the news came from", ("source",))
_PUSHED = _NEWS.labels("push")
_READ = _NEWS.labels("read")

Sink = Callable[[runs_pb2.Run | Refused], None]
"""Called once, from the event loop, with the ended run (shared: do not change it) or why there will be none."""


def run_not_found(name: str) -> Refused:
    """NOT_FOUND, RUN_NOT_FOUND."""
    return Refused(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_RUN_NOT_FOUND, f"there is no {name}")


def stopping() -> Refused:
    """What is told to those whose wait ends with this gateway."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE,
        ErrorReason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        "this gateway is stopping; go on at another one",
        retry_after_s=0.2,
        metadata={"component": "gateway"},
    )


class _Awaited:
    """A run that somebody waits for."""

    __slots__ = ("asked", "checked", "name", "renewed", "sinks")

    def __init__(self, name: RunName, now: float) -> None:
        self.name = name
        self.sinks: list[Sink] = []
        self.asked = False
        self.checked = now
        self.renewed = now


class _Admission:
    """Open calls, counted while their `with` lasts. One for all: nothing is made for a call."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = 0

    def __enter__(self) -> None:
        self.open += 1

    def __exit__(self, *_: object) -> None:
        self.open -= 1


class Hub:
    """See the module. All methods are called from one event loop."""

    def __init__(
        self, bus: Bus, reader: RunReader, results: ResultCache, *, watcher: str, groups: int, watches: int
    ) -> None:
        self._bus = bus
        self._reader = reader
        self._results = results
        self._watcher = watcher
        self._interests = Interests(bus, watcher, groups)
        self._limit = watches
        self._admission = _Admission()
        self._closed = False
        self._started: OrderedDict[str, RunName] = OrderedDict()
        self._awaited: dict[str, _Awaited] = {}
        self._watches: dict[str, list[Watch]] = {}
        self._needed = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._forget_reconnect: Callable[[], None] = lambda: None

    async def start(self) -> asyncio.Task[None]:
        """Subscribes and starts the safety net; its task is for supervision and ended by whoever holds it."""
        self._subscriptions = [
            await self._bus.subscribe(self._watcher, self._on_changes),
            await self._bus.subscribe(OWNERS, self._on_owners),
            await self._bus.subscribe(RESETS, self._on_resets),
        ]
        self._forget_reconnect = self._bus.on_reconnect(self._renew_all)
        # Asked for when somebody looks, not told with each run.
        _NAMES.set_function(lambda: len(self._awaited))
        _OPEN.set_function(lambda: self._open)
        return asyncio.create_task(self._safety_net(), name="hub-safety-net")

    async def close(self) -> None:
        """Ends every wait and watch with UNAVAILABLE, and the subscriptions."""
        self._closed = True
        self._forget_reconnect()
        awaited, self._awaited = self._awaited, {}
        for entry in awaited.values():
            for sink in entry.sinks:
                sink(stopping())
        for watches in list(self._watches.values()):
            for watch in watches:
                watch.fail(stopping())
        for subscription in self._subscriptions:
            await subscription.close()

    @property
    def _open(self) -> int:
        return self._admission.open

    def admit(self) -> _Admission:
        """Counts one open call, inside of `with`. Raises `Refused` (TOO_MANY_WATCHES) at the limit, UNAVAILABLE while
        stopping.
        """
        if self._closed:
            raise stopping()
        if self._open >= self._limit or len(self._awaited) >= _NAMES_LIMIT:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_TOO_MANY_WATCHES,
                f"{self._open} watches and waits are open at this gateway, which is its limit",
                retry_after_s=2.0,
            )
        return self._admission

    def started(self, name: RunName) -> None:
        """A run was accepted with this gateway's subject: its owner will tell without being asked."""
        if self._results.get(name.name) is None:
            if len(self._started) >= _STARTED_LIMIT:
                self._started.popitem(last=False)
            self._started[name.name] = name

    def wait(self, name: str, sink: Sink) -> None:
        """Calls `sink` when the run has ended; at once when that is known. Raises `Refused` for a malformed name."""
        run = self._results.get(name)
        if run is not None:
            sink(run)
            return
        entry = self._awaited.get(name)
        if entry is None:
            known = self._started.get(name)
            parsed = known or parse_run(name)
            if parsed.name != name:  # another spelling of the same name
                self.wait(parsed.name, sink)
                return
            if self._closed:
                raise stopping()
            entry = self._awaited[name] = _Awaited(parsed, time.monotonic())
            self._needed.set()
            if known is None:
                self._interests.want(parsed.run_id, steps=False)
                self._check(entry, entry.checked)
        entry.sinks.append(sink)

    async def ended(self, name: str, timeout_s: float) -> runs_pb2.Run | None:
        """The run once it has ended (shared: do not change it); None when it has not after `timeout_s`.

        Raises `Refused` for a malformed name, for a run that is not there, and when this gateway stops meanwhile.
        """
        loop = asyncio.get_running_loop()
        end: asyncio.Future[runs_pb2.Run | Refused | None] = loop.create_future()
        sink = partial(_settle, end)
        self.wait(name, sink)
        if not end.done():
            timer = loop.call_later(timeout_s, _settle, end, None)
            try:
                await end
            finally:
                timer.cancel()
                self.leave(name, sink)
        result = end.result()
        if isinstance(result, Refused):
            raise result
        return result

    def leave(self, name: str, sink: Sink) -> None:
        """Takes a sink back: it will not be called any more."""
        entry = self._awaited.get(name) or self._awaited.get(name.lower())
        if entry is not None and sink in entry.sinks:
            entry.sinks.remove(sink)
            if not entry.sinks:
                del self._awaited[entry.name.name]

    @contextmanager
    def watch(self, name: RunName) -> Iterator[Watch]:
        """A registered watch: from here on it is offered every change of the run that this gateway hears of."""
        watch = Watch(name, time.monotonic())
        self._watches.setdefault(name.name, []).append(watch)
        self._needed.set()
        self._interests.want(name.run_id, steps=True)
        try:
            yield watch
        finally:
            watches = self._watches[name.name]
            watches.remove(watch)
            if not watches:
                del self._watches[name.name]

    # -- news ---------------------------------------------------------------------------------------------------------

    def _on_changes(self, message: Message) -> None:
        watched = self._watches
        told = 0
        for change in dispatch_pb2.ChangeBatch.FromString(message.data).changes:
            run = change.run
            if watched:
                for watch in watched.get(run.name, ()):
                    watch.offer(change)
            if run.state in TERMINAL:
                told += self._ended(run)
        if told:
            _PUSHED.inc(told)

    def _ended(self, run: runs_pb2.Run) -> bool:
        """Whether somebody waited for it."""
        name = run.name
        self._results.put(run)
        self._started.pop(name, None)
        entry = self._awaited.pop(name, None)
        if entry is None:
            return False
        for sink in entry.sinks:
            sink(run)
        return True

    def _on_owners(self, message: Message) -> None:
        groups = set(dispatch_pb2.OwnerChanged.FromString(message.data).groups)
        group = self._interests.group
        now = time.monotonic()
        # The earlier owner may have been lost between a commit and what it had to tell of it.
        for name in [name for name, run in self._started.items() if group(run.run_id) in groups]:
            del self._started[name]
        for entry in self._awaited.values():
            if group(entry.name.run_id) in groups:
                self._renew(entry, now)
        for watches in self._watches.values():
            if group(watches[0].name.run_id) in groups:
                self._interests.want(watches[0].name.run_id, steps=True)

    def _on_resets(self, message: Message) -> None:
        for change in dispatch_pb2.ChangeBatch.FromString(message.data).changes:
            self._results.outdate(change.run.name, change.run.change)

    def _renew_all(self) -> None:
        """After a reconnect: ends of runs and resets may have been told meanwhile."""
        self._started.clear()
        self._results.clear()
        now = time.monotonic()
        for entry in self._awaited.values():
            self._renew(entry, now)
        for watches in self._watches.values():
            self._interests.want(watches[0].name.run_id, steps=True)

    def _renew(self, entry: _Awaited, now: float) -> None:
        """Says the interest again; what happened before it is heard is found by the next round of the safety net."""
        entry.renewed = now
        entry.checked = 0.0
        self._interests.want(entry.name.run_id, steps=False)

    # -- the safety net -----------------------------------------------------------------------------------------------

    async def _safety_net(self) -> None:
        while True:
            await self._needed.wait()
            await asyncio.sleep(CHECK_PERIOD_S)
            now = time.monotonic()
            due = CHECK_PERIOD_S * 0.9
            checks = 0
            for entry in self._awaited.values():
                if now - entry.renewed >= RENEW_PERIOD_S:
                    entry.renewed = now
                    self._interests.want(entry.name.run_id, steps=False)
                if not entry.asked and now - entry.checked >= due and checks < _CHECKS_PER_ROUND:
                    checks += 1
                    self._check(entry, now)
            for watches in list(self._watches.values()):
                first = watches[0]
                if now - first.renewed >= RENEW_PERIOD_S:
                    first.renewed = now
                    self._interests.want(first.name.run_id, steps=True)
                if not first.asked and first.idle_since + due <= now:
                    first.asked = True
                    self._reader.ask(first.name, partial(self._watched_read, first))
            if not self._awaited and not self._watches:
                self._needed.clear()

    def _check(self, entry: _Awaited, now: float) -> None:
        entry.asked = True
        entry.checked = now
        self._reader.ask(entry.name, partial(self._awaited_read, entry))

    def _awaited_read(self, entry: _Awaited, answer: Answer) -> None:
        entry.asked = False
        if isinstance(answer, Refused) or self._awaited.get(entry.name.name) is not entry:
            return  # the next round asks again; or nobody waits any more
        if answer is None:
            del self._awaited[entry.name.name]
            for sink in entry.sinks:
                sink(run_not_found(entry.name.name))
        elif answer.state in TERMINAL:
            run = runs_pb2.Run()
            run.CopyFrom(answer)  # the answer shares memory with up to 200 others
            if self._ended(run):
                _READ.inc()

    def _watched_read(self, asked: Watch, answer: Answer) -> None:
        asked.asked = False
        if isinstance(answer, runs_pb2.Run):
            for watch in self._watches.get(answer.name, ()):
                watch.recorded(answer.change)


def _settle(end: asyncio.Future[runs_pb2.Run | Refused | None], result: runs_pb2.Run | Refused | None) -> None:
    if not end.done():
        end.set_result(result)
