"""`flint config`: the settings in force on this machine, and where each comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flint_cli.exits import CommandFailed
from flint_cli.output import Format, FormatOption, print_json, print_table

app = typer.Typer(name="config", help="Look at the configuration.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """Look at the configuration."""


@app.command()
def show(
    section: Annotated[
        str | None,
        typer.Argument(help="Only this section or key, such as limits or worker.scripts.", metavar="[SECTION]"),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Say where each value comes from: file, environment, flag, default.")
    ] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out what nobody set.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="The TOML file; else FLINT_CONFIG, else .flint/flint.toml.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="As a service would be started with.")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Show the settings in force, as a service started here would see them. Secrets are masked.

    Exit code 2 when the configuration cannot be used, with every key that is wrong and who set it.
    """
    from flint_ops.config import DEFAULT, Arguments, ConfigError, load_with_sources  # noqa: PLC0415 - brings pydantic
    from flint_ops.config.showing import shown  # noqa: PLC0415

    try:
        loaded = load_with_sources(Arguments(config, tuple(assignments or ())), environ=os.environ)
    except ConfigError as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        raise CommandFailed(f"the configuration cannot be used:\n{lines}") from error
    wanted = tuple(section.split(".")) if section else ()
    found = [value for value in shown(loaded) if value.path[: len(wanted)] == wanted]
    if wanted and not found:
        raise CommandFailed(_unknown(section or "", loaded))
    if changed:
        found = [value for value in found if value.source != DEFAULT]
    if output is Format.JSON:
        print_json([{"key": value.key, "value": value.value, "source": value.source} for value in found])
        return
    columns = ("KEY", "VALUE", "FROM") if sources else ("KEY", "VALUE")
    rows: list[tuple[Any, ...]] = [(value.key, value.text, value.source)[: len(columns)] for value in found]
    print_table(columns, rows, "Nothing is set; every value is its default.")


def _unknown(section: str, loaded: Any) -> str:
    from flint_core.definition.findings import suggestion  # noqa: PLC0415
    from flint_ops.config.showing import shown  # noqa: PLC0415

    keys = {".".join(value.path[:length]) for value in shown(loaded) for length in range(1, len(value.path) + 1)}
    hint = suggestion(section, sorted(keys | set(type(loaded.settings).model_fields)))
    if section in type(loaded.settings).model_fields:
        return f"nothing is named in [{section}]"
    return f"there is no section or key '{section}'{hint or '; docs/configuration.md lists them'}"
