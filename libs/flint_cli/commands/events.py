"""`flint events`: publish events, and watch them as they come."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from flint_cli.exits import CommandFailed, say
from flint_cli.output import Format, FormatOption, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, FlintError, PublishedEvent

app = typer.Typer(name="events", help="Publish events, and watch them as they come.", no_args_is_help=True)


@app.command()
def publish(
    context: typer.Context,
    type_: Annotated[str, typer.Argument(help="The event's type, such as com.example.paid.", metavar="[TYPE]")] = "",
    source: Annotated[str, typer.Option(help="Who says so: a URI reference.")] = "/cli",
    data: Annotated[str | None, typer.Option(help="The event's data, JSON; @FILE reads a file.")] = None,
    subject: Annotated[str | None, typer.Option(help="What it is about.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Its id; the same again is the same event. Made up unless told.")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="An extension attribute, NAME=VALUE; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file of whole events instead, one JSON object a line; - is standard input.")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> int:
    """Publish one event, or a file of them. Exit code 1 when one was refused."""
    if file is not None:
        events = _read_events(file)
    elif type_:
        events = [_event(type_, source, data, subject, id_, attribute or [])]
    else:
        raise CommandFailed("say which type of event to publish, or --file")

    async def command(client: AsyncFlint) -> list[PublishedEvent | FlintError]:
        return await client.publish_events(events)

    results = with_client(context, command)
    refused = [(place, r) for place, r in enumerate(results) if isinstance(r, FlintError)]
    published = [r for r in results if isinstance(r, PublishedEvent)]
    if output is Format.JSON:
        print_json(published)
    else:
        rows = [(r.id, r.source, "published" if r.created else "was there before") for r in published]
        print_table(("ID", "SOURCE", "RESULT"), rows, "Nothing was published.")
    for place, error in refused:
        say(f"event {place + 1} was refused: {error.message}")
    return 1 if refused else 0


@app.command()
def watch(
    context: typer.Context,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="Only types that begin with this; may be repeated.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only this source; may be repeated.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on after what was seen before (stored events only).")] = None,
    lifecycle: Annotated[bool, typer.Option(help="Also lifecycle events of runs and tasks.")] = True,
    limit: Annotated[int, typer.Option(min=0, help="End after this many; 0: never.")] = 0,
    output: FormatOption = Format.TABLE,
) -> None:
    """Show events as they come, until interrupted. With JSON: one object a line, with its cursor."""

    async def command(client: AsyncFlint) -> None:
        seen = 0
        async for received in client.subscribe_events(
            types=type_ or (), sources=source or (), cursor=cursor, lifecycle=lifecycle
        ):
            if received.dropped:
                say(f"{received.dropped} lifecycle events were lost: this reader is too slow")
            if output is Format.JSON:
                line = orjson.dumps({"event": received.event, "cursor": received.cursor}).decode()
            else:
                event = received.event
                about = " ".join(str(event[name]) for name in ("source", "subject") if event.get(name))
                shown = orjson.dumps(event["data"]).decode() if event.get("data") is not None else ""
                line = f"{event.get('time', '')}  {received.type}  {about}  {shown}".rstrip()
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            seen += 1
            if seen == limit:
                return

    with_client(context, command)


def _event(
    type_: str, source: str, data: str | None, subject: str | None, id_: str | None, attributes: list[str]
) -> dict[str, Any]:
    event: dict[str, Any] = {"type": type_, "source": source}
    for text in attributes:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CommandFailed(f"--attribute {text}: expected NAME=VALUE")
        event[name] = value
    if subject:
        event["subject"] = subject
    if id_:
        event["id"] = id_
    if data is not None:
        event["data"] = _json(data)
    return event


def _json(text: str) -> Any:
    raw: str | bytes = text
    if text.startswith("@"):
        try:
            raw = Path(text[1:]).read_bytes()
        except OSError as error:
            raise CommandFailed(f"--data {text}: {error.strerror or error}") from None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise CommandFailed(f"--data is not JSON: {error}") from None


def _read_events(file: Path) -> list[dict[str, Any]]:
    try:
        lines = (sys.stdin.buffer if str(file) == "-" else file.open("rb")).read().splitlines()
    except OSError as error:
        raise CommandFailed(f"--file {file}: {error.strerror or error}") from None
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise CommandFailed(f"--file {file}, line {number}: not JSON: {error}") from None
        if not isinstance(event, dict):
            raise CommandFailed(f"--file {file}, line {number}: not an event: a JSON object is expected")
        events.append(event)
    return events
