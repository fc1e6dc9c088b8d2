"""`flint up`: the whole of Flint on this machine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flint_cli.demo import demo_children, demo_settings, run_demo
from flint_cli.exits import CommandFailed, ExitCode
from flint_stack.errors import StackError
from flint_stack.layout import Layout
from flint_stack.ports import DEFAULT_PORT_BASE, Counts
from flint_stack.stack import StackOptions, no_children, no_settings
from flint_stack.up import detach as start_detached
from flint_stack.up import up as run_stack

_DATA_DIR = Path(".flint")
_FOREGROUND = "from flint_cli.main import main; main()"


def up(
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = _DATA_DIR,
    config: Annotated[
        Path | None,
        typer.Option(help="Your settings; without it flint.toml beside the data directory, if it is there."),
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    port_base: Annotated[
        int, typer.Option(min=0, max=65_000, help="The gateway's port; the others follow. 0: any free ports.")
    ] = DEFAULT_PORT_BASE,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers.")] = 2,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; `flint down` stops it.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Apply and run the order-intake example.")] = False,
) -> int:
    """Start PostgreSQL, NATS, etcd and Flint's services on this machine, and keep them running."""
    if 0 < port_base < 1024:
        raise typer.BadParameter("must be 0 or at least 1024", param_hint="--port-base")
    console = Console()
    try:
        if detach:
            arguments = _arguments(data_dir, config, assignments or (), port_base, workers, demo=demo)
            asyncio.run(start_detached((sys.executable, "-c", _FOREGROUND, "up", *arguments), data_dir, console))
            return ExitCode.SUCCEEDED
        options = StackOptions(
            data_dir=data_dir,
            port_base=port_base,
            counts=Counts(workers=workers),
            config=config,
            assignments=tuple(assignments or ()),
            extra_settings=demo_settings if demo else no_settings,
            extra_children=demo_children if demo else no_children,
        )
        return asyncio.run(run_stack(options, console, demo=partial(run_demo, Layout.at(data_dir)) if demo else None))
    except StackError as error:
        raise CommandFailed(str(error), ExitCode.FAILED) from None


def _arguments(
    data_dir: Path, config: Path | None, assignments: Sequence[str], port_base: int, workers: int, *, demo: bool
) -> list[str]:
    arguments = [f"--data-dir={data_dir}", f"--port-base={port_base}", f"--workers={workers}"]
    arguments.extend([f"--config={config}"] if config is not None else [])
    arguments.extend(f"--set={assignment}" for assignment in assignments)
    arguments.extend(["--demo"] if demo else [])
    return arguments
