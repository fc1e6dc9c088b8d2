"""What `flint up` does. Apart from the command itself: the imports of the stack take a third of a second."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from flint_cli.demo import demo_children, demo_settings, run_demo
from flint_cli.exits import CommandFailed, ExitCode
from flint_stack.errors import StackError
from flint_stack.layout import Layout
from flint_stack.ports import Counts
from flint_stack.stack import StackOptions, no_children, no_settings
from flint_stack.up import detach as start_detached
from flint_stack.up import up as run_stack

__all__ = ["bring_up"]

_FOREGROUND = "from flint_cli.main import main; main()"


def bring_up(
    data_dir: Path,
    config: Path | None,
    assignments: Sequence[str],
    port_base: int,
    workers: int | None,
    *,
    detach: bool,
    demo: bool,
) -> int:
    """Run the stack in the foreground until it is told to stop, or start it in the background. Raises CommandFailed."""
    console = Console()
    try:
        if detach:
            arguments = _arguments(data_dir, config, assignments, port_base, workers, demo=demo)
            asyncio.run(start_detached((sys.executable, "-c", _FOREGROUND, "up", *arguments), data_dir, console))
            return ExitCode.SUCCEEDED
        options = StackOptions(
            data_dir=data_dir,
            port_base=port_base,
            counts=Counts(workers=workers or 0),
            elastic=workers is None,
            config=config,
            assignments=tuple(assignments),
            extra_settings=demo_settings if demo else no_settings,
            extra_children=demo_children if demo else no_children,
        )
        return asyncio.run(run_stack(options, console, demo=partial(run_demo, Layout.at(data_dir)) if demo else None))
    except StackError as error:
        raise CommandFailed(str(error), ExitCode.FAILED) from None


def _arguments(
    data_dir: Path, config: Path | None, assignments: Sequence[str], port_base: int, workers: int | None, *, demo: bool
) -> list[str]:
    arguments = [f"--data-dir={data_dir}", f"--port-base={port_base}"]
    arguments.extend([f"--workers={workers}"] if workers is not None else [])
    arguments.extend([f"--config={config}"] if config is not None else [])
    arguments.extend(f"--set={assignment}" for assignment in assignments)
    arguments.extend(["--demo"] if demo else [])
    return arguments
