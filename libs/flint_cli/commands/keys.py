"""`flint keys`: API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from flint_cli.exits import say
from flint_cli.output import Format, FormatOption, moment, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, Key, Role

app = typer.Typer(name="keys", help="Create, list and revoke API keys.", no_args_is_help=True)

EverywhereOption = Annotated[bool, typer.Option("--all-namespaces", help="Keys of the whole cluster.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.", metavar="NAME")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.OPERATOR,
    expires_days: Annotated[
        int | None, typer.Option(min=1, help="Days until it stops working; never unless told.")
    ] = None,
    all_namespaces: EverywhereOption = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Create a key. Its secret is printed once, on standard output."""
    expires = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    created = with_client(
        context, lambda client: client.create_key(name, role, expire_time=expires, all_namespaces=all_namespaces)
    )
    if output is Format.JSON:
        print_json(
            {
                "key": {"id": created.key.id, "name": created.key.name, "role": created.key.role},
                "secret": created.secret,
            }
        )
        return
    print(created.secret)
    say(f"Key {created.key.id} ({role.value}). Its secret is shown this once: keep it, for example in FLINT_KEY.")


@app.command("list")
def list_(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Also revoked and expired keys.")] = False,
    all_namespaces: EverywhereOption = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """List keys, newest first, without secrets."""

    async def command(client: AsyncFlint) -> list[Key]:
        return [key async for key in client.list_keys(show_revoked=all_, all_namespaces=all_namespaces)]

    keys = with_client(context, command)
    if output is Format.JSON:
        print_json(keys)
        return
    rows = [
        (
            k.id,
            k.name.split("/")[1],
            k.role.value,
            k.display_name,
            moment(k.create_time),
            moment(k.expire_time),
            moment(k.revoke_time),
        )
        for k in keys
    ]
    print_table(("KEY", "NAMESPACE", "ROLE", "FOR", "CREATED", "EXPIRES", "REVOKED"), rows, "No keys.")


@app.command()
def revoke(
    context: typer.Context, key: Annotated[str, typer.Argument(help="The key's id or name.", metavar="KEY")]
) -> None:
    """Revoke a key. Gateways refuse it a few seconds later at the latest."""
    revoked = with_client(context, lambda client: client.revoke_key(key))
    print(f"{revoked.id} revoked")
