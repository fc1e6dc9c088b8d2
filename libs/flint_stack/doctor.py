"""`flint doctor`: everything reachable and healthy, or what is wrong and what to do about it.

Looks from outside, with the settings that the processes have, so it serves embedded and external servers alike. All
checks run at once, each within a deadline of its own.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flint_ops.config import Arguments, ConfigError, Settings, load
from flint_stack.check_servers import check_etcd, check_nats, check_postgres
from flint_stack.check_services import check_fleet, check_health, check_ownership, check_readiness
from flint_stack.errors import StackError
from flint_stack.findings import Finding, Verdict
from flint_stack.layout import Layout
from flint_stack.state import StackState, read_state

__all__ = ["Diagnosis", "diagnose", "print_diagnosis"]

_SUPERVISOR = "supervisor"
_SCARCE_BYTES = 5 * 2**30
_TOO_FEW_BYTES = 2**30
_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "bold red"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order of dependence: what is wrong further up explains what is wrong below."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Nothing has failed (warnings may be there)."""
        return all(finding.verdict is not Verdict.FAILED for finding in self.findings)


async def diagnose(data_dir: Path, *, config: Path | None = None) -> Diagnosis:
    """Checks the Flint of a data directory, or the one that the file `config` describes. What is wrong is a finding."""
    layout = Layout.at(data_dir)
    path = config or layout.config_file
    if config is None and not path.exists():
        missing = Finding.failed(
            "configuration", f"there is no {path}", "Start one with `flint up`, or name a file with --config."
        )
        return Diagnosis((missing,))
    try:
        settings = load(Arguments(path, ()))
    except ConfigError as error:
        wrong = "; ".join(str(problem) for problem in error.problems)
        return Diagnosis((Finding.failed("configuration", wrong, "Correct the named keys."),))
    embedded = config is None
    state = read_state(layout.state_file) if embedded else None
    findings = [Finding.ok("configuration", str(path))]
    if embedded:
        findings.extend((_check_supervisor(state), _check_disk(layout.root)))
    findings.extend(await _gather(_servers(settings)))
    findings.extend(await _gather(_services(settings, state, layout, embedded=embedded)))
    return Diagnosis(tuple(findings))


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """A table, then one line of advice for each part that is not well."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("PART", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("SEEN", overflow="fold")
    for finding in diagnosis.findings:
        style = _STYLES[finding.verdict]
        table.add_row(escape(finding.part), f"[{style}]{finding.verdict}[/]", escape(finding.detail))
    console.print(table)
    for finding in diagnosis.findings:
        if finding.advice:
            console.print(f"{finding.part}: {finding.advice}", markup=False, highlight=False)
        if finding.part == _SUPERVISOR and finding.verdict is Verdict.FAILED:
            break  # nothing else can be well, and nothing else needs doing
    console.print("All is well." if diagnosis.healthy else "Something is wrong.")


async def _gather(checks: Sequence[Coroutine[Any, Any, Finding | list[Finding]]]) -> list[Finding]:
    answers = await asyncio.gather(*checks)
    return [finding for answer in answers for finding in (answer if isinstance(answer, list) else [answer])]


def _servers(settings: Settings) -> list[Coroutine[Any, Any, Finding | list[Finding]]]:
    return [check_postgres(settings), check_nats(settings), check_etcd(settings)]


def _services(
    settings: Settings, state: StackState | None, layout: Layout, *, embedded: bool
) -> list[Coroutine[Any, Any, Finding | list[Finding]]]:
    gateway = settings.gateway
    checks: list[Coroutine[Any, Any, Finding | list[Finding]]] = [check_health("gateway", gateway.listen)]
    checks.extend(check_health(f"scheduler-{n}", address) for n, address in enumerate(gateway.schedulers, 1))
    checks.extend(check_health(f"registry-{n}", address) for n, address in enumerate(gateway.registries, 1))
    if state is not None:
        checks.extend(
            check_readiness(name.removesuffix("/ops"), address)
            for name, address in state.addresses.items()
            if name.endswith("/ops") and not name.startswith("nats")
        )
    checks.append(check_ownership(settings))
    if embedded:
        try:
            checks.append(check_fleet(gateway.listen, layout.load_admin_key().token))
        except StackError as error:
            checks.append(_found(Finding.failed("fleet", str(error), "Restart `flint up`.")))
    return checks


async def _found(finding: Finding) -> Finding:
    return finding


def _check_supervisor(state: StackState | None) -> Finding:
    part = _SUPERVISOR
    if state is None:
        return Finding.failed(part, "nothing was ever started here", "Start it with `flint up`.")
    if not state.supervisor.alive():
        return Finding.failed(part, f"process {state.supervisor.pid} is gone", "Start it with `flint up`.")
    gone = [child.name for child in state.children if not child.identity.alive()]
    if gone:
        return Finding.warning(part, f"{', '.join(gone)} died and is not back yet", "Look again in some seconds.")
    return Finding.ok(part, f"process {state.supervisor.pid}, {state.phase}, {len(state.children)} children")


def _check_disk(path: Path) -> Finding:
    usage = shutil.disk_usage(path)
    seen = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.0f} at {path}"
    if usage.free < _TOO_FEW_BYTES:
        return Finding.failed("disk", seen, "Make room: servers stop accepting when the disk is full.")
    if usage.free < _SCARCE_BYTES:
        return Finding.warning("disk", seen, "The journal and the record need room to grow.")
    return Finding.ok("disk", seen)
