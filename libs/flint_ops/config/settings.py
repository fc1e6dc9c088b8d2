"""What can be set: one class for each section of the configuration. Pure declarations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = [
    "CertificateSettings",
    "ClusterSettings",
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
    "LogSettings",
    "NatsSettings",
    "PayloadSettings",
    "PoolSettings",
    "PostgresSettings",
    "QuarantineSettings",
    "RegistrySettings",
    "SchedulerSettings",
    "ScriptSettings",
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
    shard_groups: int = Field(
        16, ge=1, le=1024, description="groups in which the 1024 shards move; fixed by the first migration"
    )


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
    memory_bytes: int = Field(
        2**30,
        ge=2**26,
        description="of the NATS that `flint up` starts: it collects garbage more often from here on (GOMEMLIMIT)",
    )


class EtcdSettings(_Section):
    """Permission and discovery."""

    endpoints: list[str] = Field(["127.0.0.1:7477"], min_length=1)
    lease_ttl_s: int = Field(3, ge=2, le=60, description="a dead scheduler's groups are free after this long")


class JournalSettings(_Section):
    """The journal's streams."""

    max_age_s: int = Field(21_600, ge=60, description="entries leave after this long, folded or not")
    max_bytes: int = Field(8 * 2**30, ge=2**20)
    keep_folded_s: int = Field(300, ge=10, description="folded entries stay at least this long")
    purge_interval_s: float = Field(15.0, gt=0, description="folded entries are removed this often")
    jobs_max_age_s: int = Field(120, ge=30, description="jobs leave their stream after this long, taken or not")
    jobs_max_bytes: int = Field(
        2 * 2**30, ge=2**20, description="size of the stream of jobs; when it is full, the oldest leave"
    )
    duplicate_window_s: int = Field(30, ge=1)
    replicas: int = Field(1, ge=1, le=5)


class IdentitySettings(_Section):
    """Keys."""

    cache_ttl_s: float = Field(5.0, gt=0, le=60, description="a gateway may honour a revoked key this long")
    cache_entries: int = Field(10_000, ge=1)


class LimitSettings(_Section):
    """Sizes and counts. Beyond one of them: a typed error, nothing lost."""

    definition_bytes: int = Field(2**20, ge=1024)
    document_bytes: int = Field(8 * 2**20, ge=1024, description="an OpenAPI or OpenID document that is fetched")
    payload_bytes: int = Field(262_144, ge=1024, description="a run's input, a step's output, a run's output")
    value_bytes: int = Field(
        64 * 2**20,
        ge=1024,
        description="what an executor may read or give; above payload_bytes it travels by reference",
    )
    state_bytes: int = Field(
        262_144,
        ge=1024,
        description="what a run keeps for later steps; values in flow come on top, see the definition language",
    )
    batch_size: int = Field(1000, ge=1, le=1000)
    message_bytes: int = Field(4 * 2**20, ge=65_536, description="one gRPC message")
    steps_per_run: int = Field(100_000, ge=1)
    run_s: float = Field(
        0.0, ge=0, description="how long a run may take from its start; it then fails and cannot catch it; 0: no limit"
    )
    parallel: int = Field(1_000, ge=1, le=10_000, description="iterations of one parallel loop at once")
    spread_above: int = Field(
        32, ge=0, description="forks with more branches are executed in chunks over the workers; 0: all stay in the leg"
    )
    spread_chunks: int = Field(64, ge=1, le=1_000, description="chunks that such a fork is divided into")
    spread_least: int = Field(10, ge=1, le=10_000, description="branches of one chunk, at least")
    spread_most: int = Field(500, ge=1, le=10_000, description="branches of one chunk, up to 1000 chunks")
    spread_window: int = Field(256, ge=1, le=1_000, description="chunks of one fork that run at the same time")
    steps_per_turn: int = Field(200, ge=1, description="pure steps before the worker's event loop gets a turn")
    run_depth: int = Field(20, ge=1, le=1000, description="runs above a run: how deep runs may start runs")
    children_per_run: int = Field(10_000, ge=1, le=1_000_000, description="runs that one run may start")
    tree_runs: int = Field(
        10_000, ge=1, le=1_000_000, description="runs of one tree: a run, those it started, those that these started"
    )
    leg_losses: int = Field(3, ge=1, description="losses at one position after which a run is poison")
    watches: int = Field(10_000, ge=1, description="open watches and waits per gateway")
    function_workers: int = Field(1_000, ge=1, description="function workers connected to one gateway")
    evaluate_ms: int = Field(500, ge=10, description="processor time of one guarded expression")
    evaluate_patience: int = Field(
        10, ge=1, le=1000, description="it is given up after so many times that by the clock, 5 s at least"
    )
    evaluate_bytes: int = Field(256 * 2**20, ge=2**24, description="memory of one evaluator process")
    evaluate_large_ms: int = Field(
        30_000, ge=10, description="processor time of one guarded expression on values by reference"
    )
    evaluate_large_bytes: int = Field(
        2 * 2**30, ge=2**24, description="memory of the evaluator process for values by reference"
    )
    evaluate_large_idle_s: float = Field(
        10.0, ge=0.1, le=86_400, description="an evaluator process for such values ends after so long without work"
    )
    evaluate_large_keep_bytes: int = Field(
        64 * 2**20, ge=0, description="so does one that still holds more a second after its work; 0: no bound"
    )
    outlines_bytes: int = Field(
        8 * 2**20,
        ge=0,
        description="small members of values by reference that a worker remembers, so that it need not fetch the whole "
        "to read them; 0: none",
    )
    values_in_memory_bytes: int = Field(
        256 * 2**20, ge=2**20, description="values by reference that one worker or gateway holds at a time; more wait"
    )


class PayloadSettings(_Section):
    """Large values: above limits.payload_bytes they leave the runs' state for a store of their own."""

    store: Literal["postgres", "s3"] = Field("postgres", description="where they are kept")
    unused_s: int = Field(86_400, ge=60, description="what no run names is dropped after this long")
    s3_endpoint: str = Field("", description="URL of an S3-compatible service; empty means AWS")
    s3_region: str = Field("us-east-1", description="the bucket's region")
    s3_bucket: str = Field("", description="the bucket; it must exist")
    s3_prefix: str = Field("flint/", description="all objects' keys begin with this")
    s3_access_key: SecretStr = Field(SecretStr(""), description="access key id; empty: the machine's own role")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="secret access key")


class RetentionSettings(_Section):
    """How long what is over is kept: ended runs with their record, and what belongs to no run."""

    keep_s: float = Field(
        2_592_000.0,
        ge=0,
        le=3_155_760_000,
        description="ended runs are kept this long unless their namespace or workflow says otherwise; 0: for ever",
    )
    request_ids_s: float = Field(
        604_800.0,
        ge=3600,
        le=315_576_000,
        description="request ids of commands to runs are remembered this long, and not longer than their run",
    )
    sweep_s: float = Field(60.0, ge=0.1, le=86_400, description="time between two looks of a scheduler at its old runs")
    batch_runs: int = Field(100, ge=1, le=1_000, description="runs that one commit deletes at most")
    batch_entries: int = Field(
        10_000, ge=1, le=1_000_000, description="their journal entries in it at most, unless one run alone has more"
    )
    runs_per_s: float = Field(5_000.0, gt=0, le=100_000, description="most runs that a scheduler deletes in a second")
    work_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of its time, while there are old runs, in which a scheduler deletes; it rests in the others",
    )


class EventSettings(_Section):
    """CloudEvents in and out."""

    keep_s: float = Field(
        3600.0, ge=60, description="published events are kept this long: for repeats, and for those who follow them"
    )
    event_bytes: int = Field(262_144, ge=1024, le=2 * 2**20, description="one event, JSON")
    clock_slack_s: float = Field(
        0.25,
        ge=0,
        le=60,
        description="how far a worker's clock may be ahead; a listen sees events from this much before",
    )
    lifecycle: Literal["off", "runs", "tasks"] = Field(
        "runs", description="which lifecycle events are published for those who follow them"
    )
    lifecycle_to_listen: bool = Field(
        False, description="also store lifecycle events, so that `listen` gets them: a row for each"
    )


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
    resource_bytes: int = Field(2**20, ge=1024, description="one text that a definition refers to: function, schema")
    resource_s: float = Field(10.0, gt=0, le=30, description="time to read such a text at apply")
    allow_private_addresses: bool = Field(False, description="read such texts from private networks too")


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
    cancel_grace_s: float = Field(
        2.0, ge=0, le=3600, description="steps that are under way when a run is cancelled may go on this long"
    )
    ageing_s: float = Field(
        600.0, ge=0, le=86_400, description="a run that waits so long for a slot gains a level, never level 0; 0: never"
    )
    headroom: dict[str, float] = Field(
        {},
        description="part of a pool's slots that only urgent levels get, by pool, 0 to 0.9; '*': pools not named here",
    )
    headroom_level: int = Field(0, ge=0, le=8, description="the least urgent level that gets the headroom")
    off_peak: str = Field(
        "", description="when off-peak runs may begin, such as 22:00-06:00 Europe/Berlin; empty: only into spare slots"
    )
    off_peak_spare: float = Field(
        0.25, ge=0, le=1, description="off-peak runs may also begin while more than this part of a pool's slots is free"
    )
    schedule_catch_up_s: float = Field(
        300.0, ge=0, le=31 * 86_400, description="a schedule's time that was missed is made up for if it is not older"
    )
    backfill_times: int = Field(10_000, ge=1, le=100_000, description="times that the range of one backfill may hold")


class RegistrySettings(_Section):
    """One registry of the fleet."""

    id: str = Field("registry-1", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    listen: str = "127.0.0.1:7473"
    ops_listen: str = "127.0.0.1:7483"
    lease_ttl_s: int = Field(5, ge=2, le=60, description="a worker's lease")
    heartbeat_interval_s: float = Field(1.5, gt=0)


class PoolSettings(_Section):
    """How a pool is scaled. A value that a pool does not set is that of fleet.defaults."""

    mode: Literal["fixed", "shadow", "automatic"] = Field(
        "automatic", description="fixed: nothing is decided; shadow: decisions are only written down"
    )
    minimum_workers: int = Field(0, ge=0, le=10_000, description="never fewer; 0: the pool may go to zero")
    maximum_workers: int = Field(10, ge=1, le=10_000, description="never more, those that start or drain included")
    target_wait_s: float = Field(2.0, ge=0.1, le=3600, description="95 of 100 runs wait for a slot no longer than this")
    idle_s: float = Field(300.0, ge=1, le=86_400, description="a worker without a leg for this long may be ended")
    cooldown_s: float = Field(60.0, ge=0, le=86_400, description="least time between starts and ends of workers")
    buffer_slots: int = Field(0, ge=0, le=100_000, description="free slots kept warm beyond what the load needs")
    standby_slots: int = Field(0, ge=0, le=100_000, description="free slots kept beyond the buffer for urgent work")
    worker_slots: int = Field(0, ge=0, le=10_000, description="slots of a new worker; 0: as worker.slots says there")
    dedicated_to: str = Field("", description="the one namespace that the pool works for; empty: all")


class KubernetesSettings(_Section):
    """Workers as pods (fleet.provisioner = "kubernetes")."""

    namespace: str = Field("flint", description="where the pods are made")
    kubeconfig: str = Field("", description="path of a kubeconfig file; empty: the registry's own service account")
    context: str = Field("", description="context of the kubeconfig; empty: the current one")
    template: str = Field("", description="path of a YAML file with one Pod, from which each worker's pod is made")
    templates: dict[str, str] = Field({}, description="paths of other templates, by pool")
    request_timeout_s: float = Field(10.0, gt=0, le=300, description="one request to the API server")


class QuarantineSettings(_Section):
    """Workers whose calls fail or take longer than those of the others in their pool get no work for a time."""

    enabled: bool = Field(True, description="whether outliers are looked for")
    window_s: float = Field(120.0, ge=5, le=3600, description="calls of this long are compared")
    minimum_calls: int = Field(20, ge=1, description="fewer calls of a function on a worker say nothing")
    minimum_workers: int = Field(3, ge=3, description="fewer workers of a pool with enough calls say nothing")
    deviations: float = Field(6.0, ge=2, description="how far from the median is too far, in scaled median deviations")
    error_share: float = Field(0.2, gt=0, le=1, description="least difference of the share of failed calls")
    slowness: float = Field(3.0, ge=1.1, description="least ratio of the mean duration to the median")
    one_in: int = Field(3, ge=2, description="at most one worker in so many of a pool is quarantined at the same time")
    quarantine_s: float = Field(
        600.0,
        ge=0,
        le=604_800,
        description="a quarantine lasts this long, twice as long each time that the probation after it, of the same"
        " length, is not stood; 0: the worker is drained and ends",
    )
    longest_s: float = Field(86_400.0, ge=1, le=2_592_000, description="and never longer than this")


class FleetSettings(_Section):
    """How many workers there are, decided by the leading registry."""

    provisioner: Literal["none", "local", "kubernetes"] = Field(
        "none", description="who starts and ends workers; none: you do"
    )
    region: str = Field(
        "local", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="region of the workers that are started"
    )
    decide_s: float = Field(1.0, ge=0.1, le=60, description="time between two looks at the pools")
    startup_s: float = Field(60.0, ge=1, le=3600, description="a worker that has not registered by then has failed")
    drain_s: float = Field(120.0, ge=1, le=86_400, description="a drained worker that has not ended by then is told to")
    decisions_kept_days: int = Field(14, ge=1, le=3650, description="how long scaling decisions are kept")
    evaluate_s: float = Field(180.0, ge=1, le=3600, description="after this long a decision is judged")
    socket: str = Field("", description="local: where the worker host listens (a Unix socket)")
    local_workers: int = Field(64, ge=1, le=1000, description="local: most workers of one host, of all pools")
    defaults: PoolSettings = PoolSettings()
    pools: dict[str, PoolSettings] = Field({}, description="pools with settings of their own, by name")
    kubernetes: KubernetesSettings = KubernetesSettings()
    quarantine: QuarantineSettings = QuarantineSettings()


class ScriptSettings(_Section):
    """Programs of `run: script` and `run: shell` on a worker: what they may use and how they are kept apart."""

    offered: list[Literal["python", "js", "shell"]] = Field(
        ["python", "js", "shell"], description="what this worker runs; empty: no programs at all"
    )
    path: str = Field("/usr/local/bin:/usr/bin:/bin", description="PATH of the programs; nothing else is inherited")
    folder: str = Field("", description="where their work folders are made; empty: the system's folder for such files")
    user: str = Field(
        "auto",
        description="user they run as, when the worker runs as root; auto: nobody, where that user can reach the "
        "interpreter, else root in namespaces; empty: root in namespaces (without them root's programs are refused); "
        "root: root, without namespaces too",
    )
    isolation: Literal["auto", "namespaces", "none"] = Field(
        "auto",
        description="user and PID namespaces of their own: where the kernel allows it, always (else refused), never",
    )
    concurrency: int = Field(8, ge=1, le=1000, description="programs at the same time; the others wait")
    timeout_s: float = Field(300.0, gt=0, description="a program that takes longer is ended, shorter timeouts apart")
    grace_s: float = Field(2.0, ge=0, le=60, description="from SIGTERM to SIGKILL")
    cpu_s: int = Field(60, ge=1, description="processor time of each of a program's processes")
    memory_bytes: int = Field(
        512 * 2**20, ge=16 * 2**20, description="memory of each of a program's processes, and of all together"
    )
    file_bytes: int = Field(256 * 2**20, ge=4096, description="size of one file that a program writes")
    files: int = Field(256, ge=16, le=65_536, description="open files of each process")
    processes: int = Field(64, ge=1, le=4096, description="processes and threads of one program")
    output_bytes: int = Field(
        8 * 2**20, ge=1024, description="standard output and error together; at most limits.value_bytes counts"
    )
    python: str = Field("", description="path of Python for scripts; empty: the worker's own")
    node: str = Field("", description="path of Node.js for JavaScript; empty: the first `node` in path")
    packages: list[str] = Field(
        [], description="packages that Python scripts may declare, by name; `*` allows all; empty: none"
    )
    packages_folder: str = Field(
        "", description="where declared packages are kept, one environment for each set; must be set to allow packages"
    )
    packages_index: str = Field("", description="package index that pip uses; empty: pip's own default")


class ContainerSettings(_Section):
    """Containers of `run: container` on a worker."""

    engine: Literal["auto", "docker", "podman", "off"] = Field(
        "auto", description="the engine's command; auto: the first of docker and podman that answers at start"
    )
    command: str = Field("", description="path of the engine's command; empty: looked up in the worker's PATH")
    volumes: list[str] = Field(
        [],
        description="folders of the machine that containers may mount, and what is below; `:ro` at the end: read-only",
    )
    publish_ports: bool = Field(False, description="let containers publish ports on the machine")
    network: str = Field("bridge", description="network that containers join; `none`: no network")
    concurrency: int = Field(8, ge=1, le=1000, description="containers at the same time; the others wait")
    timeout_s: float = Field(3600.0, gt=0, description="a container that takes longer is ended, shorter timeouts apart")
    pull_s: float = Field(600.0, gt=0, description="time to pull an image")
    grace_s: float = Field(5.0, ge=0, le=600, description="from SIGTERM to SIGKILL")
    memory_bytes: int = Field(512 * 2**20, ge=8 * 2**20, description="memory of one container")
    cpus: float = Field(1.0, gt=0, description="processors of one container")
    processes: int = Field(256, ge=1, description="processes and threads of one container")


class WorkerSettings(_Section):
    """One worker."""

    id: str = Field("worker-1", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    ops_listen: str = "127.0.0.1:7485"
    registries: list[str] = Field(["127.0.0.1:7473", "127.0.0.1:7474"], min_length=1)
    pool: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    region: str = Field("local", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    slots: int = Field(500, ge=1, le=10_000, description="legs that run at the same time")
    labels: dict[str, str] = {}
    inline_wait_s: float = Field(1.0, ge=0, description="a wait up to this long keeps its slot")
    drain_s: float = Field(20.0, gt=0, description="grace for steps in progress after SIGTERM")
    evaluators: int = Field(2, ge=1, le=64, description="guarded jq processes")
    scripts: ScriptSettings = ScriptSettings()
    containers: ContainerSettings = ContainerSettings()
    allow_private_addresses: bool = Field(False, description="let `call http` reach private address ranges")
    proxy: SecretStr = Field(
        SecretStr(""), description="http(s)://user:password@host:port, through which HTTP goes out; empty: directly"
    )
    no_proxy: list[str] = Field(
        [], description="hosts that are reached directly: names (their subdomains too), addresses, ranges, host:port, *"
    )
    ca_file: str = Field("", description="PEM file of authorities that are trusted beside the usual ones")
    http_connect_s: float = Field(10.0, gt=0, le=300, description="time to connect, TLS apart")
    http_read_s: float = Field(120.0, gt=0, le=3600, description="longest silence of an HTTP server")
    http_total_s: float = Field(300.0, gt=0, le=86_400, description="one HTTP call, answer included")
    token_cache_entries: int = Field(1000, ge=1, description="OAuth2 tokens that a worker remembers")
    document_cache_bytes: int = Field(64 * 2**20, ge=0, description="fetched API descriptions that a worker remembers")
    stream_messages: int = Field(
        10_000, ge=1, description="messages that one streaming call or subscription (grpc, asyncapi, a2a) may collect"
    )
    mcp_commands: list[str] = Field(
        [],
        description="programs that `call: mcp` may start over stdio: names or absolute paths, as written there",
    )


class ConnectionSettings(_Section):
    """A named way to the outside, for `sql` and `email`: connections.<name>."""

    kind: Literal["sql", "smtp"]
    url: SecretStr = Field(
        description="SQLAlchemy URL, or smtp://, smtp+starttls:// or smtps://user:password@host:port"
    )
    sender: str = Field("", description="smtp: default From address")
    ca_file: str = Field("", description="smtp: file of the authorities of its certificate; empty: the system's")
    message_bytes: int = Field(25 * 2**20, ge=1024, description="smtp: size of one message with its attachments")
    pool_size: int = Field(5, ge=1, le=100)
    timeout_s: float = Field(30.0, gt=0)
    max_rows: int = Field(10_000, ge=1)


class CertificateSettings(_Section):
    """A client certificate for HTTPS: certificates.<name>."""

    hosts: list[str] = Field(
        min_length=1, description="the hosts it is shown to: names (their subdomains too), host:port"
    )
    certificate_file: str = Field(description="PEM file with the certificate and those that lead to its authority")
    key_file: str = Field("", description="PEM file with its key; empty: the certificate's file holds it")
    key_password: SecretStr = Field(SecretStr(""), description="password of the key")


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
    events: EventSettings = EventSettings()
    payloads: PayloadSettings = PayloadSettings()
    retention: RetentionSettings = RetentionSettings()
    gateway: GatewaySettings = GatewaySettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    registry: RegistrySettings = RegistrySettings()
    fleet: FleetSettings = FleetSettings()
    worker: WorkerSettings = WorkerSettings()
    connections: dict[str, ConnectionSettings] = {}
    certificates: dict[str, CertificateSettings] = {}
    secrets: dict[str, SecretStr] = {}
