"""`flint apply`: store a definition as a version, or show what that would change."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from flint_cli.comparison import compare, print_comparison
from flint_cli.exits import CommandFailed, ExitCode, say
from flint_cli.output import Format, FormatOption, print_json
from flint_cli.session import with_client
from flint_sdk import Applied, AsyncFlint, DefinitionInvalid, FieldViolation


def apply(
    context: typer.Context,
    file: Annotated[str, typer.Option("--file", "-f", help="The definition, YAML or JSON; - reads standard input.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check only, and show what would change; store nothing.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(help="With --dry-run: the stored version to compare with; the latest unless told."),
    ] = None,
    output: FormatOption = Format.TABLE,
) -> int:
    """Check a definition and store it as a new version. The same content again changes nothing.

    Exit codes: 0 applied (with --dry-run: it would be), 2 refused, 4 no gateway reachable.
    """
    if against is not None and not dry_run:
        raise CommandFailed("--against belongs to --dry-run")
    source = read_source(file)

    async def command(client: AsyncFlint) -> int:
        applied = await _checked(client, file, source, dry_run)
        for finding in applied.findings:
            say(f"{file}:{finding.line}:{finding.column}: {finding.severity}: {finding.message} [{finding.rule}]")
        if dry_run:
            comparison = await compare(client, applied, source, against)
            print_comparison(comparison, applied, output)
            return ExitCode.REFUSED if comparison.refused else ExitCode.SUCCEEDED
        if output is Format.JSON:
            print_json(applied)
        else:
            workflow = applied.workflow
            print(f"{workflow.workflow_id} {workflow.version} {'applied' if applied.created else 'unchanged'}")
        return ExitCode.SUCCEEDED

    return with_client(context, command)


async def _checked(client: AsyncFlint, file: str, source: str, dry_run: bool) -> Applied:
    """What the gateway says. Raises CommandFailed with all places when it refuses the definition."""
    try:
        return await client.apply(source, validate_only=dry_run)
    except DefinitionInvalid as error:
        places = "\n".join(_place(file, violation) for violation in error.violations)
        raise CommandFailed(f"{file} was refused.\n{places or error.message}") from error


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
