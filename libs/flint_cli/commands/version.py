"""`flint version`."""

from __future__ import annotations

import importlib.metadata
import platform

from flint_cli.output import Format, FormatOption, print_json


def version(output: FormatOption = Format.TABLE) -> None:
    """Print the version of this installation."""
    found = importlib.metadata.version("flint-engine")
    if output is Format.JSON:
        print_json({"flint": found, "python": platform.python_version()})
    else:
        print(f"flint {found} (Python {platform.python_version()})")
