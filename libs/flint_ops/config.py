"""Configuration: one TOML file, then environment, then flags; validated once, read from nowhere else.

Precedence: `--set section.key=value` over `FLINT_SECTION__KEY` over the file named by `--config` or `FLINT_CONFIG`
(else `.flint/flint.toml` below the working folder, if it is there) over the defaults written here. Every error names the
key and where its value came from. Unknown keys are errors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = [
    "ClusterSettings",
    "ConnectionSettings",
    "EtcdSettings",
    "GatewaySettings",
    "IdentitySettings",
    "JournalSettings",
    "LimitSettings",
    "LogSettings",
    "NatsSettings",
    "PostgresSettings",
    "RegistrySettings",
    "SchedulerSettings",
    "Settings",
    "WorkerSettings",
]

Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterSettings(_Section):
    """What all processes of one Flint share."""

    name: str = Field("flint", pattern=r"^[a-z][a-z0-9-]{0,30}$", description="prefix of etcd keys")
    internal_token: SecretStr = Field(SecretStr(""), description="shared secret between Flint's services; required")
    shard_groups: int = Field(16, ge=1, le=1024, description="groups in which the 1024 shards move; fixed by the first migration")


class PostgresSettings(_Section):
    """The record."""

    dsn: SecretStr = Field(SecretStr(""), description="postgresql://user:password@host:port/database")
    pool_size: int = Field(8, ge=2, le=100, description="connections per process")
    statement_timeout_ms: int = Field(10_000, ge=100)


class NatsSettings(_Section):
    """Delivery and the journal."""

    urls: list[str] = Field(["nats://127.0.0.1:7476"], min_length=1)
    user: str = ""
    password: SecretStr = SecretStr("")


class EtcdSettings(_Section):
    """Permission and discovery."""

    endpoints: list[str] = Field(["127.0.0.1:7477"], min_length=1)
    lease_ttl_s: int = Field(3, ge=2, le=60, description="a dead scheduler's groups are free after this long")


class JournalSettings(_Section):
    """The journal's streams."""

    max_age_s: int = Field(21_600, ge=60, description="entries leave after this long, folded or not")
    max_bytes: int = Field(8 * 2**30, ge=2**20)
    keep_folded_s: int = Field(300, ge=10, description="folded entries stay at least this long")
    duplicate_window_s: int = Field(30, ge=1)
    replicas: int = Field(1, ge=1, le=5)


class IdentitySettings(_Section):
    """Keys."""

    cache_ttl_s: float = Field(5.0, gt=0, le=60, description="a gateway may honour a revoked key this long")
    cache_entries: int = Field(10_000, ge=1)


class LimitSettings(_Section):
    """Sizes and counts. Beyond one of them: a typed error, nothing lost."""

    definition_bytes: int = Field(2**20, ge=1024)
    payload_bytes: int = Field(262_144, ge=1024, description="a run's input, a step's output, a run's output")
    state_bytes: int = Field(262_144, ge=1024, description="a run's state (snapshot)")
    batch_size: int = Field(1000, ge=1, le=1000)
    message_bytes: int = Field(4 * 2**20, ge=65_536, description="one gRPC message")
    steps_per_run: int = Field(100_000, ge=1)
    steps_per_turn: int = Field(200, ge=1, description="pure steps before the worker's event loop gets a turn")
    leg_losses: int = Field(3, ge=1, description="losses at one position after which a run is poison")
    watches: int = Field(10_000, ge=1, description="open watches and waits per gateway")
    evaluate_ms: int = Field(500, ge=10, description="time of one guarded expression")
    evaluate_bytes: int = Field(256 * 2**20, ge=2**24, description="memory of one evaluator process")


class LogSettings(_Section):
    """Logs: JSON lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class GatewaySettings(_Section):
    """The public edge."""

    listen: str = "127.0.0.1:7470"
    ops_listen: str = "127.0.0.1:7480"
    schedulers: list[str] = Field(["127.0.0.1:7471", "127.0.0.1:7472"], min_length=1)
    registries: list[str] = Field(["127.0.0.1:7473", "127.0.0.1:7474"], min_length=1)
    result_cache_bytes: int = Field(64 * 2**20, ge=0)


class SchedulerSettings(_Section):
    """One orchestrator."""

    id: str = Field("scheduler-1", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    listen: str = "127.0.0.1:7471"
    ops_listen: str = "127.0.0.1:7481"
    sweep_interval_s: float = Field(4.0, gt=0, description="fenced query for timers, inbox, accepted runs")
    begin_deadline_s: float = Field(10.0, gt=0, description="a leg without progress this long is asked for")
    overcommit: float = Field(1.25, ge=1, le=4, description="legs sent per slot")
    queue_limit: int = Field(200_000, ge=1, description="accepted runs waiting for a slot, per scheduler")
    drain_s: float = Field(10.0, gt=0)


class RegistrySettings(_Section):
    """One registry of the fleet."""

    id: str = Field("registry-1", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    listen: str = "127.0.0.1:7473"
    ops_listen: str = "127.0.0.1:7483"
    lease_ttl_s: int = Field(5, ge=2, le=60, description="a worker's lease")
    heartbeat_interval_s: float = Field(1.5, gt=0)


class WorkerSettings(_Section):
    """One worker."""

    id: str = Field("worker-1", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    ops_listen: str = "127.0.0.1:7485"
    registries: list[str] = Field(["127.0.0.1:7473", "127.0.0.1:7474"], min_length=1)
    pool: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    region: str = Field("local", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    slots: int = Field(256, ge=1, le=10_000)
    labels: dict[str, str] = {}
    inline_wait_s: float = Field(1.0, ge=0, description="a wait up to this long keeps its slot")
    drain_s: float = Field(20.0, gt=0, description="grace for steps in progress after SIGTERM")
    evaluators: int = Field(2, ge=1, le=64, description="guarded jq processes")
    allow_private_addresses: bool = Field(False, description="let `call http` reach private address ranges")


class ConnectionSettings(_Section):
    """A named way to the outside, for `sql` and `email`: connections.<name>."""

    kind: Literal["sql", "smtp"]
    url: SecretStr = Field(description="SQLAlchemy URL, or smtp://, smtp+starttls:// or smtps://user:password@host:port")
    sender: str = Field("", description="smtp: default From address")
    pool_size: int = Field(5, ge=1, le=100)
    timeout_s: float = Field(30.0, gt=0)
    max_rows: int = Field(10_000, ge=1)


class Settings(_Section):
    """Everything. One object is built at start by `load` and handed down by the composition roots."""

    cluster: ClusterSettings = ClusterSettings()
    postgres: PostgresSettings = PostgresSettings()
    nats: NatsSettings = NatsSettings()
    etcd: EtcdSettings = EtcdSettings()
    journal: JournalSettings = JournalSettings()
    identity: IdentitySettings = IdentitySettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    gateway: GatewaySettings = GatewaySettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    registry: RegistrySettings = RegistrySettings()
    worker: WorkerSettings = WorkerSettings()
    connections: dict[str, ConnectionSettings] = {}
    secrets: dict[str, SecretStr] = {}
