"""A whole stack on one machine: servers, schema, services, in order, below one data directory.

States: `starting` (lock taken, orphans ended, ports checked, settings written; servers in parallel -> schema and local
key -> services in parallel) -> `ready` -> `stopping` (workers, gateway, schedulers, registries, then servers) ->
`stopped`. A start that fails or is cancelled stops what it began. When this process is killed, see `orphans.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from flint_ops.config import Settings
from flint_stack.child import ChildSpec
from flint_stack.configuration import Configuration, child_environment
from flint_stack.errors import StackError
from flint_stack.layout import Layout, StackSecrets
from flint_stack.orphans import end_orphans
from flint_stack.ports import DEFAULT_PORT_BASE, Counts, Ports, check_free
from flint_stack.preparation import is_prepared, prepare
from flint_stack.servers import EtcdServer, NatsServer, NatsUser, PostgresServer
from flint_stack.servers.nats import PERMISSIONS
from flint_stack.services import ServicePlan
from flint_stack.state import StackLock
from flint_stack.supervisor import ChildEvent, Supervisor

__all__ = ["Stack", "StackOptions", "no_children", "no_process_settings", "no_settings"]

_GIB = 2**30
_LEAST_MAXIMUM = 2
_Part = TypeVar("_Part")


def no_settings(layout: Layout) -> Mapping[str, Any]:
    """No settings beyond the generated ones."""
    return {}


def no_process_settings(ports: Ports, name: str) -> Mapping[str, Any]:
    """Nothing of its own for any process."""
    return {}


def no_children(layout: Layout) -> Sequence[ChildSpec]:
    """No children beyond servers and services."""
    return ()


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to run, and where. `port_base` 0 takes free ports. `extra_settings` go under the user's own settings,
    `process_settings` over those of the process with this name.
    """

    data_dir: Path = Path(".flint")
    port_base: int = DEFAULT_PORT_BASE
    counts: Counts = field(default_factory=Counts)
    config: Path | None = None
    assignments: tuple[str, ...] = ()
    extra_settings: Callable[[Layout], Mapping[str, Any]] = no_settings
    extra_children: Callable[[Layout], Sequence[ChildSpec]] = no_children
    process_settings: Callable[[Ports, str], Mapping[str, Any]] = no_process_settings
    elastic: bool = False
    servers_only: bool = False
    die_with_supervisor: bool = True
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Stack:
    """One stack; `start` and `stop` once each, from one event loop in the main thread."""

    def __init__(self, options: StackOptions, *, on_event: Callable[[ChildEvent], None] = lambda event: None) -> None:
        self.options = options
        self.layout = Layout.at(options.data_dir)
        self._on_event = on_event
        self._lock = StackLock(self.layout.lock_file)
        self._supervisor: Supervisor | None = None
        self._configuration: Configuration | None = None
        self._ports: Ports | None = None
        self._plan: ServicePlan | None = None
        self._addresses: dict[str, str] = {}
        self.orphans_ended = 0

    @property
    def running(self) -> bool:
        """True from the beginning of `start` until `stop` has ended everything."""
        return self._lock.held

    @property
    def supervisor(self) -> Supervisor:
        """What keeps the children. Raises StackError before the start."""
        return _started(self._supervisor)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return _started(self._configuration).settings

    @property
    def ports(self) -> Ports:
        """The ports in use."""
        return _started(self._ports)

    @property
    def plan(self) -> ServicePlan:
        """Makes further children of this stack's services."""
        return _started(self._plan)

    def addresses(self) -> dict[str, str]:
        """Where each child can be reached, by its name."""
        return dict(self._addresses)

    async def start(self) -> None:
        """Starts everything; returns when all is ready. Raises StackError; then nothing of it runs any more."""
        self.layout.make()
        self._lock.acquire()
        try:
            await self._start()
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    async def stop(self, *, hurry: asyncio.Event | None = None) -> None:
        """Drains and ends everything in reverse order; `hurry`: kills from the moment it is set. Safe to repeat."""
        if not self._lock.held:
            return
        try:
            if self._supervisor is not None:
                self._supervisor.set_phase("stopping")
                await self._supervisor.stop(hurry=hurry)
                await end_orphans(self.layout)
                self._supervisor.set_phase("stopped")
        finally:
            self._lock.release()

    async def _start(self) -> None:
        options, layout = self.options, self.layout
        self.orphans_ended = len(await end_orphans(layout))
        secrets = layout.load_secrets()
        layout.load_admin_key()
        base, counts = options.port_base, options.counts
        self._ports = ports = Ports.based(base, counts) if base else Ports.free(counts)
        self._configuration = configuration = Configuration.build(
            layout,
            ports,
            secrets,
            user_file=options.config,
            overrides=(self._elastic_settings(), options.extra_settings(layout)),
            assignments=options.assignments,
            environ=options.environ,
        )
        self._plan = ServicePlan(
            layout,
            configuration.settings,
            ports,
            secrets if configuration.embedded_nats else None,
            partial(options.process_settings, ports),
        )
        self._supervisor = supervisor = Supervisor(
            layout.root,
            on_event=self._on_event,
            die_with_supervisor=options.die_with_supervisor,
            environ=child_environment(options.environ),
        )
        supervisor.set_phase("starting")
        servers, server_ports = self._servers(configuration, ports, secrets)
        services = [] if options.servers_only else self._plan.all(counts)
        extras = [] if options.servers_only else list(options.extra_children(layout))
        check_free([*server_ports, *(() if options.servers_only else self._service_ports(ports))])
        for child in (*servers, *extras, *services):
            self._addresses.update({child.name: child.address} if child.address else {})
            self._addresses.update({f"{child.name}/ops": child.ops_address} if child.ops_address else {})
        if options.servers_only:
            await supervisor.start(servers)
        else:
            await supervisor.preload()
            await supervisor.start(servers)
            preparing = prepare(layout, configuration.settings, supervisor.launcher)
            if is_prepared(layout, configuration.settings):
                # This build has prepared this database before, so the services need not wait: they look for themselves.
                await _all(preparing, supervisor.start([*extras, *services]))
            else:
                await _all(preparing, supervisor.start(extras))
                await supervisor.start(services)
        supervisor.set_phase("ready", addresses=self._addresses)

    def _elastic_settings(self) -> Mapping[str, Any]:
        """Where the worker host listens; and, for an elastic stack, that workers come and go on this machine."""
        fleet: dict[str, Any] = {"socket": str(self.layout.host_socket)}
        if self.options.elastic:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            fleet["provisioner"] = "local"
            fleet["defaults"] = {"maximum_workers": max(_LEAST_MAXIMUM, cores)}
            fleet["pools"] = {"default": {"minimum_workers": 1}}
        return {"fleet": fleet}

    def _servers(
        self, configuration: Configuration, ports: Ports, secrets: StackSecrets
    ) -> tuple[list[ChildSpec], list[tuple[str, int]]]:
        children, wanted = [], []
        layout = self.layout
        if configuration.embedded_postgres:
            children.append(
                PostgresServer(layout.postgres_dir, ports.postgres, secrets.postgres_superuser, secrets.postgres).spec()
            )
            wanted.append(("PostgreSQL", ports.postgres))
        if configuration.embedded_nats:
            users = tuple(NatsUser(role, secrets.nats_password(role)) for role in PERMISSIONS)
            # A new generation of the journal is made while the one before it still stands.
            journal = configuration.settings.journal
            store_bytes = 4 * journal.max_bytes + journal.jobs_max_bytes + 6 * _GIB
            server = NatsServer(
                layout.nats_dir,
                ports.nats,
                ports.nats_monitor,
                users,
                store_bytes,
                configuration.settings.nats.memory_bytes,
            )
            children.append(server.spec())
            wanted.extend((("NATS", ports.nats), ("NATS, its figures", ports.nats_monitor)))
        if configuration.embedded_etcd:
            children.append(EtcdServer(layout.etcd_dir, ports.etcd, ports.etcd_peer).spec())
            wanted.extend((("etcd", ports.etcd), ("etcd, its peers", ports.etcd_peer)))
        return children, wanted

    def _service_ports(self, ports: Ports) -> list[tuple[str, int]]:
        gateway = self.settings.gateway
        wanted = [
            ("gateway", int(gateway.listen.rpartition(":")[2])),
            ("gateway's operator's port", int(gateway.ops_listen.rpartition(":")[2])),
        ]
        for kind, listens, operators in (
            ("scheduler", ports.schedulers, ports.scheduler_ops),
            ("registry", ports.registries, ports.registry_ops),
            ("worker", (), ports.worker_ops),
        ):
            wanted.extend((f"{kind}-{number}", port) for number, port in enumerate(listens, 1))
            wanted.extend((f"{kind}-{number}'s operator's port", port) for number, port in enumerate(operators, 1))
        return wanted


async def _all(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs all at once; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        for done in asyncio.as_completed(tasks):
            await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _started(part: _Part | None) -> _Part:
    if part is None:
        raise StackError("The stack was not started.")
    return part
