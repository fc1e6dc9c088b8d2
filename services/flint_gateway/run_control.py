"""RunControlService: steers runs that exist, one or many, and holds workflows."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

import grpc

from flint_contracts.gen.flint.runs.v1 import control_pb2, runs_pb2
from flint_contracts.gen.flint.runs.v1.control_pb2_grpc import RunControlServiceServicer
from flint_contracts.gen.flint.scheduling.v1 import control_pb2 as inner_pb2
from flint_gateway.reading import RunReader
from flint_gateway.results import TERMINAL
from flint_gateway.validation import REQUEST_ID, check_json, namespace_of_parent, page_token_invalid
from flint_gateway.watching import Hub, run_not_found
from flint_ops.config import LimitSettings
from flint_rpc.errors import ErrorReason, FieldViolation, Refused, field_invalid, from_status_proto
from flint_rpc.names import RunName, is_label, parse_run
from flint_rpc.paging import PageBinding, page_size
from flint_rpc.upstream import Client

if TYPE_CHECKING:
    from flint_contracts.gen.flint.scheduling.v1.control_pb2_grpc import ControlServiceAsyncStub

__all__ = ["RunControlServicer", "grace_ms", "own_request_id"]

_TIMEOUT_S: Final = 15.0
_REASON_CHARACTERS: Final = 512
_WAIT_DEFAULT_S: Final = 60.0
_WAIT_MOST_S: Final = 600.0
_GRACE_MOST_S: Final = 3600.0
_LOOK_S: Final = 5.0
_RUNS: Final = 1000
_LEVELS: Final = 10
_SIGNAL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_SIGNAL_ID: Final = re.compile(r"[!-~]{1,128}")

Context = grpc.aio.ServicerContext[Any, Any]


class RunControlServicer(RunControlServiceServicer):
    """See the module. Callers are authenticated and authorised by the interceptor."""

    def __init__(
        self, client: Client[ControlServiceAsyncStub], hub: Hub, reader: RunReader, limits: LimitSettings
    ) -> None:
        self._client = client
        self._hub = hub
        self._reader = reader
        self._limits = limits

    # -- one run ------------------------------------------------------------------------------------------------------

    async def TerminateRun(
        self, request: control_pb2.TerminateRunRequest, context: Context
    ) -> control_pb2.TerminateRunResponse:
        """Answers when the command is stored."""
        _check_reason(request.reason, "reason")
        action = control_pb2.BatchAction(terminate=control_pb2.TerminateAction(reason=request.reason))
        return control_pb2.TerminateRunResponse(run=(await self._command(request.name, action, request.request_id)).run)

    async def PauseRun(self, request: control_pb2.PauseRunRequest, context: Context) -> control_pb2.PauseRunResponse:
        """Answers when the command is stored."""
        result = await self._command(request.name, control_pb2.BatchAction(pause=True), request.request_id)
        return control_pb2.PauseRunResponse(run=result.run)

    async def ResumeRun(self, request: control_pb2.ResumeRunRequest, context: Context) -> control_pb2.ResumeRunResponse:
        """Answers when the command is stored."""
        result = await self._command(request.name, control_pb2.BatchAction(resume=True), request.request_id)
        return control_pb2.ResumeRunResponse(run=result.run)

    async def ResetRun(self, request: control_pb2.ResetRunRequest, context: Context) -> control_pb2.ResetRunResponse:
        """Answers when the command is stored."""
        _check_point(request.to, "to")
        result = await self._command(request.name, control_pb2.BatchAction(reset=request.to), request.request_id)
        return control_pb2.ResetRunResponse(run=result.run, kept_entries=result.kept_entries)

    async def SetRunLevel(
        self, request: control_pb2.SetRunLevelRequest, context: Context
    ) -> control_pb2.SetRunLevelResponse:
        """Answers when the level is stored."""
        _check_level(request.level, "level")
        result = await self._command(request.name, control_pb2.BatchAction(level=request.level), request.request_id)
        return control_pb2.SetRunLevelResponse(run=result.run)

    async def SignalRun(self, request: control_pb2.SignalRunRequest, context: Context) -> control_pb2.SignalRunResponse:
        """Answers when the signal is stored."""
        signal = self._signal(request.signal, "signal")
        result = await self._command(request.name, control_pb2.BatchAction(signal=signal))
        return control_pb2.SignalRunResponse(signal_id=signal.signal_id, created=result.created)

    async def UpdateRun(self, request: control_pb2.UpdateRunRequest, context: Context) -> control_pb2.UpdateRunResponse:
        """Answers when the run has recorded that it took the signal, has ended, or the wait is over."""
        name = parse_run(request.name)
        timeout_s = request.timeout.ToMilliseconds() / 1000 if request.HasField("timeout") else _WAIT_DEFAULT_S
        if not 0 <= timeout_s <= _WAIT_MOST_S:
            raise field_invalid(("timeout", f"must be between 0 and {_WAIT_MOST_S:g} s"))
        signal = self._signal(request.signal, "signal")
        with self._hub.admit():
            await self._command(request.name, control_pb2.BatchAction(signal=signal))
            taken = await self._taken(name, signal.signal_id, timeout_s)
        run = await self._reader.read(name)
        if run is None:
            raise run_not_found(name.name)
        return control_pb2.UpdateRunResponse(signal_id=signal.signal_id, taken=taken, run=run)

    async def _taken(self, name: RunName, signal_id: str, timeout_s: float) -> bool:
        """Look again with each change of the run."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        request = inner_pb2.ReadSignalRequest(run_id=name.run_id, signal_id=signal_id)
        with self._hub.watch(name) as watch:
            while True:
                ended = False
                while (event := watch.take()) is not None:
                    ended = ended or (isinstance(event, runs_pb2.RunChange) and event.run.state in TERMINAL)
                if watch.stale:
                    watch.stale = False
                    run = await self._reader.read(name)
                    ended = ended or run is None or run.state in TERMINAL
                answer = await self._client.call(lambda stub: stub.ReadSignal, request, _TIMEOUT_S)
                left = until - loop.time()
                if answer.taken or ended or left <= 0:
                    return answer.taken
                try:
                    async with asyncio.timeout(min(left, _LOOK_S)):
                        await watch.wait()
                except TimeoutError:
                    continue

    async def _command(
        self, text: str, action: control_pb2.BatchAction, request_id: str = ""
    ) -> inner_pb2.CommandResult:
        """One command. Its id makes it safe that the client repeats it, and this gateway at another scheduler."""
        name = parse_run(text)
        inner = inner_pb2.CommandRunsRequest(
            namespace=name.namespace, run_ids=[name.run_id], action=action, request_id=own_request_id(request_id)
        )
        response = await self._client.call(lambda stub: stub.CommandRuns, inner, _TIMEOUT_S)
        result = response.results[0]
        if result.HasField("error"):
            raise from_status_proto(result.error)
        return result

    def _signal(self, signal: control_pb2.Signal, field: str) -> control_pb2.Signal:
        """The signal, checked, with an id."""
        violations = []
        if _SIGNAL_NAME.fullmatch(signal.name) is None:
            violations.append(FieldViolation(f"{field}.name", "must be 1 to 63 letters, digits, '-', '_' and '.'"))
        if signal.signal_id and _SIGNAL_ID.fullmatch(signal.signal_id) is None:
            violations.append(FieldViolation(f"{field}.signal_id", "must be at most 128 printable ASCII characters"))
        if signal.payload:
            problem = check_json(signal.payload)
            if len(signal.payload) > self._limits.payload_bytes:
                problem = f"has more than {self._limits.payload_bytes} bytes"
            if problem is not None:
                violations.append(FieldViolation(f"{field}.payload", problem))
        if violations:
            raise field_invalid(*violations)
        checked = control_pb2.Signal()
        checked.CopyFrom(signal)
        checked.signal_id = signal.signal_id or uuid.uuid4().hex
        return checked

    # -- many runs ----------------------------------------------------------------------------------------------------

    async def StartBatch(
        self, request: control_pb2.StartBatchRequest, context: Context
    ) -> control_pb2.StartBatchResponse:
        """Answers when the job is stored."""
        namespace = namespace_of_parent(request.parent)
        inner = inner_pb2.PutBatchRequest(
            namespace=namespace,
            action=self._action(request.action),
            filter=_filter(request.filter, namespace),
            request_id=own_request_id(request.request_id),
        )
        response = await self._client.call(lambda stub: stub.PutBatch, inner, _TIMEOUT_S)
        return control_pb2.StartBatchResponse(batch=response.batch)

    def _action(self, action: control_pb2.BatchAction) -> control_pb2.BatchAction:
        match action.WhichOneof("action"):
            case None:
                raise field_invalid(("action", "must be set"))
            case "cancel":
                _check_reason(action.cancel.reason, "action.cancel.reason")
                if action.cancel.HasField("grace"):
                    grace_ms(action.cancel.grace, "action.cancel.grace")
            case "terminate":
                _check_reason(action.terminate.reason, "action.terminate.reason")
            case "reset":
                _check_point(action.reset, "action.reset")
            case "level":
                _check_level(action.level, "action.level")
            case "signal":
                checked = self._signal(action.signal, "action.signal")
                checked.signal_id = action.signal.signal_id
                return control_pb2.BatchAction(signal=checked)
        return action

    async def GetBatch(self, request: control_pb2.GetBatchRequest, context: Context) -> control_pb2.GetBatchResponse:
        """The job as it is now."""
        namespace, batch_id = _parse_batch(request.name)
        inner = inner_pb2.ReadBatchesRequest(namespace=namespace, batch_id=batch_id, limit=1)
        response = await self._client.call(lambda stub: stub.ReadBatches, inner, _TIMEOUT_S)
        if not response.batches:
            raise _batch_not_found(request.name)
        return control_pb2.GetBatchResponse(batch=response.batches[0])

    async def ListBatches(
        self, request: control_pb2.ListBatchesRequest, context: Context
    ) -> control_pb2.ListBatchesResponse:
        """A page, newest first."""
        namespace = namespace_of_parent(request.parent)
        size = page_size(request.page_size, default=50, most=500)
        binding = PageBinding("batches", namespace)
        cursor = binding.decode(request.page_token)
        if cursor and re.fullmatch(r"[0-9a-f]{32}", cursor) is None:
            raise page_token_invalid()
        inner = inner_pb2.ReadBatchesRequest(namespace=namespace, before_id=bytes.fromhex(cursor), limit=size + 1)
        response = await self._client.call(lambda stub: stub.ReadBatches, inner, _TIMEOUT_S)
        found = response.batches[:size]
        token = binding.encode(_parse_batch(found[-1].name)[1].hex()) if len(response.batches) > size else ""
        return control_pb2.ListBatchesResponse(batches=found, next_page_token=token)

    async def CancelBatch(
        self, request: control_pb2.CancelBatchRequest, context: Context
    ) -> control_pb2.CancelBatchResponse:
        """The job, ended; one that has ended stays as it is."""
        namespace, batch_id = _parse_batch(request.name)
        inner = inner_pb2.EndBatchRequest(namespace=namespace, batch_id=batch_id)
        response = await self._client.call(lambda stub: stub.EndBatch, inner, _TIMEOUT_S)
        if not response.HasField("batch"):
            raise _batch_not_found(request.name)
        return control_pb2.CancelBatchResponse(batch=response.batch)

    # -- workflows ----------------------------------------------------------------------------------------------------

    async def HoldWorkflow(
        self, request: control_pb2.HoldWorkflowRequest, context: Context
    ) -> control_pb2.HoldWorkflowResponse:
        """Answers when the hold is stored."""
        _check_reason(request.reason, "reason")
        answer = await self._set_hold(request.name, hold=True, reason=request.reason)
        return control_pb2.HoldWorkflowResponse(hold=answer.hold)

    async def ReleaseWorkflow(
        self, request: control_pb2.ReleaseWorkflowRequest, context: Context
    ) -> control_pb2.ReleaseWorkflowResponse:
        """Answers when the release is stored."""
        answer = await self._set_hold(request.name, hold=False, reason="")
        return control_pb2.ReleaseWorkflowResponse(released=answer.changed)

    async def _set_hold(self, name: str, *, hold: bool, reason: str) -> inner_pb2.SetHoldResponse:
        namespace, workflow_id = _parse_workflow(name)
        inner = inner_pb2.SetHoldRequest(namespace=namespace, workflow_id=workflow_id, hold=hold, reason=reason)
        return await self._client.call(lambda stub: stub.SetHold, inner, _TIMEOUT_S)

    async def ListHolds(self, request: control_pb2.ListHoldsRequest, context: Context) -> control_pb2.ListHoldsResponse:
        """The workflows that are on hold."""
        inner = inner_pb2.ReadHoldsRequest(namespace=namespace_of_parent(request.parent))
        response = await self._client.call(lambda stub: stub.ReadHolds, inner, _TIMEOUT_S)
        return control_pb2.ListHoldsResponse(holds=response.holds)


def own_request_id(given: str) -> str:
    """The id of a call, checked; one of the gateway's own when the client gave none. Raises `Refused`."""
    if given and REQUEST_ID.fullmatch(given) is None:
        raise field_invalid(("request_id", "must be at most 128 printable ASCII characters"))
    return given or uuid.uuid4().hex


def grace_ms(grace: Any, field: str) -> int:
    """A grace in milliseconds. Raises `Refused`."""
    milliseconds: int = grace.ToMilliseconds()
    if not 0 <= milliseconds <= _GRACE_MOST_S * 1000:
        raise field_invalid((field, f"must be between 0 and {_GRACE_MOST_S:g} s"))
    return milliseconds


def _check_reason(reason: str, field: str) -> None:
    if len(reason) > _REASON_CHARACTERS:
        raise field_invalid((field, f"has more than {_REASON_CHARACTERS} characters"))
    if "\0" in reason:
        raise field_invalid((field, "must not hold the character NUL"))


def _check_level(level: int, field: str) -> None:
    if not 0 <= level < _LEVELS:
        raise field_invalid((field, "must be 0 to 9"))


def _check_point(point: control_pb2.ResetPoint, field: str) -> None:
    match point.WhichOneof("point"):
        case None:
            raise field_invalid((field, "must name the failed step, a step, or the start"))
        case "step":
            if not point.step.step.startswith("/") or len(point.step.step) > 2048:
                raise field_invalid((f"{field}.step.step", "must be a JSON pointer, such as /do/2/sendMail"))
            if len(point.step.iteration) > 512:
                raise field_invalid((f"{field}.step.iteration", "has more than 512 characters"))


def _filter(given: control_pb2.BatchFilter, namespace: str) -> control_pb2.BatchFilter:
    """The filter, checked, with ids for names."""
    violations = []
    if given.workflow_id and not is_label(given.workflow_id):
        violations.append(
            FieldViolation("filter.workflow_id", "must be a DNS label of at most 63 characters, or empty")
        )
    known = runs_pb2.Run.State.values()
    violations += [
        FieldViolation(f"filter.states[{place}]", "is not a state of a run")
        for place, state in enumerate(given.states)
        if state not in known or state == runs_pb2.Run.STATE_UNSPECIFIED
    ]
    if len(given.runs) > _RUNS:
        violations.append(FieldViolation("filter.runs", f"holds more than {_RUNS} runs"))
    filter_ = control_pb2.BatchFilter()
    filter_.CopyFrom(given)
    del filter_.runs[:]
    for place, run in enumerate(given.runs[:_RUNS]):
        try:
            name = parse_run(run if run.startswith("namespaces/") else f"namespaces/{namespace}/runs/{run}")
        except Refused:
            violations.append(FieldViolation(f"filter.runs[{place}]", "is not the name or the id of a run"))
            continue
        if name.namespace != namespace:
            violations.append(FieldViolation(f"filter.runs[{place}]", "is a run of another namespace"))
        filter_.runs.append(str(uuid.UUID(bytes=name.run_id)))
    if violations:
        raise field_invalid(*violations)
    return filter_


def _parse_batch(name: str) -> tuple[str, bytes]:
    parts = name.split("/")
    if len(parts) == 4 and parts[0] == "namespaces" and parts[2] == "batches":
        try:
            return namespace_of_parent(f"namespaces/{parts[1]}"), uuid.UUID(parts[3]).bytes
        except ValueError:
            pass
    raise field_invalid(("name", "must be namespaces/{namespace}/batches/{batch}"))


def _parse_workflow(name: str) -> tuple[str, str]:
    parts = name.split("/")
    if len(parts) == 4 and parts[0] == "namespaces" and parts[2] == "workflows" and is_label(parts[3]):
        return namespace_of_parent(f"namespaces/{parts[1]}"), parts[3]
    raise field_invalid(("name", "must be namespaces/{namespace}/workflows/{workflow}"))


def _batch_not_found(name: str) -> Refused:
    return Refused(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_BATCH_NOT_FOUND, f"there is no batch {name}")
