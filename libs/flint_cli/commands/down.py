"""`flint down`: stops what `flint up` started."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flint_cli.exits import CommandFailed, ExitCode
from flint_stack.down import down as stop_stack
from flint_stack.errors import StackError

_DATA_DIR = Path(".flint")


def down(
    data_dir: Annotated[Path, typer.Option(help="The data directory of the Flint to stop.")] = _DATA_DIR,
    hurry: Annotated[bool, typer.Option("--hurry", help="Do not wait for steps in progress: they run again.")] = False,
) -> int:
    """Drain and stop the Flint of a data directory, or end what a killed one left running."""
    console = Console()
    try:
        stopped = asyncio.run(stop_stack(data_dir, console, hurry=hurry))
    except StackError as error:
        raise CommandFailed(str(error), ExitCode.FAILED) from None
    console.print("Stopped." if stopped else f"No Flint runs in {data_dir}.", highlight=False)
    return ExitCode.SUCCEEDED
