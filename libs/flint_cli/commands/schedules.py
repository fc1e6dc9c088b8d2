"""`flint schedules`: when workflows start by themselves, and how that is steered."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from flint_cli.calendar_files import read_rules
from flint_cli.commands.apply import read_source
from flint_cli.commands.runs import take
from flint_cli.exits import CommandFailed
from flint_cli.output import Format, FormatOption, moment, print_fields, print_json, print_table
from flint_cli.session import with_client
from flint_core.durations import DurationError, parse_duration
from flint_core.zones import ZoneUnknown, zone_named
from flint_sdk import AsyncFlint, Backfill, Schedule, ScheduleSpec

app = typer.Typer(name="schedules", help="See and steer when workflows start by themselves.", no_args_is_help=True)
calendars = typer.Typer(name="calendars", help="Named calendars: times that do not count.", no_args_is_help=True)
app.add_typer(calendars)

ScheduleArgument = Annotated[
    str, typer.Argument(help="The schedule's id; workflow.NAME for the one of a definition.", metavar="SCHEDULE")
]
CalendarArgument = Annotated[str, typer.Argument(help="The calendar's id.", metavar="CALENDAR")]


@app.command("list")
def list_(
    context: typer.Context,
    workflow: Annotated[str, typer.Option(help="Only those of this workflow.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    output: FormatOption = Format.TABLE,
) -> None:
    """List schedules by id, those of definitions too."""

    async def command(client: AsyncFlint) -> list[Schedule]:
        return await take(client.schedules.list(workflow=workflow, page_size=min(limit, 500)), limit)

    found = with_client(context, command)
    if output is Format.JSON:
        print_json(found)
        return
    rows = [
        (s.id, s.workflow, _when(s.spec), s.state.value, moment(s.next_time), moment(s.last_time), str(s.started))
        for s in found
    ]
    print_table(("SCHEDULE", "WORKFLOW", "WHEN", "STATE", "NEXT", "LAST", "STARTED"), rows, "No schedules.")


@app.command()
def show(context: typer.Context, schedule: ScheduleArgument, output: FormatOption = Format.TABLE) -> None:
    """Show one schedule with its counters, last runs and backfills."""
    _print(with_client(context, lambda client: client.schedules.get(schedule)), output)


def _spec_options(
    every: str | None,
    cron: str | None,
    after: str | None,
    timezone: str,
    overlap: str,
    catch_up: str,
    catch_up_window: str | None,
    jitter: str | None,
    exclude: list[str] | None,
    start_at: datetime | None,
    end_at: datetime | None,
    max_runs: int,
) -> ScheduleSpec:
    if sum(way is not None for way in (every, cron, after)) != 1:
        raise CommandFailed("say when: one of --every, --cron and --after")
    return ScheduleSpec(
        every=every,
        cron=cron,
        after=after,
        timezone=timezone,
        overlap=overlap,
        catch_up=catch_up,
        catch_up_window=_length(catch_up_window, "--catch-up-window"),
        jitter=_length(jitter, "--jitter"),
        calendars=exclude or (),
        start_time=_moment(start_at),
        end_time=_moment(end_at),
        max_runs=max_runs,
    )


_MOMENTS = ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"]
EveryOption = Annotated[str | None, typer.Option(help="Each time this has passed, ISO 8601 such as PT15M.")]
CronOption = Annotated[str | None, typer.Option(help="Cron: 5 fields, or 6 with seconds first.")]
AfterOption = Annotated[str | None, typer.Option(help="This long after the end of the run before.")]
ZoneOption = Annotated[str, typer.Option(help="IANA name such as Europe/Berlin; UTC unless told.")]
OverlapOption = Annotated[str, typer.Option(help="allow, skip, buffer, cancel or terminate.")]
CatchUpOption = Annotated[str, typer.Option(help="Of missed times: last, all or none.")]
WindowOption = Annotated[str | None, typer.Option(help="How late a missed time is made up for, such as PT1H.")]
JitterOption = Annotated[str | None, typer.Option(help="Each run starts late by up to this, such as PT30S.")]
ExcludeOption = Annotated[list[str] | None, typer.Option(help="A calendar whose times do not count; repeatable.")]
StartOption = Annotated[datetime | None, typer.Option(help="No time before this; UTC unless told.", formats=_MOMENTS)]
EndOption = Annotated[datetime | None, typer.Option(help="No time after this.", formats=_MOMENTS)]
MaxRunsOption = Annotated[int, typer.Option(min=0, help="Runs in all; 0: no limit.")]
InputOption = Annotated[str | None, typer.Option(help="Input of its runs, JSON.")]
VersionOption = Annotated[str, typer.Option(help="Version to start; the latest at the time unless told.")]
LevelOption = Annotated[int | None, typer.Option(min=0, max=9, help="Level of its runs.")]
DescriptionOption = Annotated[str, typer.Option(help="What it is for.")]


@app.command()
def create(
    context: typer.Context,
    schedule: ScheduleArgument,
    workflow: Annotated[str, typer.Argument(help="The workflow that it starts.")],
    every: EveryOption = None,
    cron: CronOption = None,
    after: AfterOption = None,
    timezone: ZoneOption = "",
    overlap: OverlapOption = "allow",
    catch_up: CatchUpOption = "last",
    catch_up_window: WindowOption = None,
    jitter: JitterOption = None,
    exclude: ExcludeOption = None,
    start_at: StartOption = None,
    end_at: EndOption = None,
    max_runs: MaxRunsOption = 0,
    input: InputOption = None,
    version: VersionOption = "",
    level: LevelOption = None,
    description: DescriptionOption = "",
    paused: Annotated[bool, typer.Option("--paused", help="Create it paused.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what a schedule with this id says.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Create a schedule for a workflow, beside the one of its definition; with --replace, change one."""
    spec = _spec_options(
        every, cron, after, timezone, overlap, catch_up, catch_up_window, jitter, exclude, start_at, end_at, max_runs
    )
    content: dict[str, Any] = {"version": version, "level": level, "description": description}
    if input is not None:
        try:
            content["input"] = orjson.loads(input)
        except orjson.JSONDecodeError as error:
            raise CommandFailed(f"--input is not JSON: {error}") from None
    if replace:
        found = with_client(context, lambda client: client.schedules.update(schedule, workflow, spec, **content))
    else:
        found = with_client(
            context, lambda client: client.schedules.create(schedule, workflow, spec, paused=paused, **content)
        )
    if output is Format.JSON:
        print_json(found)
    else:
        print(f"{found.id} {'replaced' if replace else 'created'}; next {moment(found.next_time) or '-'}")


@app.command()
def delete(context: typer.Context, schedule: ScheduleArgument) -> None:
    """End a schedule and its backfills. Runs that it started go on."""
    with_client(context, lambda client: client.schedules.delete(schedule))
    print(f"{schedule} deleted")


@app.command()
def pause(
    context: typer.Context,
    schedule: ScheduleArgument,
    note: Annotated[str, typer.Option(help="Why.")] = "",
) -> None:
    """Stop a schedule until it is resumed; backfills go on."""
    found = with_client(context, lambda client: client.schedules.pause(schedule, note))
    print(f"{found.id} paused")


@app.command()
def resume(context: typer.Context, schedule: ScheduleArgument) -> None:
    """Let a schedule go on from now. Times that passed meanwhile are not made up for: see backfill."""
    found = with_client(context, lambda client: client.schedules.resume(schedule))
    print(f"{found.id} resumed; next {moment(found.next_time) or '-'}")


@app.command()
def trigger(
    context: typer.Context,
    schedule: ScheduleArgument,
    request_id: Annotated[str, typer.Option(help="The same id again answers the same run.")] = "",
) -> None:
    """Start a run of the schedule now, whatever its overlap policy. Prints the run's id."""
    run = with_client(context, lambda client: client.schedules.trigger(schedule, request_id=request_id))
    print(run.rpartition("/")[2])


@app.command()
def backfill(
    context: typer.Context,
    schedule: ScheduleArgument,
    start: Annotated[datetime, typer.Option("--from", help="First moment; UTC unless told.", formats=_MOMENTS)],
    end: Annotated[datetime, typer.Option("--to", help="Last moment, not in the future.", formats=_MOMENTS)],
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="Runs at the same time.")] = 1,
    request_id: Annotated[str, typer.Option(help="The same id again answers the same backfill.")] = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Start the runs of the times of a past range that have none yet."""
    first, last = _aware(start), _aware(end)
    found = with_client(
        context,
        lambda client: client.schedules.backfill(schedule, first, last, concurrency=concurrency, request_id=request_id),
    )
    _print_backfill(found, output)


@app.command("cancel-backfill")
def cancel_backfill(
    context: typer.Context,
    schedule: ScheduleArgument,
    backfill: Annotated[str, typer.Argument(help="The backfill's id.")],
    output: FormatOption = Format.TABLE,
) -> None:
    """End a backfill. Runs that it started go on."""
    _print_backfill(with_client(context, lambda client: client.schedules.cancel_backfill(schedule, backfill)), output)


@app.command()
def preview(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="A schedule's id, or the file of a definition.", metavar="SCHEDULE|FILE")],
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many times.")] = 10,
    start: Annotated[datetime | None, typer.Option("--from", help="Times after this; now.", formats=_MOMENTS)] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Show the next times of a schedule, or of a definition that was not applied yet."""
    source = read_source(what) if what == "-" or Path(what).suffix or Path(what).is_file() else ""
    source = source if not what.startswith("workflow.") or Path(what).is_file() else ""
    times = with_client(
        context,
        lambda client: client.schedules.preview(
            "" if source else what, source=source, count=count, start_time=_moment(start)
        ),
    )
    if output is Format.JSON:
        print_json(times)
        return
    late = any(each.run_time != each.time for each in times)
    rows = [(moment(each.time), moment(each.run_time)) if late else (moment(each.time),) for each in times]
    print_table(("TIME", "RUN") if late else ("TIME",), rows, "No further times.")


@calendars.command("list")
def list_calendars(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """List calendars by id."""

    async def command(client: AsyncFlint) -> list[Any]:
        return await take(client.schedules.list_calendars(), 10_000)

    found = with_client(context, command)
    if output is Format.JSON:
        print_json(found)
        return
    rows = [(c.id, c.description, moment(c.update_time)) for c in found]
    print_table(("CALENDAR", "DESCRIPTION", "UPDATED"), rows, "No calendars.")


@calendars.command("show")
def show_calendar(context: typer.Context, calendar: CalendarArgument) -> None:
    """Show one calendar with its rules, as JSON."""
    print_json(with_client(context, lambda client: client.schedules.get_calendar(calendar)))


@calendars.command("put")
def put_calendar(
    context: typer.Context,
    calendar: CalendarArgument,
    file: Annotated[Path, typer.Option("--file", "-f", help="Rules in YAML or JSON, or an iCalendar file (.ics).")],
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    years: Annotated[int, typer.Option(min=1, max=20, help="Of an .ics: how far what recurs is unfolded.")] = 3,
    timezone: ZoneOption = "UTC",
) -> None:
    """Create or replace a calendar. Schedules that name it follow at once."""
    try:
        zone = zone_named(timezone)
    except ZoneUnknown as error:
        raise CommandFailed(f"--timezone: {error}") from None
    rules = read_rules(file, years, zone, date.today())
    found = with_client(context, lambda client: client.schedules.put_calendar(calendar, rules, description))
    print(f"{found.id} stored; {len(found.rules)} rules, {sum(len(r.get('dates', ())) for r in found.rules)} dates")


@calendars.command("delete")
def delete_calendar(context: typer.Context, calendar: CalendarArgument) -> None:
    """Delete a calendar that no schedule names."""
    with_client(context, lambda client: client.schedules.delete_calendar(calendar))
    print(f"{calendar} deleted")


def _print(found: Schedule, output: Format) -> None:
    if output is Format.JSON:
        print_json(found)
        return
    spec = found.spec
    counters = ("started", "skipped", "missed", "excluded", "refused")
    print_fields(
        (
            ("schedule", found.id),
            ("workflow", f"{found.workflow} {found.version}".strip()),
            ("description", found.description),
            ("when", _when(spec)),
            ("overlap", spec.overlap if spec and spec.overlap != "allow" else ""),
            ("excludes", ", ".join(spec.calendars) if spec else ""),
            ("input", orjson.dumps(found.input).decode() if found.input else ""),
            ("state", found.state.value),
            ("paused", f"{moment(found.pause_time)} by {found.paused_by}" if found.pause_time else ""),
            ("note", found.pause_note),
            ("next", moment(found.next_time)),
            ("last", moment(found.last_time)),
            ("buffered", moment(found.buffered_time)),
            ("counters", ", ".join(f"{getattr(found, name)} {name}" for name in counters)),
            ("last error", found.last_error),
        )
    )
    if found.runs:
        rows = [(moment(r.schedule_time), r.state, r.run.rpartition("/")[2]) for r in found.runs]
        print_table(("TIME", "STATE", "RUN"), rows, "")
    if found.backfills:
        filled = [(b.id, b.state.value, _progress(b), moment(b.create_time)) for b in found.backfills]
        print_table(("BACKFILL", "STATE", "PROGRESS", "ASKED"), filled, "")


def _print_backfill(found: Backfill, output: Format) -> None:
    if output is Format.JSON:
        print_json(found)
    else:
        print(f"{found.id} {found.state.value.lower()}: {_progress(found)}")


def _progress(b: Backfill) -> str:
    return f"{b.started + b.present}/{b.total} ({b.present} had a run), {b.running} running, {b.failed} failed"


def _when(spec: ScheduleSpec | None) -> str:
    if spec is None:
        return "on events"
    way = next((way for way in ("every", "cron", "after") if getattr(spec, way) is not None), "")
    return f"{way} {getattr(spec, way)}{f' {spec.timezone}' if spec.timezone else ''}" if way else ""


def _length(text: str | None, option: str) -> timedelta | None:
    if text is None:
        return None
    try:
        return timedelta(milliseconds=parse_duration(text).length_ms(0))
    except DurationError as error:
        raise CommandFailed(f"{option}: {error}") from None


def _moment(value: datetime | None) -> datetime | None:
    return _aware(value) if value is not None else None


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
