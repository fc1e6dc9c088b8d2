"""How a script of each language is started: its interpreter, and how its arguments reach it.

Code stands in a file of the work folder; arguments of any size come on file descriptor 3 as JSON, so neither shows in
the list of processes.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flint_ops.config import ScriptSettings

__all__ = ["Start", "interpreter", "start"]

_PYTHON: Final = """\
def _run():
    import json, sys
    with open(3, encoding="utf-8") as file:
        order = json.load(file)
    sys.argv = ["script.py", *order["words"]]
    sys.path[:0] = order["path"]
    with open("script.py", encoding="utf-8") as file:
        code = file.read()
    names = sys.modules["__main__"].__dict__
    names.clear()
    names.update({"__name__": "__main__", "__file__": "script.py", **order["variables"]})
    try:
        exec(compile(code, "script.py", "exec"), names)
    except SystemExit:
        raise
    except BaseException as error:
        import traceback
        traceback.print_exception(type(error), error, error.__traceback__.tb_next)
        sys.stderr.flush()
        sys.exit(1)
_run()
"""
"""Runs the script as `__main__`, without a trace of this text in its errors."""

_JS: Final = """\
'use strict';
const { isMainThread } = require('node:worker_threads');
if (isMainThread) {
  const fs = require('node:fs');
  let text = null;
  try { text = fs.readFileSync(3, 'utf8'); fs.closeSync(3); } catch (error) { if (error.code !== 'EBADF') throw error; }
  if (text) {
    const order = JSON.parse(text);
    for (const [name, value] of Object.entries(order.variables)) globalThis[name] = value;
    process.argv.splice(2, Infinity, ...order.words);
  }
}
"""
_PRELOAD: Final = ".arguments.cjs"
_MODULE: Final = re.compile(r"^\s*(?:import\s*[\w{*'\"]|export\s)", re.MULTILINE)
_HEAP_SHARE: Final = 0.75
"""How much of a script's memory V8 may use for objects; it then fails with a message of its own."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a Program is made of for one script."""

    argv: tuple[str, ...]
    files: dict[str, bytes]
    extra: str


def interpreter(language: str, settings: ScriptSettings) -> str | None:
    """The absolute path of a language's interpreter on this machine; None when there is none."""
    if language == "python":
        return settings.python or sys.executable
    found = shutil.which(settings.node or "node", path=None if settings.node else settings.path)
    return str(Path(found).absolute()) if found else None


def start(
    language: str, program: str, code: str, words: list[str], variables: dict[str, Any], path: list[str], memory: int
) -> Start:
    """How to run a script. `path`: folders that Python imports from beside its standard library."""
    extra = json.dumps({"words": words, "variables": variables, "path": path})
    if language == "python":
        argv: tuple[str, ...] = (program, "-I", "-S", "-B", "-X", "utf8", "-c", _PYTHON)
        return Start(argv, {"script.py": code.encode()}, extra)
    name = "script.mjs" if _MODULE.search(code) else "script.cjs"
    heap = f"--max-old-space-size={int(memory * _HEAP_SHARE) // 2**20}"
    argv = (program, heap, "--require", f"./{_PRELOAD}", name)
    return Start(argv, {name: code.encode(), _PRELOAD: _JS.encode()}, extra)
