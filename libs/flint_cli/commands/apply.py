"""`flint apply`: store a definition as a version."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from flint_cli.exits import CommandFailed, say
from flint_cli.output import Format, FormatOption, print_json
from flint_cli.session import with_client
from flint_sdk import AsyncFlint, DefinitionInvalid, FieldViolation


def apply(
    context: typer.Context,
    file: Annotated[str, typer.Option("--file", "-f", help="The definition, YAML or JSON; - reads standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; store nothing.")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Check a definition and store it as a new version. The same content again changes nothing."""
    source = read_source(file)

    async def command(client: AsyncFlint) -> None:
        try:
            applied = await client.apply(source, validate_only=dry_run)
        except DefinitionInvalid as error:
            places = "\n".join(_place(file, violation) for violation in error.violations)
            raise CommandFailed(f"{file} was refused.\n{places or error.message}") from error
        for finding in applied.findings:
            say(f"{file}:{finding.line}:{finding.column}: {finding.severity}: {finding.message} [{finding.rule}]")
        if output is Format.JSON:
            print_json(applied)
            return
        workflow = applied.workflow
        what = "would be stored" if dry_run else "applied" if applied.created else "unchanged"
        print(f"{workflow.workflow_id} {workflow.version} {what}")

    with_client(context, command)


def _place(file: str, violation: FieldViolation) -> str:
    """One finding as compilers write it, when the gateway names line and column (`source:3:5`)."""
    where = re.fullmatch(r"source:(\d+):(\d+)", violation.field)
    place = f"{file}:{where[1]}:{where[2]}" if where else violation.field or file
    return f"{place}: error: {violation.description}"


def read_source(file: str) -> str:
    """The definition's text. Raises CommandFailed when it is not UTF-8, OSError when it cannot be read."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{file} is not UTF-8 text (byte {error.start})") from error
