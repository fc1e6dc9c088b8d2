"""`flint runs`: look at runs, follow them, end them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import orjson
import typer

from flint_cli.commands.control import RequestIdOption, add_run_commands
from flint_cli.commands.run import explain, show_end
from flint_cli.exits import CommandFailed
from flint_cli.output import Format, FormatOption, moment, print_fields, print_json, print_table, seconds
from flint_cli.session import with_client
from flint_cli.watchview import follow
from flint_sdk import AsyncFlint, HistoryEntry, Run, RunState

T = TypeVar("T")

app = typer.Typer(name="runs", help="Look at runs, follow them, end them.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(help="The run's id or name.", metavar="RUN")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command("list")
def list_(
    context: typer.Context,
    workflow: Annotated[str | None, typer.Option(help="Only runs of this workflow.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Only runs in this state (queued, running, …); may be repeated.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only runs created within: 90s, 15m, 2h, 7d.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    output: FormatOption = Format.TABLE,
) -> None:
    """List runs, newest first."""
    states = [_state(text) for text in state or []]
    created_after = datetime.now(UTC) - _duration(since) if since else None

    async def command(client: AsyncFlint) -> list[Run]:
        found = client.list_runs(
            workflow=workflow, states=states, created_after=created_after, page_size=min(limit, 500)
        )
        return await take(found, limit)

    runs = with_client(context, command)
    if output is Format.JSON:
        print_json(runs)
        return
    rows = [(r.id, r.workflow_id, r.version, r.state.value, r.level, moment(r.create_time), _lasted(r)) for r in runs]
    print_table(("RUN", "WORKFLOW", "VERSION", "STATE", "LEVEL", "CREATED", "DURATION"), rows, "No runs.")


@app.command()
def get(context: typer.Context, run: RunArgument, output: FormatOption = Format.TABLE) -> None:
    """Show one run."""
    found = with_client(context, lambda client: client.get_run(run))
    if output is Format.JSON:
        print_json(found)
        return
    print_fields(
        (
            ("run", found.id),
            ("workflow", f"{found.workflow_id} {found.version}"),
            ("state", found.state.value),
            ("level", found.level),
            ("pool", f"{found.pool} in {found.region}" if found.region else found.pool),
            ("waits for", found.waiting_for),
            ("due", moment(found.deadline)),
            ("created", moment(found.create_time)),
            ("started", moment(found.start_time)),
            ("ended", moment(found.end_time)),
            ("duration", _lasted(found)),
            ("wakes", moment(found.wake_time)),
            ("scheduled for", moment(found.schedule_time)),
            ("branches", f"{found.branches.count} from {found.branches.first}" if found.branches else ""),
            ("of run", found.branches.run if found.branches else ""),
            ("worker", found.worker),
            ("leg", found.leg),
            ("entries", found.position),
            ("resets", found.reset or ""),
            ("cancel requested", "yes" if found.cancel_requested else ""),
            ("request id", found.request_id),
            ("trace id", found.trace_id),
            ("error", explain(found.error) if found.error else ""),
            ("input", _inline(found.input)),
            ("output", _inline(found.output) if found.state is RunState.SUCCEEDED else ""),
        )
    )


@app.command()
def history(
    context: typer.Context,
    run: RunArgument,
    branches: Annotated[
        bool, typer.Option("--branches", help="Also the steps of wide forks, which are recorded by runs of their own.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many branch runs of each run.")] = 1_000,
    output: FormatOption = Format.TABLE,
) -> None:
    """Show the recorded steps of a run."""

    async def command(client: AsyncFlint) -> list[HistoryEntry]:
        entries: list[HistoryEntry] = []
        pending = [run]
        while pending:
            one = pending.pop()
            entries += [entry async for entry in client.history(one)]
            if branches:
                found = await take(client.list_runs(branches_of=one, page_size=500), limit)
                pending += [r.name for r in sorted(found, key=_place, reverse=True)]
        return entries

    entries = with_client(context, command)
    if output is Format.JSON:
        print_json(entries)
        return
    rows: list[tuple[Any, ...]] = []
    for entry in entries:
        for step in entry.steps:
            name = f"{step.step} [{step.iteration}]" if step.iteration else step.step
            error = (step.error.detail or step.error.title) if step.error else ""
            kind = step.function or step.kind
            rows.append(
                (
                    entry.index,
                    entry.leg,
                    entry.worker[:12],
                    name,
                    kind,
                    step.attempt,
                    step.state.value,
                    seconds(step.duration_s),
                    error,
                )
            )
        if entry.superseded_by:
            rows.append((entry.index, entry.leg, "", f"(superseded by reset {entry.superseded_by})", *[""] * 5))
        if entry.leg_end:
            rows.append((entry.index, entry.leg, entry.worker[:12], f"(leg {entry.leg_end})", "", "", "", "", ""))
    columns = ("ENTRY", "LEG", "WORKER", "STEP", "KIND", "ATTEMPT", "STATE", "DURATION", "ERROR")
    print_table(columns, rows, "Nothing is recorded yet.")


@app.command()
def cancel(
    context: typer.Context,
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="For the record.")] = "",
    grace: Annotated[float | None, typer.Option(min=0, help="Seconds that running steps may go on.")] = None,
    request_id: RequestIdOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Ask a run to end early. Returns when the request is stored."""
    found = with_client(context, lambda client: client.cancel(run, reason, grace_s=grace, request_id=request_id))
    if output is Format.JSON:
        print_json(found)
    else:
        print(f"{found.id} cancel requested")


@app.command()
def watch(context: typer.Context, run: RunArgument, output: FormatOption = Format.TABLE) -> int:
    """Follow a run until it has ended. Exit code as of `flint run`."""

    async def command(client: AsyncFlint) -> Run:
        return await follow(client.watch(run))

    return show_end(with_client(context, command), output)


async def take(items: AsyncIterator[T], limit: int) -> list[T]:
    """The first items; no page is fetched beyond them."""
    found: list[T] = []
    async for item in items:
        found.append(item)
        if len(found) == limit:
            break
    return found


def _place(run: Run) -> tuple[int, int]:
    """In the order of the forks, and of their branches."""
    return (int(run.branches.fork), run.branches.first) if run.branches else (0, 0)


def _lasted(run: Run) -> str:
    if run.create_time is None or run.end_time is None:
        return ""
    return seconds((run.end_time - run.create_time).total_seconds())


def _inline(value: Any) -> str:
    return "" if value is None else orjson.dumps(value).decode()


def _state(text: str) -> RunState:
    try:
        return RunState(text.upper())
    except ValueError:
        names = ", ".join(state.value.lower() for state in RunState if state is not RunState.UNSPECIFIED)
        raise CommandFailed(f"--state {text}: expected one of {names}") from None


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise CommandFailed(f"--since {text}: expected a number and a unit, such as 90s, 15m, 2h or 7d")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


add_run_commands(app)
