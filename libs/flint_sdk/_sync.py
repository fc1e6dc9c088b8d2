"""The blocking client: the asyncio client on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from flint_sdk._approvals import Approval, ApprovalState
from flint_sdk._client import DEFAULT_RECONNECT_S, DEFAULT_TIMEOUT_S, AsyncFlint, AsyncRunHandle
from flint_sdk._errors import FlintError
from flint_sdk._events import PublishedEvent, ReceivedEvent
from flint_sdk._models import (
    Applied,
    CreatedKey,
    HistoryEntry,
    Key,
    NamedLimit,
    Pool,
    RegisteredFunction,
    Role,
    Run,
    RunState,
    ScalingDecision,
    StartRequest,
    WatchEvent,
    Worker,
    Workflow,
)
from flint_sdk._namespaces import NamespaceSettings, QueuedPool, Retention
from flint_sdk._schedules import Schedules
from flint_sdk._sync_control import SyncControl

T = TypeVar("T")

_CLOSE_S = 10.0


class _LoopThread:
    """One event loop in a daemon thread. Waiting for it may be interrupted; the coroutine is then cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flint-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise FlintError("the blocking client cannot be used inside its own event loop")
        if self._loop.is_closed():
            coroutine.close()
            raise FlintError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def step() -> tuple[bool, T | None]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        async def close() -> None:
            closing = getattr(items, "aclose", None)
            if closing is not None:
                await closing()

        try:
            while True:
                more, item = self.run(step())
                if not more:
                    return
                yield item  # type: ignore[misc]
        finally:
            if not self._loop.is_closed():
                self.run(close())

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()


_clients: weakref.WeakSet[Flint] = weakref.WeakSet()


@atexit.register
def _close_clients() -> None:
    """Ends the threads before the interpreter takes their world away."""
    for client in list(_clients):
        client.close()


class RunHandle:
    """A started run. `created` is false when the request_id had been used for the same start before."""

    def __init__(self, client: Flint, started: AsyncRunHandle) -> None:
        self._client = client
        self._started = started
        self.name = started.name
        self.created = started.created

    @property
    def id(self) -> str:
        """The run's id."""
        return self._started.id

    @property
    def run(self) -> Run:
        """The run as it was when the start was answered, without input."""
        return self._started.run

    def __repr__(self) -> str:
        return f"<RunHandle {self.name}>"

    def result(self, timeout_s: float | None = None) -> Any:
        """The output once the run has ended. See `Flint.result`."""
        return self._client.result(self.name, timeout_s)

    def watch(self, *, cursor: int | None = None, recorded_only: bool = False) -> Iterator[WatchEvent]:
        """The run's events until it has ended. See `Flint.watch`."""
        return self._client.watch(self.name, cursor=cursor, recorded_only=recorded_only)

    def cancel(self, reason: str = "", *, grace_s: float | None = None) -> Run:
        """Asks the run to end early. See `Flint.cancel`."""
        return self._client.cancel(self.name, reason, grace_s=grace_s)

    def get(self) -> Run:
        """The run as it is now."""
        return self._client.get_run(self.name)


class Flint(SyncControl):
    """A blocking client of Flint, with the surface of `AsyncFlint` (see there for every method's promises).

    Thread-safe: any number of threads may share it. Close it with `with` or `close()`.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        key: str | None = None,
        namespace: str = "default",
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        reconnect_s: float = DEFAULT_RECONNECT_S,
        coalesce_starts: bool = True,
    ) -> None:
        self._client = AsyncFlint(
            address,
            key,
            namespace,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
            coalesce_starts=coalesce_starts,
        )
        self._thread = _LoopThread()
        self.schedules = Schedules(self._thread, self._client.schedules)
        self._closed = False
        _clients.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends waits and watches, closes the connections and ends the thread. May be called again."""
        if self._closed:
            return
        self._closed = True
        _clients.discard(self)
        try:
            self._thread.run(self._client.close(), _CLOSE_S)
        finally:
            self._thread.close()

    @property
    def namespace(self) -> str:
        """The namespace of this client."""
        return self._client.namespace

    @property
    def addresses(self) -> tuple[str, ...]:
        """The gateways of this client."""
        return self._client.addresses

    # Workflows

    def apply(self, source: str | bytes | Path, *, validate_only: bool = False) -> Applied:
        """Checks a definition and stores it as a new version. A Path is read; text is the definition itself."""
        return self._thread.run(self._client.apply(source, validate_only=validate_only))

    def get_workflow(self, workflow: str, version: str | None = None) -> Workflow:
        """One version with its source; the latest unless told otherwise."""
        return self._thread.run(self._client.get_workflow(workflow, version))

    def list_workflows(self, workflow: str | None = None) -> Iterator[Workflow]:
        """All workflows (their latest versions), or all versions of one, newest first."""
        return self._thread.iterate(self._client.list_workflows(workflow))

    def delete_workflow(self, workflow: str, version: str) -> None:
        """Deletes one version that no unfinished run uses."""
        self._thread.run(self._client.delete_workflow(workflow, version))

    # Runs

    def start(
        self,
        workflow: str,
        input: Any = None,
        *,
        request_id: str | None = None,
        version: str | None = None,
        level: int | str | None = None,
        pool: str | None = None,
        region: str | None = None,
        deadline: datetime | None = None,
        fairness_key: str | None = None,
        not_before: datetime | None = None,
    ) -> RunHandle:
        """Starts a run; when this returns, the run is stored durably."""
        started = self._thread.run(
            self._client.start(
                workflow,
                input,
                request_id=request_id,
                version=version,
                level=level,
                pool=pool,
                region=region,
                deadline=deadline,
                fairness_key=fairness_key,
                not_before=not_before,
            )
        )
        return RunHandle(self, started)

    def start_many(
        self, starts: Iterable[StartRequest], *, timeout_s: float | None = None
    ) -> list[RunHandle | FlintError]:
        """Starts many runs in few calls. In the order of `starts`: a handle, or the typed error that refused that
        start.
        """
        results = self._thread.run(self._client.start_many(starts, timeout_s=timeout_s))
        return [result if isinstance(result, FlintError) else RunHandle(self, result) for result in results]

    def get_run(self, run: str) -> Run:
        """One run, by id or name."""
        return self._thread.run(self._client.get_run(run))

    def wait(self, run: str, timeout_s: float | None = None) -> Run:
        """The run once it has ended, however it ended. Raises TimedOut after `timeout_s` (None: no limit)."""
        return self._thread.run(self._client.wait(run, timeout_s))

    def result(self, run: str, timeout_s: float | None = None) -> Any:
        """The output once the run has ended. Raises RunFailed, RunCancelled, TimedOut."""
        return self._thread.run(self._client.result(run, timeout_s))

    def resolve(self, value: Any, timeout_s: float | None = None) -> Any:
        """A value with contents in place of references to large ones. Raises PayloadNotFound."""
        return self._thread.run(self._client.resolve(value, timeout_s))

    def watch(self, run: str, *, cursor: int | None = None, recorded_only: bool = False) -> Iterator[WatchEvent]:
        """Events of a run until it has ended; reconnects by itself."""
        return self._thread.iterate(self._client.watch(run, cursor=cursor, recorded_only=recorded_only))

    def list_runs(
        self,
        *,
        workflow: str | None = None,
        states: Iterable[RunState | str] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        branches_of: str | None = None,
        page_size: int = 0,
    ) -> Iterator[Run]:
        """Runs, newest first, without input and output; with `branches_of` the branch runs of this run."""
        return self._thread.iterate(
            self._client.list_runs(
                workflow=workflow,
                states=states,
                created_after=created_after,
                created_before=created_before,
                branches_of=branches_of,
                page_size=page_size,
            )
        )

    def cancel(self, run: str, reason: str = "", *, grace_s: float | None = None, request_id: str = "") -> Run:
        """Asks a run to end early; returns when the request is stored. Raises RunEnded when it has ended already."""
        return self._thread.run(self._client.cancel(run, reason, grace_s=grace_s, request_id=request_id))

    def history(self, run: str) -> Iterator[HistoryEntry]:
        """The recorded entries of a run's journal, in order."""
        return self._thread.iterate(self._client.history(run))

    # Events

    def publish_events(
        self, events: Iterable[Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> list[PublishedEvent | FlintError]:
        """Publishes CloudEvents to the runs that listen. In order: what was stored, or the error that refused it."""
        return self._thread.run(self._client.publish_events(events, timeout_s=timeout_s))

    def subscribe_events(
        self,
        *,
        types: Iterable[str] = (),
        sources: Iterable[str] = (),
        cursor: str | None = None,
        lifecycle: bool = True,
    ) -> Iterator[ReceivedEvent]:
        """The namespace's events as they come, for ever; reconnects by itself."""
        return self._thread.iterate(
            self._client.subscribe_events(types=types, sources=sources, cursor=cursor, lifecycle=lifecycle)
        )

    # Approvals

    def list_approvals(
        self,
        *,
        states: Iterable[ApprovalState | str] = (),
        assignee: str | None = None,
        workflow: str | None = None,
        page_size: int = 0,
    ) -> Iterator[Approval]:
        """Approvals, newest first, without forms."""
        return self._thread.iterate(
            self._client.list_approvals(states=states, assignee=assignee, workflow=workflow, page_size=page_size)
        )

    def get_approval(self, approval: str) -> Approval:
        """One approval with its form, by name or `{run}/{key}`."""
        return self._thread.run(self._client.get_approval(approval))

    def decide_approval(
        self, approval: str, *, approve: bool, comment: str = "", fields: Any = None, decided_by: str = ""
    ) -> Approval:
        """Approves or rejects; returns when the decision is stored."""
        return self._thread.run(
            self._client.decide_approval(
                approval, approve=approve, comment=comment, fields=fields, decided_by=decided_by
            )
        )

    # Fleet

    def list_workers(self, *, pool: str | None = None, show_ended: bool = False) -> Iterator[Worker]:
        """Live workers, by pool and id; with `show_ended` also those that ended within the last hour."""
        return self._thread.iterate(self._client.list_workers(pool=pool, show_ended=show_ended))

    def list_pools(self) -> list[Pool]:
        """Pools with their capacity and load, by name."""
        return self._thread.run(self._client.list_pools())

    def get_pool(self, pool: str, *, region: str = "local") -> Pool:
        """One pool, by name. Raises NotFound."""
        return self._thread.run(self._client.get_pool(pool, region=region))

    def update_pool(self, pool: str, *, region: str = "local", **changes: Any) -> Pool:
        """Changes how a pool is scaled: members of PoolSettings; None goes back to the default. Role: cluster admin."""
        return self._thread.run(self._client.update_pool(pool, region=region, **changes))

    def list_scaling_decisions(
        self, *, pool: str | None = None, region: str = "local", changes_only: bool = False
    ) -> Iterator[ScalingDecision]:
        """The autoscaler's ledger, the latest first; of one pool, or of all."""
        return self._thread.iterate(
            self._client.list_scaling_decisions(pool=pool, region=region, changes_only=changes_only)
        )

    def drain_worker(self, worker: str) -> Worker:
        """Asks a worker (by incarnation) to take no more legs, give back what it holds and end."""
        return self._thread.run(self._client.drain_worker(worker))

    def release_worker(self, worker: str) -> bool:
        """Lifts the quarantine of a worker (by incarnation); False when it was in none that ends."""
        return self._thread.run(self._client.release_worker(worker))

    # Functions

    def list_functions(self) -> Iterator[RegisteredFunction]:
        """Versions of custom functions that ever connected, by name, the highest first. Fetches page by page."""
        return self._thread.iterate(self._client.list_functions())

    # Limits

    def namespace_settings(self, namespace: str | None = None) -> NamespaceSettings:
        """What a namespace may use, and its names of levels; this client's namespace unless told."""
        return self._thread.run(self._client.namespace_settings(namespace))

    def set_namespace(self, namespace: str | None = None, **changes: float) -> NamespaceSettings:
        """Changes some of weight, max_running, max_queued, starts_per_second, starts_burst, retention_days; 0 takes it
        away.

        Needs a key of the cluster's administrator.
        """
        return self._thread.run(self._client.set_namespace(namespace, **changes))

    def name_level(self, name: str, level: int) -> NamespaceSettings:
        """Names a level of the namespace, 0 (most urgent) to 9."""
        return self._thread.run(self._client.name_level(name, level))

    def forget_level(self, name: str) -> NamespaceSettings:
        """Forgets the name of a level; starts and definitions that use it are refused from then on."""
        return self._thread.run(self._client.forget_level(name))

    def describe_retention(self, namespace: str | None = None) -> Retention:
        """How long ended runs of a namespace are kept, and what was deleted so far."""
        return self._thread.run(self._client.describe_retention(namespace))

    def describe_queue(self) -> list[QueuedPool]:
        """What waits for slots in the whole cluster, by pool and region; at most some seconds old."""
        return self._thread.run(self._client.describe_queue())

    def set_limit(
        self, name: str, *, concurrency: int | None = None, rate: tuple[int, float] | None = None, burst: int = 1
    ) -> NamedLimit:
        """Sets what a named limit allows: `concurrency` runs at a time, `rate` (runs, in so many seconds), or both.

        It replaces what the limit said before, and counts from the next run that asks. `burst` runs may begin at once
        after a pause.
        """
        return self._thread.run(self._client.set_limit(name, concurrency=concurrency, rate=rate, burst=burst))

    def list_limits(self) -> Iterator[NamedLimit]:
        """The namespace's named limits, by name. Fetches page by page."""
        return self._thread.iterate(self._client.list_limits())

    def delete_limit(self, name: str) -> None:
        """Forgets a named limit. Runs of definitions that name it wait until it is set again."""
        self._thread.run(self._client.delete_limit(name))

    # Keys

    def create_key(
        self, display_name: str, role: Role | str, *, expire_time: datetime | None = None, all_namespaces: bool = False
    ) -> CreatedKey:
        """Creates an API key. Its secret is in this answer only."""
        return self._thread.run(
            self._client.create_key(display_name, role, expire_time=expire_time, all_namespaces=all_namespaces)
        )

    def list_keys(self, *, show_revoked: bool = False, all_namespaces: bool = False) -> Iterator[Key]:
        """Keys without secrets, newest first."""
        return self._thread.iterate(self._client.list_keys(show_revoked=show_revoked, all_namespaces=all_namespaces))

    def revoke_key(self, key: str) -> Key:
        """Revokes a key, by id or name."""
        return self._thread.run(self._client.revoke_key(key))

    def who_am_i(self) -> Key:
        """The key that this client shows."""
        return self._thread.run(self._client.who_am_i())
