"""Which of the executors that run programs this worker offers: by its configuration, and by what is on its machine."""

from __future__ import annotations

from flint_ops.config import Settings
from flint_worker.executors import Executor
from flint_worker.executors.container import ContainerExecutor
from flint_worker.executors.engines import find_engine
from flint_worker.executors.script import ScriptExecutor
from flint_worker.executors.shell import ShellExecutor
from flint_worker.processes import ProcessRunner

__all__ = ["program_executors"]


def program_executors(settings: Settings, http: Executor) -> dict[str, Executor]:
    """`script` and `shell` as configured, `container` where an engine answers. Call it within a running event loop.

    `http` is the executor that fetches what a script's `source` names.
    """
    offered = settings.worker.scripts.offered
    executors: dict[str, Executor] = {}
    runner = ProcessRunner(settings.worker.scripts)
    scripts = "python" in offered or "js" in offered
    if scripts:
        executors["script"] = ScriptExecutor(settings, runner, http)
    if "shell" in offered:
        executors["shell"] = ShellExecutor(settings, runner, owns=not scripts)
    engine = find_engine(settings.worker.containers)
    if engine is not None:
        executors["container"] = ContainerExecutor(settings, engine)
    return executors
