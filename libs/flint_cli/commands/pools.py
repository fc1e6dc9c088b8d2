"""`flint pools`: how many workers there are, and why."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from flint_cli.exits import CommandFailed
from flint_cli.output import Format, FormatOption, ago, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, Pool, ScalingDecision

app = typer.Typer(name="pools", help="See and steer how many workers there are.", no_args_is_help=True)

_Region = Annotated[str, typer.Option(help="The pool's region.")]
_DEFAULTS = {
    "mode": "mode",
    "minimum": "minimum_workers",
    "maximum": "maximum_workers",
    "target-wait": "target_wait_s",
    "idle": "idle_s",
    "buffer-slots": "buffer_slots",
    "standby-slots": "standby_slots",
    "worker-slots": "worker_slots",
    "dedicated-to": "dedicated_to",
}


class Mode(StrEnum):
    """Whether workers are started and ended."""

    FIXED = "fixed"
    SHADOW = "shadow"
    AUTOMATIC = "automatic"


@app.command("list")
def list_(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """List pools with their load and how they are scaled."""

    async def command(client: AsyncFlint) -> list[Pool]:
        return await client.list_pools()

    _show(with_client(context, command), output)


@app.command("set")
def set_(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(help="The pool; one that is not there yet is made.")],
    region: _Region = "local",
    mode: Annotated[Mode | None, typer.Option(help="fixed: nothing is decided; shadow: only written down.")] = None,
    minimum: Annotated[int | None, typer.Option(min=0, help="Never fewer workers; 0: the pool may go to zero.")] = None,
    maximum: Annotated[int | None, typer.Option(min=1, help="Never more workers.")] = None,
    target_wait: Annotated[
        float | None, typer.Option(min=0.1, help="95 of 100 runs wait no longer than this, in seconds.")
    ] = None,
    idle: Annotated[float | None, typer.Option(min=1, help="Idle workers are ended after this many seconds.")] = None,
    buffer_slots: Annotated[int | None, typer.Option(min=0, help="Free slots kept warm.")] = None,
    standby_slots: Annotated[int | None, typer.Option(min=0, help="Free slots kept for urgent work.")] = None,
    worker_slots: Annotated[int | None, typer.Option(min=1, help="Slots of a new worker.")] = None,
    dedicated_to: Annotated[str | None, typer.Option(help="The one namespace that it works for; empty: all.")] = None,
    default: Annotated[
        list[str] | None, typer.Option("--default", metavar="NAME", help="An option's name: back to the default.")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Change how a pool is scaled. What is not named stays as it is."""
    given: dict[str, Any] = {
        "mode": None if mode is None else mode.value,
        "minimum_workers": minimum,
        "maximum_workers": maximum,
        "target_wait_s": target_wait,
        "idle_s": idle,
        "buffer_slots": buffer_slots,
        "standby_slots": standby_slots,
        "worker_slots": worker_slots,
        "dedicated_to": dedicated_to,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    for name in default or ():
        if name not in _DEFAULTS:
            raise typer.BadParameter(f"must be one of {', '.join(_DEFAULTS)}", param_hint="--default")
        changes[_DEFAULTS[name]] = None
    if not changes:
        raise CommandFailed("Nothing to change: name at least one option, such as --minimum 1.")

    async def command(client: AsyncFlint) -> Pool:
        return await client.update_pool(pool, region=region, **changes)

    _show([with_client(context, command)], output)


@app.command()
def decisions(
    context: typer.Context,
    pool: Annotated[str | None, typer.Argument(help="Only this pool.")] = None,
    region: _Region = "local",
    all_: Annotated[bool, typer.Option("--all", help="Also decisions to do nothing.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 20,
    output: FormatOption = Format.TABLE,
) -> None:
    """List what the autoscaler decided, the latest first, and how right it was."""

    async def command(client: AsyncFlint) -> list[ScalingDecision]:
        found = []
        async for decision in client.list_scaling_decisions(pool=pool, region=region, changes_only=not all_):
            found.append(decision)
            if len(found) >= limit:
                break
        return found

    listed = with_client(context, command)
    if output is Format.JSON:
        print_json(listed)
        return
    rows = [
        (
            ago(d.time),
            d.pool.rpartition("/")[2],
            f"{d.action} (shadow)" if d.shadow else d.action,
            f"{d.workers} → {d.wanted_workers}",
            d.verdict or "-",
            d.reason + (f" FAILED: {d.failure}" if d.failure else ""),
        )
        for d in listed
    ]
    print_table(("WHEN", "POOL", "ACTION", "WORKERS", "VERDICT", "WHY"), rows, "No decisions.")


def _show(pools: list[Pool], output: Format) -> None:
    if output is Format.JSON:
        print_json(pools)
        return
    rows = [
        (
            pool.pool,
            pool.region,
            pool.settings.mode,
            f"{pool.workers}" + (f" +{pool.starting_workers}" if pool.starting_workers else ""),
            "-" if pool.wanted_workers is None else pool.wanted_workers,
            "" if pool.settings.mode == "fixed" else _bounds(pool),
            f"{pool.legs}/{pool.slots}",
            pool.waiting_runs,
            f"{pool.longest_wait_s:.1f} s" if pool.waiting_runs else "",
            pool.settings.dedicated_to,
        )
        for pool in pools
    ]
    columns = ("POOL", "REGION", "MODE", "WORKERS", "WANTED", "BOUNDS", "LEGS", "WAITING", "OLDEST", "DEDICATED TO")
    print_table(columns, rows, "No pools.")


def _bounds(pool: Pool) -> str:
    return f"{pool.settings.minimum_workers}..{pool.settings.maximum_workers}"
