"""`flint run`: start a run and wait for its end."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from flint_cli.exits import CommandFailed, ExitCode, say
from flint_cli.output import Format, FormatOption, print_json
from flint_cli.session import with_client
from flint_cli.watchview import follow
from flint_sdk import AsyncFlint, AsyncRunHandle, Problem, Run, RunState, TimedOut


def run(
    context: typer.Context,
    workflow: Annotated[str, typer.Argument(help="The workflow's name.", metavar="NAME")],
    input_: Annotated[
        str, typer.Option("--input", "-i", help="JSON, @file, or - for standard input.", metavar="JSON|@FILE|-")
    ] = "{}",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show the steps while they run.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the run's name at once.")] = False,
    version: Annotated[str | None, typer.Option(help="A version; the latest one unless told.")] = None,
    level: Annotated[
        str | None, typer.Option(help="0 (most urgent) to 9, or the name of a level; 5 unless told.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="The pool of workers that executes it.")] = None,
    region: Annotated[str | None, typer.Option(help="The region in which it is executed.")] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="The same id again answers the same run instead of a new one.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds to wait at most; the run goes on.")] = None,
    output: FormatOption = Format.TABLE,
) -> int:
    """Start a run, wait for its end and print its output.

    Exit code: 0 succeeded, 1 failed, 2 refused, 3 cancelled, 4 unavailable or not ended in time.
    """
    if watch and no_wait:
        raise CommandFailed("--watch and --no-wait exclude each other")
    value = read_input(input_)

    async def command(client: AsyncFlint) -> int:
        urgency = int(level) if level is not None and level.isdecimal() else level
        handle = await client.start(
            workflow, value, request_id=request_id, version=version, level=urgency, pool=pool, region=region
        )
        if not handle.created:
            say(f"This request id started {handle.id} before; following that run.")
        if no_wait:
            if output is Format.JSON:
                print_json(handle.run)
            else:
                print(handle.name)
            return ExitCode.SUCCEEDED
        ended = await await_end(client, handle, watch=watch, timeout_s=timeout)
        return show_end(ended, output)

    return with_client(context, command)


async def await_end(client: AsyncFlint, handle: AsyncRunHandle, *, watch: bool, timeout_s: float | None) -> Run:
    """The run once it has ended. A Ctrl-C says how to come back to it."""
    try:
        if not watch:
            return await client.wait(handle.name, timeout_s)
        async with asyncio.timeout(timeout_s):
            return await follow(handle.watch())
    except asyncio.CancelledError:
        say(f"The run goes on: flint runs watch {handle.id}")
        raise
    except TimeoutError as error:
        raise TimedOut(
            f"run {handle.id} has not ended within {timeout_s:g} s. It goes on: flint runs watch {handle.id}"
        ) from error


def show_end(run: Run, output: Format) -> ExitCode:
    """Prints the result on stdout, a failure on stderr; answers the exit code."""
    if output is Format.JSON:
        print_json(run)
    elif run.state is RunState.SUCCEEDED:
        print_json(run.output)
    if run.state is RunState.FAILED:
        if output is not Format.JSON:
            say(f"Run {run.id} failed: {explain(run.error)}")
        return ExitCode.FAILED
    if run.state is RunState.CANCELLED:
        if output is not Format.JSON:
            say(f"Run {run.id} was cancelled.")
        return ExitCode.CANCELLED
    return ExitCode.SUCCEEDED


def explain(problem: Problem | None) -> str:
    """A problem as a sentence."""
    if problem is None:
        return "no reason was recorded"
    text = problem.title or problem.type
    if problem.detail:
        text = f"{text}: {problem.detail}"
    if problem.status:
        text = f"{text} (status {problem.status})"
    return f"{text}, at {problem.instance}" if problem.instance else text


def read_input(text: str) -> Any:
    """The input's JSON value. Raises CommandFailed when it is not JSON."""
    if text == "-":
        where, data = "standard input", sys.stdin.buffer.read()
    elif text.startswith("@"):
        where, data = text[1:], Path(text[1:]).read_bytes()
    else:
        where, data = "--input", text.encode()
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise CommandFailed(f"{where} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
