"""`flint limits`: limits that definitions refer to by name."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from flint_cli.exits import CommandFailed, say
from flint_cli.output import Format, FormatOption, ago, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, NamedLimit

app = typer.Typer(name="limits", help="See and set limits that definitions refer to by name.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The limit's name.", metavar="NAME")]
_RATE = re.compile(r"(\d{1,7})/(\d{0,7})(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@app.command("list")
def list_(context: typer.Context, output: FormatOption = Format.TABLE) -> None:
    """List the limits of the namespace, with how many runs hold each and how many were refused and wait."""

    async def command(client: AsyncFlint) -> list[NamedLimit]:
        return [limit async for limit in client.list_limits()]

    _show(with_client(context, command), output)


@app.command("set")
def set_(
    context: typer.Context,
    name: NameArgument,
    concurrency: Annotated[int | None, typer.Option(min=0, help="Runs at a time; 0 lets nobody in.")] = None,
    rate: Annotated[str, typer.Option(help="Runs per period, such as 10/s, 100/m, 5/30s.")] = "",
    burst: Annotated[int, typer.Option(min=1, help="Runs that may begin at once after a pause.")] = 1,
    output: FormatOption = Format.TABLE,
) -> None:
    """Set what a limit allows. What it said before is replaced, and the next run that asks is judged by it."""
    if concurrency is None and not rate:
        raise CommandFailed("say what the limit allows: --concurrency, --rate, or both")
    pace = _rate(rate) if rate else None
    limit = with_client(context, lambda client: client.set_limit(name, concurrency=concurrency, rate=pace, burst=burst))
    _show([limit], output)


@app.command()
def delete(context: typer.Context, name: NameArgument) -> None:
    """Forget a limit. Runs of definitions that name it wait until it is set again."""
    with_client(context, lambda client: client.delete_limit(name))
    say(f"Limit {name} is gone.")


def _rate(text: str) -> tuple[int, float]:
    found = _RATE.fullmatch(text)
    if found is None:
        raise CommandFailed(f"{text!r} is no rate: runs per period, such as 10/s, 100/m or 5/30s")
    return int(found[1]), int(found[2] or 1) * _SECONDS[found[3]]


def _show(limits: list[NamedLimit], output: Format) -> None:
    if output is Format.JSON:
        print_json(limits)
        return
    rows = [
        (
            limit.name,
            "any" if limit.concurrency is None else str(limit.concurrency),
            "any" if limit.rate_count is None else f"{limit.rate_count} in {limit.rate_period_s:g} s",
            str(limit.rate_burst or ""),
            str(limit.holders),
            str(limit.waiting),
            ago(limit.update_time),
        )
        for limit in limits
    ]
    print_table(("LIMIT", "CONCURRENCY", "RATE", "BURST", "HOLDERS", "WAITING", "SET"), rows, "No limits.")
