"""`flint schema`: the JSON Schema of the definition language."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it to this file; standard output unless told.")
    ] = None,
) -> None:
    """Print the JSON Schema of definitions, for editors. The compiler checks more: `flint lint`."""
    from flint_core.definition.json_schema import schema_text  # noqa: PLC0415 - the compiler is slow to load

    data = schema_text()
    if output is None:
        sys.stdout.write(data.decode())
        sys.stdout.flush()
    else:
        output.write_bytes(data)
