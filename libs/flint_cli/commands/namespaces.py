"""`flint namespaces`, `flint levels`, `flint queue`: what namespaces may use, names of levels, what waits."""

from __future__ import annotations

from typing import Annotated

import typer

from flint_cli.exits import CommandFailed, say
from flint_cli.output import Format, FormatOption, moment, print_json, print_table
from flint_cli.session import session_of, with_client
from flint_sdk import NamespaceSettings

app = typer.Typer(name="namespaces", help="See and set what a namespace may use.", no_args_is_help=True)
levels = typer.Typer(name="levels", help="Name the levels of the namespace.", no_args_is_help=True)

NamespaceArgument = Annotated[str | None, typer.Argument(help="The namespace; --namespace unless told.")]
LevelArgument = Annotated[str, typer.Argument(help="The level's name.", metavar="NAME")]


@app.command()
def get(context: typer.Context, namespace: NamespaceArgument = None, output: FormatOption = Format.TABLE) -> None:
    """Show weight, quotas and names of levels."""
    _show(with_client(context, lambda client: client.namespace_settings(namespace)), output)


@app.command("set")
def set_(
    context: typer.Context,
    namespace: NamespaceArgument = None,
    weight: Annotated[int | None, typer.Option(min=0, max=1000, help="Share of the slots; 100 unless told.")] = None,
    max_running: Annotated[int | None, typer.Option(min=0, help="Runs executed at a time; 0: no limit.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="Runs that wait for a slot; 0: no limit.")] = None,
    starts_per_second: Annotated[float | None, typer.Option(min=0, help="Starts per second; 0: no limit.")] = None,
    starts_burst: Annotated[int | None, typer.Option(min=0, help="Starts that may come at once.")] = None,
    retention_days: Annotated[
        int | None, typer.Option(min=-1, help="Days that ended runs are kept; 0: as the cluster says, -1: for ever.")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Change what a namespace may use. What is not named stays as it is."""
    changes = {
        "weight": weight,
        "max_running": max_running,
        "max_queued": max_queued,
        "starts_per_second": starts_per_second,
        "starts_burst": starts_burst,
        "retention_days": retention_days,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise CommandFailed("say what to change: --weight, --max-running, --max-queued, --starts-per-second, …")
    _show(with_client(context, lambda client: client.set_namespace(namespace, **given)), output)


@levels.command("list")
def list_(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """List the names that the namespace gave to levels."""
    settings = with_client(context, lambda client: client.namespace_settings())
    if output is Format.JSON:
        print_json(settings.levels)
        return
    rows = [(name, str(level)) for name, level in settings.levels.items()]
    print_table(("NAME", "LEVEL"), rows, f"No levels of {settings.namespace} have names.")


@levels.command("set")
def set_level(
    context: typer.Context,
    name: LevelArgument,
    level: Annotated[int, typer.Argument(min=0, max=9, help="0 (most urgent) to 9.")],
) -> None:
    """Name a level, or let a name stand for another level from now on."""
    with_client(context, lambda client: client.name_level(name, level))
    say(f"Level {name} of {session_of(context).namespace} is {level}.")


@levels.command("delete")
def delete_level(context: typer.Context, name: LevelArgument) -> None:
    """Forget a name. Starts that use it are refused."""
    with_client(context, lambda client: client.forget_level(name))
    say(f"Level {name} is gone.")


def queue(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """Show what waits for slots, by pool and region, in the whole cluster."""
    pools = with_client(context, lambda client: client.describe_queue())
    if output is Format.JSON:
        print_json(pools)
        return
    rows = [
        (
            pool.pool,
            pool.region or "any",
            str(sum(pool.ready)),
            " ".join(f"{level}:{count}" for level, count in enumerate(pool.ready) if count),
            str(pool.held),
            str(pool.running),
            f"{pool.oldest_wait_s:.1f} s" if pool.oldest_wait_s else "",
            pool.waiting_for,
        )
        for pool in pools
    ]
    header = ("POOL", "REGION", "READY", "BY LEVEL", "HELD", "RUNNING", "OLDEST", "WAITING FOR")
    print_table(header, rows, "Nothing waits.")


def retention(context: typer.Context, namespace: NamespaceArgument = None, output: FormatOption = Format.TABLE) -> None:
    """Show how long ended runs of a namespace are kept, and what was deleted so far."""
    found = with_client(context, lambda client: client.describe_retention(namespace))
    if output is Format.JSON:
        print_json(found)
        return
    rows = [
        ("kept", _length(found.namespace_s)),
        ("kept, cluster", _length(found.cluster_s)),
        *((f"kept, {workflow}", _length(kept_s)) for workflow, kept_s in found.workflows.items()),
        ("runs deleted", str(found.runs_deleted)),
        ("rows deleted", str(found.rows_deleted)),
        ("last deletion", moment(found.last_deletion_time) or "never"),
        ("last sweep", moment(found.last_sweep_time) or "not over yet"),
        ("oldest run", moment(found.oldest_run_time) or "none"),
    ]
    print_table((found.namespace.upper(), "VALUE"), rows, "")


def _length(seconds: int) -> str:
    """A time that runs are kept."""
    if not seconds:
        return "for ever"
    days, rest = divmod(seconds, 86_400)
    return f"{days} days" if days and not rest else f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds} s"


def _days(days: int) -> str:
    return "as the cluster says" if not days else "for ever" if days < 0 else str(days)


def _show(settings: NamespaceSettings, output: Format) -> None:
    if output is Format.JSON:
        print_json(settings)
        return
    rows = [
        ("weight", str(settings.weight)),
        ("max-running", str(settings.max_running or "any")),
        ("max-queued", str(settings.max_queued or "any")),
        ("starts-per-second", f"{settings.starts_per_second:g}" if settings.starts_per_second else "any"),
        ("starts-burst", str(settings.starts_burst or "as many as a second allows")),
        ("retention-days", _days(settings.retention_days)),
        ("levels", ", ".join(f"{name}={level}" for name, level in settings.levels.items()) or "no names"),
    ]
    print_table((settings.namespace.upper(), "VALUE"), rows, "")
