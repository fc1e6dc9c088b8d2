"""`flint doctor`: whether every component is reachable and healthy, or what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flint_cli.exits import ExitCode
from flint_cli.output import Format, FormatOption, print_json

_DATA_DIR = Path(".flint")


def doctor(
    data_dir: Annotated[Path, typer.Option(help="The data directory of the Flint to look at.")] = _DATA_DIR,
    config: Annotated[
        Path | None, typer.Option(help="Settings of a Flint that `flint up` did not start; it is looked at instead.")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> int:
    """Check every component; the exit code is 1 when something is wrong."""
    from flint_stack.doctor import diagnose, print_diagnosis  # noqa: PLC0415 - brings psycopg; other commands need none

    diagnosis = asyncio.run(diagnose(data_dir, config=config))
    if output is Format.JSON:
        print_json(diagnosis)
    else:
        print_diagnosis(Console(), diagnosis)
    return ExitCode.SUCCEEDED if diagnosis.healthy else ExitCode.FAILED
