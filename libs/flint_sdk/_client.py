"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from flint_contracts.gen.flint.approvals.v1 import approvals_pb2
from flint_contracts.gen.flint.events.v1 import events_pb2
from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.functions.v1 import functions_pb2
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.limits.v1 import limits_pb2
from flint_contracts.gen.flint.namespaces.v1 import namespaces_pb2
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_sdk._approvals import Approval, ApprovalState, approval_from, approval_name, decide_request
from flint_sdk._coalescing import Starts
from flint_sdk._control import AsyncControl, duration, own_id
from flint_sdk._endpoint import find_endpoint
from flint_sdk._errors import FlintError, RunCancelled, RunFailed
from flint_sdk._events import PublishedEvent, ReceivedEvent, publish, subscribe
from flint_sdk._messages import (
    decode_json,
    entry_from,
    finding_from,
    function_from,
    key_from,
    limit_from,
    role_number,
    run_from,
    timestamp,
    worker_from,
    workflow_from,
)
from flint_sdk._models import (
    Applied,
    CreatedKey,
    HistoryEntry,
    Key,
    NamedLimit,
    Pool,
    Problem,
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
from flint_sdk._names import key_name, run_name, worker_name, workflow_name
from flint_sdk._namespaces import (
    NamespaceSettings,
    QueuedPool,
    Retention,
    pool_from,
    retention_from,
    settings_from,
)
from flint_sdk._payloads import INLINE_BYTES, resolve, upload_input
from flint_sdk._pools import decision_from, fleet_pool_from, pool_name, update_request
from flint_sdk._schedules import AsyncSchedules
from flint_sdk._starting import start_batch, start_request, start_requests
from flint_sdk._transport import Transport
from flint_sdk._waiting import Waiting
from flint_sdk._watching import watch_run

DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_RECONNECT_S: Final = 120.0


class AsyncRunHandle:
    """A started run. `created` is false when the request_id had been used for the same start before."""

    def __init__(self, client: AsyncFlint, response: runs_pb2.StartRunResponse) -> None:
        self._client = client
        self._response = response
        self.name = response.run.name
        self.created = response.created

    @property
    def id(self) -> str:
        """The run's id."""
        return self.name.rpartition("/")[2]

    @cached_property
    def run(self) -> Run:
        """The run as it was when the start was answered, without input."""
        return run_from(self._response.run)  # only now: most callers of many starts never look

    def __repr__(self) -> str:
        return f"<AsyncRunHandle {self.name}>"

    async def result(self, timeout_s: float | None = None) -> Any:
        """The output once the run has ended. See `AsyncFlint.result`."""
        return await self._client.result(self.name, timeout_s)

    def watch(self, *, cursor: int | None = None, recorded_only: bool = False) -> AsyncIterator[WatchEvent]:
        """The run's events until it has ended. See `AsyncFlint.watch`."""
        return self._client.watch(self.name, cursor=cursor, recorded_only=recorded_only)

    async def cancel(self, reason: str = "", *, grace_s: float | None = None) -> Run:
        """Asks the run to end early. See `AsyncFlint.cancel`."""
        return await self._client.cancel(self.name, reason, grace_s=grace_s)

    async def get(self) -> Run:
        """The run as it is now."""
        return await self._client.get_run(self.name)


class AsyncFlint(AsyncControl):
    """A client of Flint for asyncio.

    `address`: one gateway `host:port`, or several that are tried in turn; else FLINT_ADDRESS (comma-separated), else
    the nearest `.flint/flint.toml` upwards. `key`: an API key; else FLINT_KEY, else the local admin key beside that
    file. `timeout_s`: overall deadline of one call, repeats included. `reconnect_s`: how long a watch or a wait
    keeps trying while no gateway is reachable. `coalesce_starts`: starts that come while another one's call is under
    way travel together in the next call, which costs everybody less; a start that comes alone goes out at once in any
    case. False gives each start a call of its own.

    Belongs to the event loop in which it is first used; within it, any number of tasks may share it. Close it with
    `async with` or `close()`. Every method raises FlintError's subclasses.
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
        self.namespace = namespace
        self._transport = Transport(find_endpoint(address, key), timeout_s)
        self._reconnect_s = reconnect_s
        self._starts = Starts(self._transport, coalesce=coalesce_starts)
        self._waiting = Waiting(self._transport, reconnect_s)
        self.schedules = AsyncSchedules(self._transport, namespace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends waits and watches and closes the connections. May be called again."""
        await self._waiting.close()
        await self._starts.close()
        await self._transport.close()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The gateways of this client."""
        return self._transport.endpoint.addresses

    @property
    def _parent(self) -> str:
        return f"namespaces/{self.namespace}"

    # Workflows

    async def apply(self, source: str | bytes | Path, *, validate_only: bool = False) -> Applied:
        """Checks a definition and stores it as a new version. A Path is read; text is the definition itself.

        Applying the same content again answers the stored version (`created` is false). Raises DefinitionInvalid with
        line and column, VersionExists, OSError for a file that cannot be read.
        """
        text = await asyncio.to_thread(source.read_bytes) if isinstance(source, Path) else source
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        request = workflows_pb2.ApplyWorkflowRequest(parent=self._parent, source=text, validate_only=validate_only)
        answer = await self._transport.call(lambda gateway: gateway.workflows.ApplyWorkflow, request)
        return Applied(workflow_from(answer.workflow), answer.created, tuple(finding_from(f) for f in answer.findings))

    async def get_workflow(self, workflow: str, version: str | None = None) -> Workflow:
        """One version with its source; the latest unless told otherwise."""
        request = workflows_pb2.GetWorkflowRequest(name=workflow_name(self.namespace, workflow, version))
        answer = await self._transport.call(lambda gateway: gateway.workflows.GetWorkflow, request)
        return workflow_from(answer.workflow)

    async def list_workflows(self, workflow: str | None = None) -> AsyncIterator[Workflow]:
        """All workflows (their latest versions), or all versions of one, newest first. Fetches page by page."""
        parent = self._parent if workflow is None else workflow_name(self.namespace, workflow)
        request = workflows_pb2.ListWorkflowsRequest(parent=parent)
        while True:
            answer = await self._transport.call(lambda gateway: gateway.workflows.ListWorkflows, request)
            for found in answer.workflows:
                yield workflow_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def delete_workflow(self, workflow: str, version: str) -> None:
        """Deletes one version that no unfinished run uses. Raises WorkflowInUse, WorkflowNotFound."""
        request = workflows_pb2.DeleteWorkflowRequest(name=workflow_name(self.namespace, workflow, version))
        await self._transport.call(lambda gateway: gateway.workflows.DeleteWorkflow, request)

    # Runs

    async def start(
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
    ) -> AsyncRunHandle:
        """Starts a run; when this returns, the run is stored durably.

        `input`: any JSON value, None means an empty object. `request_id`: the same id again answers the same run;
        one is made up when none is given, so that a start is safe to repeat while a gateway is away. `level`: 0 (most
        urgent) to 9, or the name that the namespace gave to one; 5 unless told otherwise. `pool`, `region`: where it is
        executed. `deadline`: when it should have ended; `not_before`: it is not begun earlier. `fairness_key`: runs
        with different keys take turns. What is None is the definition's.
        """
        start = StartRequest(
            workflow, input, request_id, version, level, pool, region, deadline, fairness_key, not_before
        )
        request = start_request(start, self._parent)
        await self._make_small([request], None)
        return AsyncRunHandle(self, await self._starts.start(request))

    async def start_many(
        self, starts: Iterable[StartRequest], *, timeout_s: float | None = None
    ) -> list[AsyncRunHandle | FlintError]:
        """Starts many runs in few calls. In the order of `starts`: a handle, or the typed error that refused that
        start.

        Raises only when a whole call could not be made; what was started before that stays started.
        """
        requests = start_requests(starts, self._parent)
        await self._make_small(requests, timeout_s)
        results = await start_batch(self._transport, self._parent, requests, timeout_s)
        return [result if isinstance(result, FlintError) else AsyncRunHandle(self, result) for result in results]

    async def get_run(self, run: str) -> Run:
        """One run, by id or name."""
        request = runs_pb2.GetRunRequest(name=run_name(self.namespace, run))
        answer = await self._transport.call(lambda gateway: gateway.runs.GetRun, request)
        return run_from(answer.run)

    async def wait(self, run: str, timeout_s: float | None = None) -> Run:
        """The run once it has ended, however it ended. Raises TimedOut after `timeout_s` (None: no limit).

        All waits of one client share one stream.
        """
        return run_from(await self._waiting.ended(run_name(self.namespace, run), timeout_s))

    async def result(self, run: str, timeout_s: float | None = None) -> Any:
        """The output once the run has ended, large values in it included. Raises RunFailed, RunCancelled, TimedOut."""
        message = await self._waiting.ended(run_name(self.namespace, run), timeout_s)
        if message.state == runs_pb2.Run.STATE_SUCCEEDED:
            return await self.resolve(decode_json(message.output))
        ended = run_from(message)
        if ended.state is RunState.FAILED:
            raise RunFailed(ended, ended.error or Problem("about:blank", 0, "failed without a problem", "", ""))
        if ended.state is RunState.CANCELLED:
            raise RunCancelled(ended)
        return ended.output

    async def resolve(self, value: Any, timeout_s: float | None = None) -> Any:
        """A value with contents in place of references to large ones (`{"$payload": …}`), as outputs, inputs and
        results of steps may hold them. One without references is answered as it is. Raises PayloadNotFound.
        """
        return await resolve(self._transport, self._parent, value, timeout_s)

    async def _make_small(self, requests: list[runs_pb2.StartRunRequest], timeout_s: float | None) -> None:
        for request in requests:
            if len(request.input) > INLINE_BYTES:
                request.input = await upload_input(self._transport, self._parent, request.input, timeout_s)

    def watch(self, run: str, *, cursor: int | None = None, recorded_only: bool = False) -> AsyncIterator[WatchEvent]:
        """Events of a run until it has ended: first a RunSnapshot (unless `cursor` is set), then RunChanged and
        StepBegan.

        Reconnects by itself, to another gateway if need be, and goes on from its cursor: WatchInterrupted and
        WatchResumed tell about it. `recorded_only` leaves out StepBegan. Raises Unavailable when nothing is
        reachable for `reconnect_s`.
        """
        name = run_name(self.namespace, run)
        return watch_run(self._transport, name, cursor, recorded_only, self._reconnect_s)

    async def list_runs(
        self,
        *,
        workflow: str | None = None,
        states: Iterable[RunState | str] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        branches_of: str | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[Run]:
        """Runs, newest first, without input and output. Fetches page by page (`page_size` 0: the server's choice).

        `branches_of`: only the branch runs of this run, which other lists leave out.
        """
        request = runs_pb2.ListRunsRequest(
            parent=self._parent,
            workflow_id=workflow or "",
            states=[runs_pb2.Run.State.Value(f"STATE_{RunState(state).value}") for state in states],
            created_after=timestamp(created_after),
            created_before=timestamp(created_before),
            branches_of="" if branches_of is None else run_name(self.namespace, branches_of),
            page_size=page_size,
        )
        while True:
            answer = await self._transport.call(lambda gateway: gateway.runs.ListRuns, request)
            for found in answer.runs:
                yield run_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def cancel(self, run: str, reason: str = "", *, grace_s: float | None = None, request_id: str = "") -> Run:
        """Asks a run to end early; returns when the request is stored. Raises RunEnded when it has ended already.

        Steps that are under way may end within the grace (unset: the cluster's `scheduler.cancel_grace_s`).
        `request_id` as of the other commands (`AsyncControl`).
        """
        request = runs_pb2.CancelRunRequest(
            name=run_name(self.namespace, run),
            reason=reason,
            grace=duration(grace_s),
            request_id=own_id(request_id),
        )
        answer = await self._transport.call(lambda gateway: gateway.runs.CancelRun, request)
        return run_from(answer.run)

    async def history(self, run: str) -> AsyncIterator[HistoryEntry]:
        """The recorded entries of a run's journal, in order. Fetches page by page."""
        request = runs_pb2.GetRunHistoryRequest(name=run_name(self.namespace, run))
        while True:
            answer = await self._transport.call(lambda gateway: gateway.runs.GetRunHistory, request)
            for found in answer.entries:
                yield entry_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    # Events

    async def publish_events(
        self, events: Iterable[Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> list[PublishedEvent | FlintError]:
        """Publishes CloudEvents to the runs that listen. In the order of `events`: what was stored, or the typed error
        that refused the event.

        Each needs `type` and `source`; `id`, `time` and `specversion` are made up when they are left out. The same
        event again (source and id) is ignored. Raises only when a whole call could not be made; what was published
        before that stays published.
        """
        return await publish(self._transport, self._parent, events, timeout_s)

    def subscribe_events(
        self,
        *,
        types: Iterable[str] = (),
        sources: Iterable[str] = (),
        cursor: str | None = None,
        lifecycle: bool = True,
    ) -> AsyncIterator[ReceivedEvent]:
        """The namespace's events as they come, those that runs emit and lifecycle events included; for ever.

        `types`: only types that begin with one of these. `cursor`: go on after an event that was received before, as
        far as events are kept. Reconnects by itself, to another gateway if need be, and goes on where it was. Lifecycle
        events are live only. Raises Unavailable when nothing is reachable for `reconnect_s`.
        """
        request = events_pb2.SubscribeEventsRequest(
            parent=self._parent,
            type_prefixes=list(types),
            sources=list(sources),
            cursor=cursor or "",
            without_lifecycle=not lifecycle,
        )
        return subscribe(self._transport, request, self._reconnect_s)

    # Approvals

    async def list_approvals(
        self,
        *,
        states: Iterable[ApprovalState | str] = (),
        assignee: str | None = None,
        workflow: str | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[Approval]:
        """Approvals, newest first, without forms. Fetches page by page (`page_size` 0: the server's choice)."""
        request = approvals_pb2.ListApprovalsRequest(
            parent=self._parent,
            states=[approvals_pb2.Approval.State.Value(f"STATE_{ApprovalState(state).value}") for state in states],
            assignee=assignee or "",
            workflow_id=workflow or "",
            page_size=page_size,
        )
        while True:
            answer = await self._transport.call(lambda gateway: gateway.approvals.ListApprovals, request)
            for found in answer.approvals:
                yield approval_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def get_approval(self, approval: str) -> Approval:
        """One approval with its form, by name or `{run}/{key}`."""
        request = approvals_pb2.GetApprovalRequest(name=approval_name(self.namespace, approval))
        answer = await self._transport.call(lambda gateway: gateway.approvals.GetApproval, request)
        return approval_from(answer.approval)

    async def decide_approval(
        self, approval: str, *, approve: bool, comment: str = "", fields: Any = None, decided_by: str = ""
    ) -> Approval:
        """Approves or rejects; returns when the decision is stored. `fields` follow the approval's form.

        The same decision by the same person again is no error. Raises ApprovalDecided, ApprovalClosed, InvalidArgument.
        """
        name = approval_name(self.namespace, approval)
        request = decide_request(name, approve=approve, comment=comment, fields=fields, decided_by=decided_by)
        answer = await self._transport.call(lambda gateway: gateway.approvals.DecideApproval, request)
        return approval_from(answer.approval)

    # Fleet

    async def list_workers(self, *, pool: str | None = None, show_ended: bool = False) -> AsyncIterator[Worker]:
        """Live workers, by pool and id; with `show_ended` also those that ended within the last hour."""
        request = fleet_pb2.ListWorkersRequest(pool=pool or "", show_ended=show_ended)
        while True:
            answer = await self._transport.call(lambda gateway: gateway.fleet.ListWorkers, request)
            for found in answer.workers:
                yield worker_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def list_pools(self) -> list[Pool]:
        """Pools with their capacity and load, by name."""
        answer = await self._transport.call(lambda gateway: gateway.fleet.ListPools, fleet_pb2.ListPoolsRequest())
        return [fleet_pool_from(pool) for pool in answer.pools]

    async def get_pool(self, pool: str, *, region: str = "local") -> Pool:
        """One pool, by name. Raises NotFound."""
        request = fleet_pb2.GetPoolRequest(name=pool_name(pool, region))
        answer = await self._transport.call(lambda gateway: gateway.fleet.GetPool, request)
        return fleet_pool_from(answer.pool)

    async def update_pool(self, pool: str, *, region: str = "local", **changes: Any) -> Pool:
        """Changes how a pool is scaled: members of PoolSettings; None goes back to the default. Role: cluster admin."""
        request = update_request(pool_name(pool, region), changes)
        answer = await self._transport.call(lambda gateway: gateway.fleet.UpdatePool, request)
        return fleet_pool_from(answer.pool)

    async def list_scaling_decisions(
        self, *, pool: str | None = None, region: str = "local", changes_only: bool = False
    ) -> AsyncIterator[ScalingDecision]:
        """The autoscaler's ledger, the latest first; of one pool, or of all."""
        name = pool_name(pool, region) if pool else ""
        request = fleet_pb2.ListScalingDecisionsRequest(pool=name, changes_only=changes_only)
        while True:
            answer = await self._transport.call(lambda gateway: gateway.fleet.ListScalingDecisions, request)
            for found in answer.decisions:
                yield decision_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def drain_worker(self, worker: str) -> Worker:
        """Asks a worker (by incarnation) to take no more legs, give back what it holds and end."""
        request = fleet_pb2.DrainWorkerRequest(name=worker_name(worker))
        answer = await self._transport.call(lambda gateway: gateway.fleet.DrainWorker, request)
        return worker_from(answer.worker)

    async def release_worker(self, worker: str) -> bool:
        """Lifts the quarantine of a worker (by incarnation), which gets legs again within seconds.

        False when it was not quarantined, or is quarantined for good.
        """
        request = fleet_pb2.ReleaseWorkerRequest(name=worker_name(worker))
        return (await self._transport.call(lambda gateway: gateway.fleet.ReleaseWorker, request)).released

    # Functions

    async def list_functions(self) -> AsyncIterator[RegisteredFunction]:
        """Versions of custom functions that ever connected, by name, the highest first. Fetches page by page."""
        request = functions_pb2.ListFunctionsRequest(parent=self._parent)
        while True:
            answer = await self._transport.call(lambda gateway: gateway.functions.ListFunctions, request)
            for found in answer.functions:
                yield function_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    # Limits

    async def namespace_settings(self, namespace: str | None = None) -> NamespaceSettings:
        """What a namespace may use, and its names of levels; this client's namespace unless told."""
        request = namespaces_pb2.GetNamespaceSettingsRequest(name=f"namespaces/{namespace or self.namespace}/settings")
        answer = await self._transport.call(lambda gateway: gateway.namespaces.GetNamespaceSettings, request)
        return settings_from(answer.settings)

    async def set_namespace(self, namespace: str | None = None, **changes: float) -> NamespaceSettings:
        """Changes some of weight, max_running, max_queued, starts_per_second, starts_burst, retention_days; 0 takes it
        away.

        Needs a key of the cluster's administrator.
        """
        request = namespaces_pb2.UpdateNamespaceSettingsRequest()
        request.settings.name = f"namespaces/{namespace or self.namespace}/settings"
        for name, value in changes.items():
            setattr(request.settings, name, value)
            request.update_mask.paths.append(name)
        answer = await self._transport.call(lambda gateway: gateway.namespaces.UpdateNamespaceSettings, request)
        return settings_from(answer.settings)

    async def describe_retention(self, namespace: str | None = None) -> Retention:
        """How long ended runs of a namespace are kept, and what was deleted so far."""
        name = namespace or self.namespace
        request = namespaces_pb2.DescribeRetentionRequest(name=f"namespaces/{name}/settings")
        answer = await self._transport.call(lambda gateway: gateway.namespaces.DescribeRetention, request)
        return retention_from(name, answer.retention)

    async def name_level(self, name: str, level: int) -> NamespaceSettings:
        """Names a level of the namespace, 0 (most urgent) to 9."""
        request = namespaces_pb2.SetLevelRequest(name=f"{self._parent}/settings")
        request.level.name, request.level.level = name, level
        answer = await self._transport.call(lambda gateway: gateway.namespaces.SetLevel, request)
        return settings_from(answer.settings)

    async def forget_level(self, name: str) -> NamespaceSettings:
        """Forgets the name of a level; starts and definitions that use it are refused from then on."""
        request = namespaces_pb2.DeleteLevelRequest(name=f"{self._parent}/settings", level_name=name)
        answer = await self._transport.call(lambda gateway: gateway.namespaces.DeleteLevel, request)
        return settings_from(answer.settings)

    async def describe_queue(self) -> list[QueuedPool]:
        """What waits for slots in the whole cluster, by pool and region; at most some seconds old."""
        request = namespaces_pb2.DescribeQueueRequest()
        answer = await self._transport.call(lambda gateway: gateway.namespaces.DescribeQueue, request)
        return [pool_from(pool) for pool in answer.pools]

    async def set_limit(
        self, name: str, *, concurrency: int | None = None, rate: tuple[int, float] | None = None, burst: int = 1
    ) -> NamedLimit:
        """Sets what a named limit allows: `concurrency` runs at a time, `rate` (runs, in so many seconds), or both.

        It replaces what the limit said before, and counts from the next run that asks. `burst` runs may begin at once
        after a pause.
        """
        limit = limits_pb2.Limit()
        if concurrency is not None:
            limit.concurrency = concurrency
        if rate is not None:
            limit.rate.count = rate[0]
            limit.rate.period.FromMilliseconds(round(rate[1] * 1000))
            limit.rate.burst = burst
        request = limits_pb2.SetLimitRequest(name=f"{self._parent}/limits/{name}", limit=limit)
        answer = await self._transport.call(lambda gateway: gateway.limits.SetLimit, request)
        return limit_from(answer.limit)

    async def list_limits(self) -> AsyncIterator[NamedLimit]:
        """The namespace's named limits, by name. Fetches page by page."""
        request = limits_pb2.ListLimitsRequest(parent=self._parent)
        while True:
            answer = await self._transport.call(lambda gateway: gateway.limits.ListLimits, request)
            for found in answer.limits:
                yield limit_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def delete_limit(self, name: str) -> None:
        """Forgets a named limit. Runs of definitions that name it wait until it is set again."""
        request = limits_pb2.DeleteLimitRequest(name=f"{self._parent}/limits/{name}")
        await self._transport.call(lambda gateway: gateway.limits.DeleteLimit, request)

    # Keys

    async def create_key(
        self, display_name: str, role: Role | str, *, expire_time: datetime | None = None, all_namespaces: bool = False
    ) -> CreatedKey:
        """Creates an API key. Its secret is in this answer only. Never repeated by itself: a repeat would make a
        second key.
        """
        request = identity_pb2.CreateKeyRequest(
            parent="namespaces/-" if all_namespaces else self._parent,
            display_name=display_name,
            role=role_number(role),
            expire_time=timestamp(expire_time),
        )
        answer = await self._transport.call(lambda gateway: gateway.identity.CreateKey, request, idempotent=False)
        return CreatedKey(key_from(answer.key), answer.secret)

    async def list_keys(self, *, show_revoked: bool = False, all_namespaces: bool = False) -> AsyncIterator[Key]:
        """Keys without secrets, newest first."""
        parent = "namespaces/-" if all_namespaces else self._parent
        request = identity_pb2.ListKeysRequest(parent=parent, show_revoked=show_revoked)
        while True:
            answer = await self._transport.call(lambda gateway: gateway.identity.ListKeys, request)
            for found in answer.keys:
                yield key_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def revoke_key(self, key: str) -> Key:
        """Revokes a key, by id or name. Gateways refuse it a few seconds later at the latest (identity.cache_ttl_s)."""
        request = identity_pb2.RevokeKeyRequest(name=key_name(self.namespace, key))
        answer = await self._transport.call(lambda gateway: gateway.identity.RevokeKey, request)
        return key_from(answer.key)

    async def who_am_i(self) -> Key:
        """The key that this client shows."""
        answer = await self._transport.call(lambda gateway: gateway.identity.WhoAmI, identity_pb2.WhoAmIRequest())
        return key_from(answer.key)
