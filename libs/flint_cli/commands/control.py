"""Steering runs: the commands of `flint runs` that change one, `flint batch` and `flint workflows hold`."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer

from flint_cli.exits import CommandFailed
from flint_cli.output import Format, FormatOption, moment, print_fields, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, Batch, Run, RunState, SentSignal

__all__ = ["add_run_commands", "add_workflow_commands", "batches"]

RunArgument = Annotated[str, typer.Argument(help="The run's id or name.", metavar="RUN")]
StepOption = Annotated[str | None, typer.Option(help="JSON pointer of the step, such as /do/2/sendMail.")]
IterationOption = Annotated[str, typer.Option(help="The step's iteration, as the history shows it.")]
RequestIdOption = Annotated[str, typer.Option(help="The same id again for this run changes nothing.")]
PayloadOption = Annotated[str | None, typer.Option(help="The signal's data, JSON.")]

batches = typer.Typer(name="batch", help="Do one thing to many runs, as a job.", no_args_is_help=True)

_ACTIONS = "cancel, terminate, pause, resume, retry, reset, signal, level"


def add_run_commands(app: typer.Typer) -> None:
    """The commands of `flint runs` that change a run."""
    for name, command in (
        ("terminate", terminate),
        ("pause", pause),
        ("resume", resume),
        ("retry", retry),
        ("reset", reset),
        ("level", level),
        ("signal", signal),
    ):
        app.command(name)(command)


def add_workflow_commands(app: typer.Typer) -> None:
    """The commands of `flint workflows` that hold and release."""
    app.command("hold")(hold)
    app.command("release")(release)
    app.command("holds")(holds)


def terminate(
    context: typer.Context,
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="For the record.")] = "",
    request_id: RequestIdOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """End a run at once; nothing is undone. Returns when the request is stored."""
    _tell(
        with_client(context, lambda client: client.terminate(run, reason, request_id=request_id)),
        output,
        "is being terminated",
    )


def pause(
    context: typer.Context, run: RunArgument, request_id: RequestIdOption = "", output: FormatOption = Format.TABLE
) -> None:
    """Pause a run, between two steps. Returns when the request is stored."""
    _tell(with_client(context, lambda client: client.pause(run, request_id=request_id)), output, "is being paused")


def resume(
    context: typer.Context, run: RunArgument, request_id: RequestIdOption = "", output: FormatOption = Format.TABLE
) -> None:
    """Let a paused run go on."""
    _tell(with_client(context, lambda client: client.resume(run, request_id=request_id)), output, "goes on")


def retry(
    context: typer.Context, run: RunArgument, request_id: RequestIdOption = "", output: FormatOption = Format.TABLE
) -> None:
    """Let a failed run go on from the step that failed."""
    _tell(with_client(context, lambda client: client.retry(run, request_id=request_id)), output, "is retried")


def reset(
    context: typer.Context,
    run: RunArgument,
    step: StepOption = None,
    iteration: IterationOption = "",
    request_id: RequestIdOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Take a run back to just before a step, or to its beginning, and let it go on from there."""
    found = with_client(context, lambda client: client.reset(run, step, iteration, request_id=request_id))
    _tell(found, output, f"is reset to {step or 'its beginning'}")


def level(
    context: typer.Context,
    run: RunArgument,
    level: Annotated[int, typer.Argument(min=0, max=9, help="0 (most urgent) to 9.")],
    request_id: RequestIdOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Set the level of a run that has not ended."""
    _tell(
        with_client(context, lambda client: client.set_level(run, level, request_id=request_id)),
        output,
        f"has level {level}",
    )


def signal(
    context: typer.Context,
    run: RunArgument,
    name: Annotated[str, typer.Argument(help="The signal's name.")],
    payload: PayloadOption = None,
    signal_id: Annotated[str, typer.Option("--id", help="The same id again is the same signal.")] = "",
    wait: Annotated[float, typer.Option(min=0, help="Wait this many seconds until the run has taken it.")] = 0.0,
    output: FormatOption = Format.TABLE,
) -> int:
    """Send a signal to a run. Exit code 1 when it was waited for and not taken."""
    data = _json(payload)

    async def command(client: AsyncFlint) -> SentSignal:
        if wait:
            return await client.update(run, name, data, signal_id=signal_id, timeout_s=wait)
        return await client.signal(run, name, data, signal_id=signal_id)

    sent = with_client(context, command)
    if output is Format.JSON:
        print_json(sent)
    else:
        print(f"{name} {'taken' if sent.taken else 'stored'} ({sent.signal_id})")
    return 1 if wait and not sent.taken else 0


def hold(
    context: typer.Context,
    workflow: Annotated[str, typer.Argument(help="The workflow's name.", metavar="NAME")],
    reason: Annotated[str, typer.Option(help="Why.")] = "",
) -> None:
    """Hold a workflow: its starts are accepted and wait. Runs that have begun go on."""
    with_client(context, lambda client: client.hold_workflow(workflow, reason))
    print(f"{workflow} is on hold")


def release(
    context: typer.Context, workflow: Annotated[str, typer.Argument(help="The workflow's name.", metavar="NAME")]
) -> None:
    """Let the starts of a workflow on hold begin."""
    released = with_client(context, lambda client: client.release_workflow(workflow))
    print(f"{workflow} is released" if released else f"{workflow} was not on hold")


def holds(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """List the workflows that are on hold."""
    found = with_client(context, lambda client: client.list_holds())
    if output is Format.JSON:
        print_json(found)
        return
    rows = [(h.workflow_id, moment(h.hold_time), h.reason) for h in found]
    print_table(("WORKFLOW", "SINCE", "REASON"), rows, "No workflow is on hold.")


@batches.command("start")
def batch_start(
    context: typer.Context,
    action: Annotated[str, typer.Argument(help=f"One of: {_ACTIONS}.")],
    workflow: Annotated[str, typer.Option(help="Only runs of this workflow.")] = "",
    state: Annotated[
        list[str] | None, typer.Option(help="Only runs in this state (queued, failed, …); may be repeated.")
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="Only this run; may be repeated.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All runs of the namespace.")] = False,
    reason: Annotated[str, typer.Option(help="For the record, with cancel and terminate.")] = "",
    grace: Annotated[float | None, typer.Option(min=0, help="Seconds of grace, with cancel.")] = None,
    level: Annotated[int | None, typer.Option(min=0, max=9, help="The new level, with level.")] = None,
    signal: Annotated[str, typer.Option(help="The signal's name, with signal.")] = "",
    payload: PayloadOption = None,
    step: StepOption = None,
    iteration: IterationOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Start a job that does one thing to every run that matches. Returns when the job is stored."""
    states = [_state(text) for text in state or []]
    if not (workflow or states or run or everything):
        raise CommandFailed("name runs: --workflow, --state, --run, or --all for every run of the namespace")
    data = _json(payload)

    async def command(client: AsyncFlint) -> Batch:
        return await client.start_batch(
            action,
            workflow=workflow,
            states=states,
            runs=run or (),
            reason=reason,
            grace_s=grace,
            level=level,
            signal=signal,
            payload=data,
            step=step,
            iteration=iteration,
        )

    found = with_client(context, command)
    if output is Format.JSON:
        print_json(found)
    else:
        print(found.id)


@batches.command("get")
def batch_get(
    context: typer.Context,
    batch: Annotated[str, typer.Argument(help="The job's id or name.", metavar="BATCH")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Show how far a job is."""
    found = with_client(context, lambda client: client.get_batch(batch))
    if output is Format.JSON:
        print_json(found)
        return
    print_fields(
        (
            ("batch", found.id),
            ("action", found.action),
            ("state", found.state.value),
            ("matched", found.matched),
            ("done", found.done),
            ("refused", found.refused),
            ("created", moment(found.create_time)),
            ("ended", moment(found.end_time)),
        )
    )
    for refusal in found.refusals:
        print(f"  {refusal.run.rpartition('/')[2]} {refusal.reason}: {refusal.message}")


@batches.command("list")
def batch_list(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    output: FormatOption = Format.TABLE,
) -> None:
    """List jobs, newest first."""

    async def command(client: AsyncFlint) -> list[Batch]:
        found: list[Batch] = []
        async for one in client.list_batches(page_size=min(limit, 500)):
            found.append(one)
            if len(found) == limit:
                break
        return found

    found = with_client(context, command)
    if output is Format.JSON:
        print_json(found)
        return
    rows = [(b.id, b.action, b.state.value, b.matched, b.done, b.refused, moment(b.create_time)) for b in found]
    print_table(("BATCH", "ACTION", "STATE", "MATCHED", "DONE", "REFUSED", "CREATED"), rows, "No jobs.")


@batches.command("cancel")
def batch_cancel(
    context: typer.Context, batch: Annotated[str, typer.Argument(help="The job's id or name.", metavar="BATCH")]
) -> None:
    """End a job early; what it has done stays done."""
    found = with_client(context, lambda client: client.cancel_batch(batch))
    print(f"{found.id} {found.state.value}: {found.done} of {found.matched} runs")


def _tell(run: Run, output: Format, what: str) -> None:
    if output is Format.JSON:
        print_json(run)
    else:
        print(f"{run.id} {what}")


def _json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CommandFailed(f"--payload is not JSON: {error}") from None


def _state(text: str) -> RunState:
    try:
        return RunState(text.upper())
    except ValueError:
        names = ", ".join(state.value.lower() for state in RunState if state is not RunState.UNSPECIFIED)
        raise CommandFailed(f"--state {text}: expected one of {names}") from None
