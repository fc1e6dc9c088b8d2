"""`flint up` as a process of its own: `python stack_driver.py DATA_DIR [--leave-children] [--services]`.

Without `--services` it keeps the servers alone.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rich.console import Console

from flint_stack.errors import StackError
from flint_stack.stack import StackOptions
from flint_stack.up import up


def main() -> int:
    options = StackOptions(
        data_dir=Path(sys.argv[1]),
        port_base=0,
        servers_only="--services" not in sys.argv,
        die_with_supervisor="--leave-children" not in sys.argv,
    )
    try:
        return asyncio.run(up(options, Console()))
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
