"""From the user's settings and the stack's secrets to the settings in force, and to one file per process.

Order, later wins: what the stack generates < the user's file < environment < `--set`. A server that the user names
(`postgres.dsn`, `nats.urls`, `etcd.endpoints`) is not started here. What is placed per process (ids, addresses of
schedulers, registries and workers) always comes from the stack.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from flint_ops.config import Arguments, ConfigError, Settings, load
from flint_stack.errors import ConfigurationInvalid
from flint_stack.layout import Layout, StackSecrets, write_private
from flint_stack.ports import Ports
from flint_stack.toml import dump_toml

__all__ = ["Configuration", "child_environment", "merge", "write_process_config"]

# What each role reads beside its own section. Nobody gets a secret that its work does not need.
_SECTIONS = {
    "gateway": ("cluster", "nats", "identity", "limits", "log", "gateway"),
    "scheduler": (
        "cluster",
        "postgres",
        "nats",
        "etcd",
        "journal",
        "limits",
        "log",
        "events",
        "payloads",
        "retention",
        "registry",
        "scheduler",
    ),
    "registry": ("cluster", "postgres", "nats", "etcd", "limits", "log", "registry", "fleet"),
    "worker": (
        "cluster",
        "nats",
        "journal",
        "limits",
        "log",
        "events",
        "worker",
        "connections",
        "certificates",
        "secrets",
    ),
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings in force, and which servers they leave to the stack."""

    settings: Settings
    embedded_postgres: bool
    embedded_nats: bool
    embedded_etcd: bool

    @classmethod
    def build(
        cls,
        layout: Layout,
        ports: Ports,
        secrets: StackSecrets,
        *,
        user_file: Path | None = None,
        overrides: Sequence[Mapping[str, Any]] = (),
        assignments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Configuration:
        """Merges, validates and writes `flint.toml` of the data directory. Raises ConfigurationInvalid.

        `user_file`: named by the user, so it must exist; else the file beside the data directory, if it is there.
        `overrides`: tables merged over the generated ones and under the user's.
        """
        environ = os.environ if environ is None else environ
        generated = _generated(ports, secrets)
        for table in overrides:
            generated = merge(generated, table)
        user = _user_table(layout, user_file)
        write_private(layout.config_file, dump_toml(merge(generated, user)))
        settings = _load(Arguments(layout.config_file, tuple(assignments)), environ)
        generated_dsn = generated["postgres"]["dsn"]
        configuration = cls(
            settings=settings,
            embedded_postgres=settings.postgres.dsn.get_secret_value() == generated_dsn,
            embedded_nats=settings.nats.urls == generated["nats"]["urls"],
            embedded_etcd=settings.etcd.endpoints == generated["etcd"]["endpoints"],
        )
        write_private(layout.config_file, _HEADER + dump_toml(_dump(settings)))
        return configuration


_HEADER = """\
# The settings in force, written by `flint up` at every start. Do not change them here: your own settings belong into
# flint.toml beside this directory, or into the file named with --config.
"""


def write_process_config(
    layout: Layout,
    settings: Settings,
    role: str,
    name: str,
    placed: Mapping[str, Any],
    secrets: StackSecrets | None,
    own: Mapping[str, Any],
) -> Path:
    """Writes the settings file of one process; `placed` goes over its own section. Returns the file's path.

    `secrets`: given when the embedded NATS serves, so that the process logs in as its role. `own`: goes over all.
    """
    table = {key: value for key, value in _dump(settings).items() if key in _SECTIONS[role]}
    if secrets is not None:
        table = merge(table, {"nats": {"user": role, "password": secrets.nats_password(role)}})
    table = merge(merge(table, {role: placed}), own)
    path = layout.process_config_file(name)
    write_private(path, dump_toml(table))
    return path


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for children: without settings, which the files hold already, for each process its own."""
    return {
        name: value
        for name, value in environ.items()
        if name != "FLINT_CONFIG" and not (name.startswith("FLINT_") and "__" in name)
    }


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A new table: `above` over `below`, tables merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _generated(ports: Ports, secrets: StackSecrets) -> dict[str, Any]:
    schedulers = [f"127.0.0.1:{port}" for port in ports.schedulers]
    registries = [f"127.0.0.1:{port}" for port in ports.registries]
    return {
        "cluster": {"internal_token": secrets.internal_token},
        "postgres": {"dsn": f"postgresql://flint:{secrets.postgres}@127.0.0.1:{ports.postgres}/flint"},
        "nats": {
            "urls": [f"nats://127.0.0.1:{ports.nats}"],
            "user": "operator",
            "password": secrets.nats_operator,
        },
        "etcd": {"endpoints": [f"127.0.0.1:{ports.etcd}"]},
        "gateway": {
            "listen": f"127.0.0.1:{ports.gateway}",
            "ops_listen": f"127.0.0.1:{ports.gateway_ops}",
            "schedulers": schedulers,
            "registries": registries,
            "allow_private_addresses": True,
        },
        # One machine: what a workflow calls, or refers to, is often on it too.
        "worker": {"registries": registries, "allow_private_addresses": True},
    }


def _user_table(layout: Layout, user_file: Path | None) -> dict[str, Any]:
    path = user_file or layout.user_config_file
    if user_file is None and not path.exists():
        return {}
    _load(Arguments(path, ()), {})  # so that what is wrong in it is told with its name
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _load(arguments: Arguments, environ: Mapping[str, str]) -> Settings:
    try:
        return load(arguments, environ=environ)
    except ConfigError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise ConfigurationInvalid(f"The configuration is wrong:\n{problems}") from None


def _dump(settings: Settings) -> dict[str, Any]:
    return {key: _reveal(value) for key, value in settings.model_dump(exclude_defaults=True).items()}


def _reveal(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _reveal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_reveal(item) for item in value]
    return value
