"""Writes docs/flint-workflow.schema.json, the JSON Schema of the language, from the compiler's own tables.

Usage: generate_language_schema.py [--check]. With --check nothing is written; the exit code is 1 when the file is not
what the code says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from flint_core.definition.json_schema import schema_text

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "flint-workflow.schema.json"


def main() -> int:
    """Writes or checks the file. The exit code."""
    data = schema_text()
    if "--check" not in sys.argv[1:]:
        FILE.write_bytes(data)
        return 0
    if FILE.exists() and FILE.read_bytes() == data:
        return 0
    print(  # noqa: T201 - a command's output
        "docs/flint-workflow.schema.json is not what the compiler says: run deploy/tools/generate_language_schema.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
