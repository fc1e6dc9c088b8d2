"""`run: script`: Python or JavaScript in a process tree of its own.

Python runs on the worker's interpreter with its standard library and the packages that the task declares, nothing else.
Arguments as a list are the script's argv, as a map its global variables.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any, Final

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors import Executor, ResolvedCall
from flint_worker.executors.arguments import check_arguments, failure
from flint_worker.executors.languages import interpreter, start
from flint_worker.executors.packages import PackageSets
from flint_worker.executors.programs import environment_of, limits_of, result_of, stdin_of, words_of
from flint_worker.processes import ProcessRunner, Program

__all__ = ["ScriptExecutor"]

_RESERVED_BYTES: Final = 4 * 2**30
"""What a Python script may map beyond its memory: files, libraries, stacks. Bounds what it takes between two looks."""
_RESERVED = ("__name__", "__file__", "__builtins__")


class ScriptExecutor:
    """The function `script`. Owns the runner: closing it ends every program. `http` fetches scripts."""

    def __init__(self, settings: Settings, runner: ProcessRunner, http: Executor) -> None:
        self._settings = settings
        self._scripts = settings.worker.scripts
        self._runner = runner
        self._packages = PackageSets(self._scripts, runner)
        self._http = http

    @property
    def unfinished(self) -> int:
        """Programs that have not ended, those of `run: shell` too."""
        return self._runner.unfinished

    async def close(self) -> None:
        """Ends every program and waits until they are gone."""
        await self._packages.close()
        await self._runner.close()
        await self._packages.clear()

    async def execute(self, call: ResolvedCall) -> Any:
        """What the script wrote, or as `return` says. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        language = arguments["language"]
        program = interpreter(language, self._scripts) if language in self._scripts.offered else None
        if program is None:
            detail = f"this worker runs no {language} scripts"
            if language in self._scripts.offered:
                detail += "; Node.js is not on it (worker.scripts.node and worker.scripts.path say where to look)"
            raise failure(call, ProblemType.CONFIGURATION, 400, "Language not available", detail)
        given = arguments.get("arguments", [])
        variables = given if isinstance(given, dict) else {}
        if taken := [name for name in variables if name in _RESERVED]:
            detail = f"/arguments: {taken[0]} is a name of the interpreter's own"
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail)
        words = words_of(call) if isinstance(given, list) else []
        limits = limits_of(call, self._scripts, self._settings.limits)
        environment = environment_of(call)
        path: list[str] = []
        if packages := arguments.get("packages"):
            if language != "python":
                detail = "/packages: only Python scripts may declare packages"
                raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail)
            path.append(str((await self._packages.folder(call, packages, limits)).absolute()))
        code = arguments["code"] if "code" in arguments else await self._fetched(call)
        begun = start(language, program, code, words, variables, path, limits.memory_bytes)
        if language == "python":  # V8 reserves far more than it ever uses
            limits = replace(limits, address_bytes=limits.memory_bytes + _RESERVED_BYTES)
        whole = Program(begun.argv, limits, environment, stdin_of(call), begun.extra, begun.files)
        if not arguments.get("await", True):
            await self._runner.start(whole)
            return None
        return result_of(call, await self._runner.run(whole), limits, "script")

    async def _fetched(self, call: ResolvedCall) -> str:
        """The script that `source` names, fetched by the rules of `call: http`. Raises ExecutionFailed."""
        request = {"method": "get", "endpoint": call.arguments["source"]["endpoint"], "output": "raw"}
        raw = await self._http.execute(call._replace(function="http", arguments=request))
        try:
            return base64.b64decode(raw or "").decode("utf-8")
        except (ValueError, TypeError):
            raise failure(call, ProblemType.RUNTIME, 500, "The script's source is not UTF-8 text") from None
