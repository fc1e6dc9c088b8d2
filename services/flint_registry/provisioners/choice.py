"""Which provisioner the configuration names."""

from __future__ import annotations

from pathlib import Path

from flint_ops.config import ConfigError, ConfigProblem, FleetSettings
from flint_registry.provisioners.base import NoneProvisioner, Provisioner
from flint_registry.provisioners.local import LocalProvisioner

__all__ = ["choose"]


def choose(settings: FleetSettings) -> Provisioner:
    """The provisioner, not connected yet. Raises ConfigError when what it needs is not set."""
    if settings.provisioner == "local":
        if not settings.socket:
            raise _missing("fleet.socket", "is required by fleet.provisioner = local: the worker host's socket")
        return LocalProvisioner(Path(settings.socket))
    if settings.provisioner == "kubernetes":
        if not settings.kubernetes.template:
            raise _missing("fleet.kubernetes.template", "is required by fleet.provisioner = kubernetes: a Pod in YAML")
        from flint_registry.provisioners.kubernetes import KubernetesProvisioner  # noqa: PLC0415 - its client is large

        return KubernetesProvisioner(settings.kubernetes)
    return NoneProvisioner()


def _missing(key: str, message: str) -> ConfigError:
    return ConfigError([ConfigProblem(key, "its value", message)])
