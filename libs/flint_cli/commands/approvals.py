"""`flint approvals`: what runs ask people, and the answers."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer

from flint_cli.commands.runs import take
from flint_cli.exits import CommandFailed
from flint_cli.output import Format, FormatOption, moment, print_fields, print_json, print_table
from flint_cli.session import with_client
from flint_sdk import Approval, ApprovalState, AsyncFlint

app = typer.Typer(name="approvals", help="See what runs ask people, and answer.", no_args_is_help=True)

ApprovalArgument = Annotated[
    str, typer.Argument(help="RUN/KEY as the list shows it, or the approval's name.", metavar="APPROVAL")
]
CommentOption = Annotated[str, typer.Option(help="For the run and the record.")]
FieldOption = Annotated[
    list[str] | None, typer.Option(help="A field of the form, NAME=VALUE (JSON, else text); may be repeated.")
]
ByOption = Annotated[str, typer.Option("--by", help="Who decides, for the record; the key's display name unless told.")]


@app.command("list")
def list_(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option(help="open, approved, rejected or closed; may be repeated. Open ones unless told."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Whatever their state.")] = False,
    assignee: Annotated[str | None, typer.Option(help="Only those that ask this person.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only those of this workflow.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    output: FormatOption = Format.TABLE,
) -> None:
    """List approvals, newest first; those that are open unless told otherwise."""
    states = [] if all_ else [_state(text) for text in state or ["open"]]

    async def command(client: AsyncFlint) -> list[Approval]:
        found = client.list_approvals(states=states, assignee=assignee, workflow=workflow, page_size=min(limit, 500))
        return await take(found, limit)

    approvals = with_client(context, command)
    if output is Format.JSON:
        print_json(approvals)
        return
    rows = [
        (a.id, a.workflow_id, a.state.value, a.title, ", ".join(a.assignees), moment(a.create_time), moment(a.deadline))
        for a in approvals
    ]
    columns = ("APPROVAL", "WORKFLOW", "STATE", "TITLE", "ASSIGNEES", "ASKED", "DEADLINE")
    print_table(columns, rows, "No approvals.")


@app.command()
def show(context: typer.Context, approval: ApprovalArgument, output: FormatOption = Format.TABLE) -> None:
    """Show one approval, with its form and its decision."""
    found = with_client(context, lambda client: client.get_approval(approval))
    if output is Format.JSON:
        print_json(found)
    else:
        _print(found)


@app.command()
def approve(
    context: typer.Context,
    approval: ApprovalArgument,
    comment: CommentOption = "",
    field: FieldOption = None,
    by: ByOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Approve. The run goes on at once."""
    _decide(context, approval, True, comment, field, by, output)


@app.command()
def reject(
    context: typer.Context,
    approval: ApprovalArgument,
    comment: CommentOption = "",
    field: FieldOption = None,
    by: ByOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Reject. The run goes on at once, with the rejection as its answer."""
    _decide(context, approval, False, comment, field, by, output)


def _decide(
    context: typer.Context,
    approval: str,
    approves: bool,
    comment: str,
    field: list[str] | None,
    by: str,
    output: Format,
) -> None:
    fields = _fields(field or [])
    decided = with_client(
        context,
        lambda client: client.decide_approval(
            approval, approve=approves, comment=comment, fields=fields or None, decided_by=by
        ),
    )
    if output is Format.JSON:
        print_json(decided)
    else:
        print(f"{decided.id} {decided.state.value.lower()}")


def _print(found: Approval) -> None:
    decision = found.decision
    print_fields(
        (
            ("approval", found.id),
            ("run", found.run),
            ("workflow", found.workflow),
            ("step", f"{found.step} [{found.iteration}]" if found.iteration else found.step),
            ("state", found.state.value),
            ("title", found.title),
            ("description", found.description),
            ("assignees", ", ".join(found.assignees)),
            ("asked", moment(found.create_time)),
            ("deadline", moment(found.deadline)),
            ("escalates", moment(found.escalate_time) if found.escalated_time is None else ""),
            ("escalated", moment(found.escalated_time)),
            ("ended", moment(found.end_time)),
            ("decided by", decision.decided_by if decision else ""),
            ("key", decision.key if decision else ""),
            ("comment", decision.comment if decision else ""),
            ("fields", orjson.dumps(decision.fields).decode() if decision and decision.fields else ""),
            ("form", orjson.dumps(found.form).decode() if found.form else ""),
        )
    )


def _fields(texts: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CommandFailed(f"--field {text}: expected NAME=VALUE")
        try:
            fields[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            fields[name] = value
    return fields


def _state(text: str) -> ApprovalState:
    try:
        return ApprovalState(text.upper())
    except ValueError:
        names = ", ".join(s.value.lower() for s in ApprovalState if s is not ApprovalState.UNSPECIFIED)
        raise CommandFailed(f"--state {text}: expected one of {names}") from None
