"""`flint lint`: check a definition without a server."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flint_cli.commands.apply import read_source
from flint_cli.exits import CommandFailed, ExitCode
from flint_cli.output import Format, FormatOption, print_json

if TYPE_CHECKING:
    from flint_core.definition import Finding


def lint(
    files: Annotated[
        list[str], typer.Argument(help="Definitions, YAML or JSON; - reads standard input.", metavar="FILE")
    ],
    output: FormatOption = Format.TABLE,
) -> int:
    """Check definitions here, as `flint apply` would there. Exit code 1 when one of them would be refused."""
    found = {file: asyncio.run(check(read_source(file))) for file in files}
    if output is Format.JSON:
        print_json([{"file": file, **asdict(finding)} for file, findings in found.items() for finding in findings])
    else:
        for file, findings in found.items():
            for finding in findings:
                print(f"{file}:{finding.line}:{finding.column}: {finding.severity}: {finding.message} [{finding.rule}]")
            if not findings:
                print(f"{file}: nothing found")
    refused = any(finding.severity == "error" for findings in found.values() for finding in findings)
    return ExitCode.FAILED if refused else ExitCode.SUCCEEDED


async def check(source: str) -> list[Finding]:
    """What is found in a definition, the expressions that need a full jq included, in the order of the text.

    Raises CommandFailed when the guarded evaluator cannot be started here.
    """
    # Here and not above: the compiler takes longer to load than most other commands need in all.
    from flint_core.definition import DefinitionLimits  # noqa: PLC0415
    from flint_jq import EvaluatorPool, EvaluatorsBusy  # noqa: PLC0415
    from flint_ops.config import LimitSettings  # noqa: PLC0415
    from flint_ops.resources import ResourceLimits, ResourceReader, compile_with_resources  # noqa: PLC0415

    settings = LimitSettings()
    limits = DefinitionLimits(definition_bytes=settings.definition_bytes)
    reader = ResourceReader(ResourceLimits(allow_private=True, files=True))
    try:
        compiled = await compile_with_resources(source, limits, reader)
    finally:
        await reader.close()
    found = list(compiled.findings)
    if not compiled.guarded:
        return found
    pool = EvaluatorPool(1, settings.evaluate_ms, settings.evaluate_bytes, settings.payload_bytes)
    try:
        await pool.start()
        for expression in compiled.guarded:
            message = await pool.check(expression.source, expression.variables)
            if message is not None:
                found.append(expression.refused(message))
    except EvaluatorsBusy as error:
        raise CommandFailed(f"the expressions could not be checked: {error}", ExitCode.UNAVAILABLE) from error
    finally:
        await pool.close()
    return sorted(found, key=lambda finding: (finding.line, finding.column))
