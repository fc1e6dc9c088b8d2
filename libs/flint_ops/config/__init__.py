"""Configuration: one TOML file, then environment, then flags; validated once, read from nowhere else.

Precedence: `--set section.key=value` over `FLINT_SECTION__KEY` over the file named by `--config` or `FLINT_CONFIG`
(else `.flint/flint.toml` below the working folder, if it is there) over the defaults written in `settings.py`. Every
value keeps its source until validation, so every error names the key and where its value came from. Unknown keys are
errors.
"""

from __future__ import annotations

from flint_ops.config.loading import (
    DEFAULT,
    DEFAULT_FILE,
    Arguments,
    ConfigError,
    ConfigProblem,
    Loaded,
    load,
    load_with_sources,
    parse_args,
)
from flint_ops.config.settings import (
    CertificateSettings,
    ClusterSettings,
    ConnectionSettings,
    ContainerSettings,
    EtcdSettings,
    EventSettings,
    FleetSettings,
    GatewaySettings,
    IdentitySettings,
    JournalSettings,
    KubernetesSettings,
    LimitSettings,
    LogSettings,
    NatsSettings,
    PayloadSettings,
    PoolSettings,
    PostgresSettings,
    QuarantineSettings,
    RegistrySettings,
    RetentionSettings,
    SchedulerSettings,
    ScriptSettings,
    Settings,
    WorkerSettings,
)

__all__ = [
    "DEFAULT",
    "DEFAULT_FILE",
    "Arguments",
    "CertificateSettings",
    "ClusterSettings",
    "ConfigError",
    "ConfigProblem",
    "ConnectionSettings",
    "ContainerSettings",
    "EtcdSettings",
    "EventSettings",
    "FleetSettings",
    "GatewaySettings",
    "IdentitySettings",
    "JournalSettings",
    "KubernetesSettings",
    "LimitSettings",
    "Loaded",
    "LogSettings",
    "NatsSettings",
    "PayloadSettings",
    "PoolSettings",
    "PostgresSettings",
    "QuarantineSettings",
    "RegistrySettings",
    "RetentionSettings",
    "SchedulerSettings",
    "ScriptSettings",
    "Settings",
    "WorkerSettings",
    "load",
    "load_with_sources",
    "parse_args",
]
