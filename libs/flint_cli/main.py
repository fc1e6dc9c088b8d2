"""The `flint` command: options before the command, and the list of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from flint_cli.commands import (
    apply,
    approvals,
    config,
    control,
    doctor,
    down,
    events,
    functions,
    keys,
    limits,
    lint,
    migrate,
    namespaces,
    pools,
    run,
    runs,
    schedules,
    schema,
    test,
    up,
    version,
    workers,
    workflows,
)
from flint_cli.exits import guarded
from flint_cli.session import Session

__all__ = ["app", "main"]

app = typer.Typer(
    name="flint",
    help="Flint, a distributed workflow engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="FLINT_ADDRESS", help="Gateways, host:port, comma-separated; the nearest .flint folder unless told."
        ),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", envvar="FLINT_NAMESPACE")] = "default",
) -> None:
    """Flint, a distributed workflow engine. The API key is read from FLINT_KEY, else from .flint/admin.key."""
    context.obj = Session(address=address, namespace=namespace)


app.command("up")(up.up)
app.command("down")(down.down)
app.command("doctor")(doctor.doctor)
app.command("apply")(apply.apply)
app.command("run")(run.run)
app.add_typer(runs.app)
app.add_typer(control.batches)
app.add_typer(events.app)
app.add_typer(approvals.app)
app.add_typer(workflows.app)
app.add_typer(schedules.app)
app.add_typer(workers.app)
app.add_typer(pools.app)
app.add_typer(functions.app)
app.add_typer(limits.app)
app.add_typer(namespaces.app)
app.add_typer(namespaces.levels)
app.command("queue")(namespaces.queue)
app.command("retention")(namespaces.retention)
app.add_typer(keys.app)
app.command("lint")(lint.lint)
app.command("schema")(schema.schema)
app.command("test")(test.test)
app.add_typer(config.app)
app.command("migrate")(migrate.migrate)
app.command("version")(version.version)


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point. Ends the process with the command's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(guarded(lambda: app(args=arguments, prog_name="flint", standalone_mode=False)))
