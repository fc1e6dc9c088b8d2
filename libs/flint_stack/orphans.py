"""Ends what a killed supervisor left behind. Whoever calls this holds the data directory's lock.

Three ways of finding, because each alone can miss one: the state file (a child of the last instant may be missing from
it), the mark in the environment (a program may overwrite its environment), the working folder of PostgreSQL's
processes. A process is signalled only after it was told apart by id and start.
"""

from __future__ import annotations

import signal
from pathlib import Path

from flint_stack.child import WAVE_SERVERS
from flint_stack.errors import StackError
from flint_stack.layout import Layout
from flint_stack.processes import ProcessIdentity, end_processes, marked_processes, processes_inside
from flint_stack.state import ChildRecord, read_state

__all__ = ["end_orphans", "find_orphans"]

_SERVICE_GRACE_S = 3.0
_SERVER_GRACE_S = 10.0


def find_orphans(layout: Layout) -> list[ProcessIdentity]:
    """Processes of this data directory that run now, the caller's own excepted."""
    found = {record.identity for record in _records(layout)}
    found.update(marked_processes(layout.root))
    found.update(processes_inside(_cluster_dir(layout), "postgres"))
    return [identity for identity in found if identity.alive()]


async def end_orphans(layout: Layout) -> list[ProcessIdentity]:
    """Ends services first (briefly given time), then servers in order. Returns what was found. Raises StackError."""
    found = find_orphans(layout)
    if not found:
        return []
    records = _records(layout)
    for wave in sorted({record.wave for record in records if record.wave != WAVE_SERVERS}, reverse=True):
        members = [record.identity for record in records if record.wave == wave]
        await end_processes(members, grace_s=_SERVICE_GRACE_S)
    for record in (record for record in records if record.wave == WAVE_SERVERS):
        await end_processes([record.identity], first=record.stop_signal, grace_s=_SERVER_GRACE_S)
    await end_processes(processes_inside(_cluster_dir(layout), "postgres"), first=signal.SIGQUIT)
    left = await end_processes(marked_processes(layout.root))
    if left:
        pids = ", ".join(str(identity.pid) for identity in left)
        raise StackError(f"Processes {pids} of an earlier Flint in {layout.root} cannot be ended.")
    return found


def _cluster_dir(layout: Layout) -> Path:
    return layout.postgres_dir / "data"


def _records(layout: Layout) -> tuple[ChildRecord, ...]:
    state = read_state(layout.state_file)
    return () if state is None else state.children
