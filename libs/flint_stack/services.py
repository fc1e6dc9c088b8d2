"""Flint's own services as children: started by module name, each with a settings file of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flint_ops.config import Settings
from flint_stack.child import WAVE_EDGE, WAVE_REGISTRIES, WAVE_SCHEDULERS, WAVE_WORKERS, ChildSpec
from flint_stack.configuration import merge, write_process_config
from flint_stack.layout import Layout, StackSecrets
from flint_stack.ports import Counts, Ports
from flint_stack.probes import http_ready, socket_ready

__all__ = ["ServicePlan"]

_CONFIGURATION_IS_WRONG = 2
_STOP_MARGIN_S = 5.0


class ServicePlan:
    """Makes the children of one stack's services.

    `secrets` is None when the user's own NATS serves. `process_settings`: settings over those of the process so named.
    """

    def __init__(
        self,
        layout: Layout,
        settings: Settings,
        ports: Ports,
        secrets: StackSecrets | None,
        process_settings: Callable[[str], Mapping[str, Any]] = lambda name: {},
    ) -> None:
        self._layout = layout
        self._settings = settings
        self._ports = ports
        self._secrets = secrets
        self._process_settings = process_settings

    def all(self, counts: Counts) -> list[ChildSpec]:
        """Registries, schedulers, the gateway and workers; the worker host where workers are provisioned here."""
        return [
            *(self.registry(index) for index in range(counts.registries)),
            *(self.scheduler(index) for index in range(counts.schedulers)),
            self.gateway(),
            *([self.worker_host()] if self._settings.fleet.provisioner == "local" else []),
            *(self.worker(index) for index in range(counts.workers)),
        ]

    def gateway(self) -> ChildSpec:
        """The gateway: one, at the address that the settings name."""
        section = self._settings.gateway
        return self._spec("gateway", "gateway", {}, WAVE_EDGE, section.listen, section.ops_listen, 10.0)

    def gateway_at(self, name: str, port: int, ops_port: int) -> ChildSpec:
        """One more gateway with a name and ports of the caller's choice."""
        listen, ops = _local(port), _local(ops_port)
        return self._spec("gateway", name, {"listen": listen, "ops_listen": ops}, WAVE_EDGE, listen, ops, 10.0)

    def scheduler(self, index: int) -> ChildSpec:
        """One scheduler, counted from 0."""
        name = f"scheduler-{index + 1}"
        listen, ops = _local(self._ports.schedulers[index]), _local(self._ports.scheduler_ops[index])
        placed = {"id": name, "listen": listen, "ops_listen": ops}
        return self._spec("scheduler", name, placed, WAVE_SCHEDULERS, listen, ops, self._settings.scheduler.drain_s)

    def registry(self, index: int) -> ChildSpec:
        """One registry, counted from 0."""
        name = f"registry-{index + 1}"
        listen, ops = _local(self._ports.registries[index]), _local(self._ports.registry_ops[index])
        return self._spec(
            "registry", name, {"id": name, "listen": listen, "ops_listen": ops}, WAVE_REGISTRIES, listen, ops, 5.0
        )

    def worker(self, index: int, **placed: Any) -> ChildSpec:
        """One worker, counted from 0. `placed`: further settings of its section."""
        return self.worker_at(f"worker-{index + 1}", self._ports.worker_ops[index], **placed)

    def worker_at(self, name: str, ops_port: int, **placed: Any) -> ChildSpec:
        """One worker with a name and an operator's port of the caller's choice."""
        section = {"id": name, "ops_listen": _local(ops_port), **placed}
        drain_s = float(section.get("drain_s", self._settings.worker.drain_s))
        return self._spec("worker", name, section, WAVE_WORKERS, "", _local(ops_port), drain_s)

    def worker_host(self) -> ChildSpec:
        """What starts the workers of an elastic pool; their logs are beside its own, by their ids."""
        path = write_process_config(
            self._layout,
            self._settings,
            "worker",
            "worker-host",
            {},
            self._secrets,
            self._process_settings("worker-host"),
        )
        return ChildSpec(
            name="worker-host",
            argv=(
                sys.executable,
                "-m",
                "flint_worker.host",
                f"--socket={self._layout.host_socket}",
                f"--logs={self._layout.logs}",
                f"--workers={self._settings.fleet.local_workers}",
                "--config",
                str(path),
            ),
            wave=WAVE_WORKERS,
            ready=partial(socket_ready, self._layout.host_socket),
            ready_deadline_s=60.0,
            # It gives each worker its drain time and a margin, and needs a moment of its own.
            stop_deadline_s=self._settings.worker.drain_s + 2 * _STOP_MARGIN_S,
            fatal_exit_codes=frozenset({_CONFIGURATION_IS_WRONG}),
            forks=True,
        )

    def _spec(
        self, role: str, name: str, placed: dict[str, Any], wave: int, listen: str, ops: str, drain_s: float
    ) -> ChildSpec:
        own = self._process_settings(name)
        fleet = self._settings.fleet
        if role == "registry" and fleet.provisioner == "local" and not fleet.defaults.worker_slots:
            own = merge({"fleet": {"defaults": {"worker_slots": self._settings.worker.slots}}}, own)
        path = write_process_config(self._layout, self._settings, role, name, placed, self._secrets, own)
        return ChildSpec(
            name=name,
            argv=(sys.executable, "-m", f"flint_{role}", "--config", str(path)),
            wave=wave,
            address=listen,
            ops_address=ops,
            ready=partial(http_ready, ops),
            ready_deadline_s=60.0,
            stop_deadline_s=drain_s + _STOP_MARGIN_S,
            fatal_exit_codes=frozenset({_CONFIGURATION_IS_WRONG}),
            forks=True,
        )


def _local(port: int) -> str:
    return f"127.0.0.1:{port}"
