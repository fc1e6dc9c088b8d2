"""`flint up`: the whole of Flint on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flint_stack.ports import DEFAULT_PORT_BASE

_DATA_DIR = Path(".flint")


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
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="A fixed number of workers; without it they come and go with the work."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; `flint down` stops it.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Apply and run the order-intake example.")] = False,
) -> int:
    """Start PostgreSQL, NATS, etcd and Flint's services on this machine, and keep them running."""
    if 0 < port_base < 1024:
        raise typer.BadParameter("must be 0 or at least 1024", param_hint="--port-base")
    from flint_cli.bring_up import bring_up  # noqa: PLC0415  (every other command starts faster without the stack)

    return bring_up(data_dir, config, assignments or (), port_base, workers, detach=detach, demo=demo)
