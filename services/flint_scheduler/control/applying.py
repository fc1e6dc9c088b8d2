"""Storing what is asked of runs: one action for many runs, within one transaction. Used by RPCs and by jobs.

Every command is judged on rows that are held until the transaction ends; what is refused is refused for its run alone.
A call with a request id claims it for its runs first (`flint_store.command_requests`): those that took it before are
answered as they were then, whatever has become of them since.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from uuid import UUID

import grpc
import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from flint_contracts.gen.flint.runs.v1 import control_pb2, runs_pb2
from flint_rpc.errors import ErrorReason, Refused
from flint_scheduler.control.points import kept_entries
from flint_scheduler.control.wishes import cancel_payload
from flint_store.awaits import Target
from flint_store.command_requests import DoneBefore, claim_requests, drop_requests, note_kept
from flint_store.commands import Outcome, RunFacts, Verb, lock_runs, put_commands
from flint_store.resets import read_back
from flint_store.signals import is_known, put_signal

__all__ = ["SIGNAL_TYPE", "Applied", "apply", "apply_once"]

SIGNAL_TYPE = "dev.flint.signal."
"""Begins the type of the events that signals are."""

_VERBS = {
    "cancel": Verb.CANCEL,
    "terminate": Verb.TERMINATE,
    "pause": Verb.PAUSE,
    "resume": Verb.RESUME,
    "level": Verb.LEVEL,
}
_FAILED = grpc.StatusCode.FAILED_PRECONDITION


@dataclass(slots=True)
class Applied:
    """What became of an action."""

    refused: dict[bytes, Refused] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)  # runs whose inbox has a new row
    signalled: list[bytes] = field(default_factory=list)  # runs that have a signal to be offered
    created: dict[bytes, bool] = field(default_factory=dict)  # signals: whether they are new
    kept: dict[bytes, int] = field(default_factory=dict)  # resets: entries that stay valid


async def apply_once(
    connection: AsyncConnection,
    namespace: str,
    run_ids: Sequence[bytes],
    action: control_pb2.BatchAction,
    request_id: str,
) -> Applied:
    """As `apply`, at most once for each run under this id. A signal has an id of its own and needs none."""
    if not request_id or action.HasField("signal"):
        return await apply(connection, namespace, run_ids, action, request_id or os.urandom(16).hex())
    # Claimed before any run is held: who waits here for another call stands in nobody's way.
    digest = sha256(action.SerializeToString(deterministic=True)).digest()
    before = await claim_requests(connection, run_ids, request_id, digest)
    applied = await apply(connection, namespace, [r for r in run_ids if r not in before], action, request_id)
    if applied.refused:
        await drop_requests(connection, list(applied.refused), request_id)
    if kept := {run_id: kept for run_id, kept in applied.kept.items() if run_id not in applied.refused}:
        await note_kept(connection, request_id, kept)
    if before:
        known = await lock_runs(connection, namespace, list(before))
        for run_id, done in before.items():
            _note_repeat(applied, known.get(run_id), run_id, done, request_id)
    return applied


def _note_repeat(applied: Applied, facts: RunFacts | None, run_id: bytes, done: DoneBefore, request_id: str) -> None:
    if facts is None:
        applied.refused[run_id] = _refusal(run_id, None, Outcome.NOT_FOUND)
    elif not done.same:
        applied.refused[run_id] = Refused(
            grpc.StatusCode.ALREADY_EXISTS,
            ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
            f"request_id {request_id!r} was used before for another command to this run; use a new one",
        )
    else:
        applied.kept[run_id] = done.kept
        applied.targets.append(Target(run_id, facts.group))  # in case the first nudge was lost


async def apply(
    connection: AsyncConnection,
    namespace: str,
    run_ids: Sequence[bytes],
    action: control_pb2.BatchAction,
    signal_id: str,
) -> Applied:
    """Store the action for these runs. `signal_id`: of a signal that names none."""
    applied = Applied()
    if not run_ids:
        return applied
    known = await lock_runs(connection, namespace, run_ids)
    kind = action.WhichOneof("action")
    if kind == "signal":
        await _signal(connection, namespace, run_ids, known, action.signal, signal_id, applied)
        return applied
    if kind == "reset":
        await _reset(connection, run_ids, known, action.reset, applied)
        return applied
    verb = _VERBS[kind or ""]
    payload = _payload(action)
    outcomes = await put_commands(connection, known, verb, dict.fromkeys(run_ids, payload))
    _note(applied, known, outcomes)
    return applied


def _payload(action: control_pb2.BatchAction) -> bytes:
    match action.WhichOneof("action"):
        case "cancel":
            wish = action.cancel
            grace_ms = wish.grace.ToMilliseconds() if wish.HasField("grace") else -1
            return cancel_payload(wish.reason, grace_ms)
        case "terminate":
            return action.terminate.reason.encode()
        case "level":
            return str(action.level).encode()
    return b""


def _note(applied: Applied, known: dict[bytes, RunFacts], outcomes: dict[bytes, Outcome]) -> None:
    for run_id, outcome in outcomes.items():
        if outcome is Outcome.STORED:
            applied.targets.append(Target(run_id, known[run_id].group))
        else:
            applied.refused[run_id] = _refusal(run_id, known.get(run_id), outcome)


def _refusal(run_id: bytes, facts: RunFacts | None, outcome: Outcome) -> Refused:
    name = str(UUID(bytes=run_id))
    if facts is None or outcome is Outcome.NOT_FOUND:
        return Refused(
            grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_RUN_NOT_FOUND, f"there is no run {name} here"
        )
    match outcome:
        case Outcome.ENDED:
            state = runs_pb2.Run.State.Name(facts.state).removeprefix("STATE_")  # type: ignore[arg-type]
            return Refused(_FAILED, ErrorReason.ERROR_REASON_RUN_ENDED, f"run {name} has already ended as {state}")
        case Outcome.NOT_PAUSED:
            return Refused(_FAILED, ErrorReason.ERROR_REASON_RUN_NOT_PAUSED, f"run {name} is not paused")
        case Outcome.ENDING:
            return Refused(
                _FAILED, ErrorReason.ERROR_REASON_RUN_ENDING, f"run {name} is ending: a cancel was asked for"
            )
    return Refused(
        _FAILED, ErrorReason.ERROR_REASON_RESET_UNDER_WAY, f"another reset of run {name} is under way; try again"
    )


async def _reset(
    connection: AsyncConnection,
    run_ids: Sequence[bytes],
    known: dict[bytes, RunFacts],
    point: control_pb2.ResetPoint,
    applied: Applied,
) -> None:
    payloads: dict[bytes, bytes] = {}
    missing: dict[bytes, Outcome] = {}
    for run_id in run_ids:
        facts = known.get(run_id)
        if facts is None:
            missing[run_id] = Outcome.NOT_FOUND
            continue
        try:
            kept = await kept_entries(read_back(connection, run_id), point, ended=facts.ended, position=facts.position)
        except Refused as refused:
            applied.refused[run_id] = refused
            continue
        applied.kept[run_id] = kept
        payloads[run_id] = orjson.dumps({"kept": kept, "reset": facts.reset + 1})
    outcomes = await put_commands(connection, known, Verb.RESET, payloads) if payloads else {}
    _note(applied, known, outcomes | missing)


async def _signal(
    connection: AsyncConnection,
    namespace: str,
    run_ids: Sequence[bytes],
    known: dict[bytes, RunFacts],
    signal: control_pb2.Signal,
    signal_id: str,
    applied: Applied,
) -> None:
    signal_id = signal.signal_id or signal_id
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for run_id in run_ids:
        facts = known.get(run_id)
        if facts is not None and facts.ended and await is_known(connection, run_id, signal_id):
            applied.created[run_id] = False
            continue
        if facts is None or facts.ended:
            applied.refused[run_id] = _refusal(run_id, facts, Outcome.ENDED if facts else Outcome.NOT_FOUND)
            continue
        run = str(UUID(bytes=run_id))
        event = {
            "specversion": "1.0",
            "id": signal_id,
            "source": f"/namespaces/{namespace}/runs/{run}",
            "type": SIGNAL_TYPE + signal.name,
            "subject": run,
            "time": at,
            "datacontenttype": "application/json",
        }
        if signal.payload:
            event["data"] = orjson.Fragment(signal.payload)  # type: ignore[assignment]
        created = await put_signal(connection, facts, signal_id, signal.name, orjson.dumps(event))
        if created is None:
            applied.refused[run_id] = Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_TOO_MANY_SIGNALS,
                f"run {run} has too many signals that it did not take",
            )
            continue
        applied.created[run_id] = created
        applied.signalled.append(run_id)
