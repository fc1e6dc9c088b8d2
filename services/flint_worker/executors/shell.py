"""`run: shell`: a command in /bin/sh, in a process tree of its own.

The command is text that nothing is written into: values come as positional parameters, environment and standard input.
"""

from __future__ import annotations

from typing import Any, Final

from flint_core.problems import ProblemType
from flint_ops.config import Settings
from flint_worker.executors import ResolvedCall
from flint_worker.executors.arguments import check_arguments, failure
from flint_worker.executors.programs import environment_of, limits_of, result_of, stdin_of, words_of
from flint_worker.processes import ProcessRunner, Program

__all__ = ["ShellExecutor"]

_SHELL: Final = "/bin/sh"
_WORDS_BYTES: Final = 100_000
"""One word that the kernel passes on has at most 128 KiB, all together some 2 MiB."""
_ALL_WORDS_BYTES: Final = 1_000_000


class ShellExecutor:
    """The function `shell`. Its places are shared with scripts; `owns` says that no other executor counts them."""

    def __init__(self, settings: Settings, runner: ProcessRunner, *, owns: bool) -> None:
        self._settings = settings
        self._runner = runner
        self._owns = owns

    @property
    def unfinished(self) -> int:
        """Programs that have not ended."""
        return self._runner.unfinished if self._owns else 0

    async def close(self) -> None:
        """Ends every program and waits until they are gone."""
        await self._runner.close()

    async def execute(self, call: ResolvedCall) -> Any:
        """What the command wrote, or as `return` says. Raises ExecutionFailed."""
        arguments = check_arguments(call)
        words = words_of(call)
        check_words(call, words)
        command = arguments["command"]
        if "\0" in command:
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", "/command: holds a NUL character")
        if isinstance(arguments.get("arguments"), dict):
            command = command.rstrip() + ' "$@"'
        limits = limits_of(call, self._settings.worker.scripts, self._settings.limits)
        program = Program(
            (_SHELL, "-c", command, "sh", *words),
            limits,
            environment=environment_of(call),
            stdin=stdin_of(call),
        )
        if not arguments.get("await", True):
            await self._runner.start(program)
            return None
        return result_of(call, await self._runner.run(program), limits, "command")


def check_words(call: ResolvedCall, words: list[str]) -> None:
    """Whether the kernel takes these words as arguments. Raises ExecutionFailed."""
    sizes = [len(word.encode()) for word in words]
    if max(sizes, default=0) > _WORDS_BYTES or sum(sizes) > _ALL_WORDS_BYTES:
        detail = (
            f"/arguments: one may have {_WORDS_BYTES} bytes, all together {_ALL_WORDS_BYTES}; "
            "pass larger values through stdin"
        )
        raise failure(call, ProblemType.PAYLOAD_TOO_LARGE, 413, "Arguments too large", detail)
