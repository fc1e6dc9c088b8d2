"""Steering runs: what both clients have of it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration

from flint_contracts.gen.flint.runs.v1 import control_pb2, runs_pb2
from flint_sdk._errors import FieldViolation, InvalidArgument, error_from_status
from flint_sdk._messages import encode_json, moment, run_from, timestamp
from flint_sdk._models import Run, RunState
from flint_sdk._names import run_name

if TYPE_CHECKING:
    from flint_sdk._transport import Transport

__all__ = ["AsyncControl", "Batch", "BatchRefusal", "BatchState", "SentSignal", "WorkflowHold"]


class BatchState(StrEnum):
    """Where a job over many runs is."""

    UNSPECIFIED = "UNSPECIFIED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class BatchRefusal:
    """A run that a job left as it is: its name, the reason (such as RUN_ENDED) and a text."""

    run: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Batch:
    """A job over many runs. `action`: what it does; `refusals`: the first few, empty in lists."""

    name: str
    state: BatchState
    action: str
    matched: int
    done: int
    refused: int
    refusals: tuple[BatchRefusal, ...]
    create_time: datetime | None
    end_time: datetime | None

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class SentSignal:
    """A signal that was stored. `taken`: whether the run has recorded that it took it, where that was waited for."""

    signal_id: str
    created: bool
    taken: bool
    run: Run | None


@dataclass(frozen=True, slots=True)
class WorkflowHold:
    """A workflow whose starts are held."""

    workflow: str
    reason: str
    hold_time: datetime | None

    @property
    def workflow_id(self) -> str:
        """The workflow's id."""
        return self.workflow.rpartition("/")[2]


def batch_from(message: control_pb2.Batch) -> Batch:
    """From the contract's message."""
    refusals = []
    for refusal in message.refusals:
        error = error_from_status(refusal.error)
        refusals.append(BatchRefusal(refusal.run, error.reason, error.message))
    return Batch(
        name=message.name,
        state=BatchState(control_pb2.Batch.State.Name(message.state).removeprefix("STATE_")),
        action=message.action.WhichOneof("action") or "",
        matched=message.matched,
        done=message.done,
        refused=message.refused,
        refusals=tuple(refusals),
        create_time=moment(message, "create_time"),
        end_time=moment(message, "end_time"),
    )


def duration(value_s: float | None) -> Duration | None:
    """Seconds as the contract's message."""
    if value_s is None:
        return None
    message = Duration()
    message.FromTimedelta(timedelta(seconds=value_s))
    return message


def reset_point(step: str | None, iteration: str, *, failed_step: bool) -> control_pb2.ResetPoint:
    """Where to: the failed step, a step, or the beginning."""
    if failed_step:
        return control_pb2.ResetPoint(failed_step=True)
    if step is None:
        return control_pb2.ResetPoint(start=True)
    return control_pb2.ResetPoint(step=control_pb2.ResetStep(step=step, iteration=iteration))


def signal_message(name: str, payload: Any, signal_id: str) -> control_pb2.Signal:
    """The contract's message. Raises InvalidArgument for a payload that is not JSON."""
    try:
        data = b"" if payload is None else encode_json(payload)
    except TypeError as error:
        violation = FieldViolation("signal.payload", str(error))
        raise InvalidArgument(f"the payload is not JSON: {error}", violations=[violation]) from error
    return control_pb2.Signal(name=name, payload=data, signal_id=signal_id)


def own_id(given: str) -> str:
    """The id that was given, or a new one: what is repeated after a lost answer is the same then."""
    return given or uuid.uuid4().hex


def batch_action(
    action: str,
    *,
    reason: str = "",
    grace_s: float | None = None,
    level: int | None = None,
    signal: str = "",
    payload: Any = None,
    step: str | None = None,
    iteration: str = "",
) -> control_pb2.BatchAction:
    """What a job does. Raises InvalidArgument for an action that is not known, or lacks something."""
    match action:
        case "cancel":
            return control_pb2.BatchAction(cancel=control_pb2.CancelAction(reason=reason, grace=duration(grace_s)))
        case "terminate":
            return control_pb2.BatchAction(terminate=control_pb2.TerminateAction(reason=reason))
        case "pause":
            return control_pb2.BatchAction(pause=True)
        case "resume":
            return control_pb2.BatchAction(resume=True)
        case "retry":
            return control_pb2.BatchAction(reset=reset_point(None, "", failed_step=True))
        case "reset":
            return control_pb2.BatchAction(reset=reset_point(step, iteration, failed_step=False))
        case "signal":
            return control_pb2.BatchAction(signal=signal_message(signal, payload, ""))
        case "level" if level is not None:
            return control_pb2.BatchAction(level=level)
    why = "must be cancel, terminate, pause, resume, retry, reset, signal, or level with a level"
    raise InvalidArgument(f"action {action!r} {why}", violations=[FieldViolation("action", why)])


class AsyncControl:
    """The part of `AsyncFlint` that steers runs.

    Commands take effect at most once: each has a `request_id`, made here unless given, with which it is repeated when
    an answer is lost. The same id with another command to the run raises RequestIdReused.
    """

    _transport: Transport
    namespace: str

    def _run(self, run: str) -> str:
        return run_name(self.namespace, run)

    def _workflow(self, workflow: str) -> str:
        return workflow if "/" in workflow else f"namespaces/{self.namespace}/workflows/{workflow}"

    async def terminate(self, run: str, reason: str = "", *, request_id: str = "") -> Run:
        """Ends a run at once, as CANCELLED; nothing is undone. Raises RunEnded."""
        request = control_pb2.TerminateRunRequest(name=self._run(run), reason=reason, request_id=own_id(request_id))
        answer = await self._transport.call(lambda gateway: gateway.control.TerminateRun, request)
        return run_from(answer.run)

    async def pause(self, run: str, *, request_id: str = "") -> Run:
        """Pauses a run: at once when it holds no worker, else between two steps. Raises RunEnded, RunEnding."""
        request = control_pb2.PauseRunRequest(name=self._run(run), request_id=own_id(request_id))
        answer = await self._transport.call(lambda gateway: gateway.control.PauseRun, request)
        return run_from(answer.run)

    async def resume(self, run: str, *, request_id: str = "") -> Run:
        """Lets a paused run go on. Raises RunNotPaused, RunEnded."""
        request = control_pb2.ResumeRunRequest(name=self._run(run), request_id=own_id(request_id))
        answer = await self._transport.call(lambda gateway: gateway.control.ResumeRun, request)
        return run_from(answer.run)

    async def retry(self, run: str, *, request_id: str = "") -> Run:
        """Lets a run that failed, or was ended, go on where it stood: the failed step is executed again.

        Raises ResetPointNotFound (it did not fail), RunUndone (its effects were undone), ResetUnderWay.
        """
        return await self._reset(run, reset_point(None, "", failed_step=True), request_id)

    async def reset(self, run: str, step: str | None = None, iteration: str = "", *, request_id: str = "") -> Run:
        """Takes a run back to just before a step (a JSON pointer such as `/do/2/sendMail`), or to its beginning.

        Raises ResetPointNotFound, RunUndone, RunEnding, ResetUnderWay.
        """
        return await self._reset(run, reset_point(step, iteration, failed_step=False), request_id)

    async def _reset(self, run: str, point: control_pb2.ResetPoint, request_id: str) -> Run:
        request = control_pb2.ResetRunRequest(name=self._run(run), to=point, request_id=own_id(request_id))
        answer = await self._transport.call(lambda gateway: gateway.control.ResetRun, request)
        return run_from(answer.run)

    async def set_level(self, run: str, level: int, *, request_id: str = "") -> Run:
        """Sets the level (0 most urgent, 9 least) of a run that has not ended. Raises RunEnded."""
        request = control_pb2.SetRunLevelRequest(name=self._run(run), level=level, request_id=own_id(request_id))
        answer = await self._transport.call(lambda gateway: gateway.control.SetRunLevel, request)
        return run_from(answer.run)

    async def signal(self, run: str, name: str, payload: Any = None, *, signal_id: str = "") -> SentSignal:
        """Sends a signal: one `listen` of the run to `dev.flint.signal.<name>` takes it, exactly once.

        The same signal_id again is the same signal. Returns when it is stored. Raises RunEnded, TooManySignals.
        """
        message = signal_message(name, payload, own_id(signal_id))
        request = control_pb2.SignalRunRequest(name=self._run(run), signal=message)
        answer = await self._transport.call(lambda gateway: gateway.control.SignalRun, request)
        return SentSignal(answer.signal_id, answer.created, False, None)

    async def update(
        self, run: str, name: str, payload: Any = None, *, signal_id: str = "", timeout_s: float = 20.0
    ) -> SentSignal:
        """Sends a signal and returns when the run has recorded that it took it, or after the timeout (`taken`)."""
        message = signal_message(name, payload, own_id(signal_id))
        request = control_pb2.UpdateRunRequest(name=self._run(run), signal=message, timeout=duration(timeout_s))
        answer = await self._transport.call(
            lambda gateway: gateway.control.UpdateRun, request, timeout_s=timeout_s + 10.0
        )
        return SentSignal(answer.signal_id, False, answer.taken, run_from(answer.run))

    async def start_batch(
        self,
        action: str,
        *,
        workflow: str = "",
        states: Iterable[RunState | str] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        runs: Sequence[str] = (),
        request_id: str = "",
        reason: str = "",
        grace_s: float | None = None,
        level: int | None = None,
        signal: str = "",
        payload: Any = None,
        step: str | None = None,
        iteration: str = "",
    ) -> Batch:
        """Starts a job that does one thing to every run that matches all that is set.

        `action`: cancel (reason, grace_s), terminate (reason), pause, resume, retry, reset (step, iteration), signal
        (signal, payload), level (level). Runs accepted after the job are not its own.
        """
        request = control_pb2.StartBatchRequest(
            parent=f"namespaces/{self.namespace}",
            action=batch_action(
                action,
                reason=reason,
                grace_s=grace_s,
                level=level,
                signal=signal,
                payload=payload,
                step=step,
                iteration=iteration,
            ),
            filter=control_pb2.BatchFilter(
                workflow_id=workflow,
                states=[runs_pb2.Run.State.Value(f"STATE_{RunState(state).value}") for state in states],
                created_after=timestamp(created_after),
                created_before=timestamp(created_before),
                runs=runs,
            ),
            request_id=own_id(request_id),
        )
        answer = await self._transport.call(lambda gateway: gateway.control.StartBatch, request)
        return batch_from(answer.batch)

    async def get_batch(self, batch: str) -> Batch:
        """A job as it is now, by name or id."""
        request = control_pb2.GetBatchRequest(name=self._batch(batch))
        answer = await self._transport.call(lambda gateway: gateway.control.GetBatch, request)
        return batch_from(answer.batch)

    async def list_batches(self, *, page_size: int = 50) -> AsyncIterator[Batch]:
        """Jobs, newest first. Fetches page by page."""
        request = control_pb2.ListBatchesRequest(parent=f"namespaces/{self.namespace}", page_size=page_size)
        while True:
            answer = await self._transport.call(lambda gateway: gateway.control.ListBatches, request)
            for found in answer.batches:
                yield batch_from(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def cancel_batch(self, batch: str) -> Batch:
        """Ends a job early; what it has done stays done."""
        request = control_pb2.CancelBatchRequest(name=self._batch(batch))
        answer = await self._transport.call(lambda gateway: gateway.control.CancelBatch, request)
        return batch_from(answer.batch)

    def _batch(self, batch: str) -> str:
        return batch if "/" in batch else f"namespaces/{self.namespace}/batches/{batch}"

    async def hold_workflow(self, workflow: str, reason: str = "") -> WorkflowHold:
        """Holds a workflow: its starts are accepted and stay queued; runs that have begun go on."""
        request = control_pb2.HoldWorkflowRequest(name=self._workflow(workflow), reason=reason)
        answer = await self._transport.call(lambda gateway: gateway.control.HoldWorkflow, request)
        return _hold(answer.hold)

    async def release_workflow(self, workflow: str) -> bool:
        """Lets the starts of a workflow begin; False when it was not on hold."""
        request = control_pb2.ReleaseWorkflowRequest(name=self._workflow(workflow))
        answer = await self._transport.call(lambda gateway: gateway.control.ReleaseWorkflow, request)
        return answer.released

    async def list_holds(self) -> list[WorkflowHold]:
        """The workflows that are on hold, by name."""
        request = control_pb2.ListHoldsRequest(parent=f"namespaces/{self.namespace}")
        answer = await self._transport.call(lambda gateway: gateway.control.ListHolds, request)
        return [_hold(found) for found in answer.holds]


def _hold(message: control_pb2.WorkflowHold) -> WorkflowHold:
    return WorkflowHold(message.workflow, message.reason, moment(message, "hold_time"))
