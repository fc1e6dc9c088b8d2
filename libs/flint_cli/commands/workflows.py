"""`flint workflows`: look at definitions and their versions."""

from __future__ import annotations

from typing import Annotated

import typer

from flint_cli.commands.control import add_workflow_commands
from flint_cli.commands.runs import take
from flint_cli.output import Format, FormatOption, moment, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, Workflow

app = typer.Typer(name="workflows", help="Look at definitions and their versions.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The workflow's name.", metavar="NAME")]


@app.command("list")
def list_(
    context: typer.Context,
    workflow: Annotated[str | None, typer.Argument(help="List the versions of this one.", metavar="[NAME]")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 100,
    output: FormatOption = Format.TABLE,
) -> None:
    """List workflows (their latest versions), or all versions of one, newest first."""

    async def command(client: AsyncFlint) -> list[Workflow]:
        return await take(client.list_workflows(workflow), limit)

    found = with_client(context, command)
    if output is Format.JSON:
        print_json(found)
        return
    rows = [
        (
            w.workflow_id,
            w.version,
            "yes" if w.latest else "",
            moment(w.create_time),
            moment(w.next_start_time) or ("scheduled" if w.scheduled else ""),
            w.definition_hash[:12],
            w.title,
        )
        for w in found
    ]
    print_table(("WORKFLOW", "VERSION", "LATEST", "APPLIED", "NEXT RUN", "HASH", "TITLE"), rows, "No workflows.")


@app.command()
def get(
    context: typer.Context,
    workflow: NameArgument,
    version: Annotated[str | None, typer.Option(help="A version; the latest one unless told.")] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Print a version's definition as it was applied."""
    found = with_client(context, lambda client: client.get_workflow(workflow, version))
    if output is Format.JSON:
        print_json(found)
    else:
        print(found.source, end="" if found.source.endswith("\n") else "\n")


@app.command()
def delete(
    context: typer.Context,
    workflow: NameArgument,
    version: Annotated[str, typer.Argument(help="The version.", metavar="VERSION")],
) -> None:
    """Delete a version that no unfinished run uses. Finished runs keep their history."""
    with_client(context, lambda client: client.delete_workflow(workflow, version))
    print(f"{workflow} {version} deleted")


add_workflow_commands(app)
