"""Diagnosis of PostgreSQL, NATS and etcd, embedded or external: reachable, the right version, allowed in, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from urllib.parse import urlsplit

import psycopg

from flint_ops.config import Settings
from flint_stack.errors import ProbeFailed
from flint_stack.findings import Finding
from flint_stack.probes import http_get

__all__ = ["check_etcd", "check_nats", "check_postgres"]

_DEADLINE_S = 5.0
_OLDEST_POSTGRES = 150_000
_OLDEST_NATS = (2, 10)


async def check_postgres(settings: Settings) -> Finding:
    """Connects with the configured DSN, reads version and schema revision."""
    part = "PostgreSQL"
    dsn = settings.postgres.dsn.get_secret_value()
    if not dsn:
        return Finding.failed(part, "postgres.dsn is not set", "Set it, or let `flint up` start a server.")
    loop = asyncio.get_running_loop()
    try:
        async with (
            asyncio.timeout(_DEADLINE_S),
            await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=4) as connection,
        ):
            asked = loop.time()
            row = await (
                await connection.execute(
                    "select current_setting('server_version_num')::int, current_setting('server_version'),"
                    " pg_is_in_recovery(), to_regclass('schema_revision') is not null"
                    " and to_regclass('cluster') is not null,"
                    " current_setting('fsync') = 'on', (select count(*) from pg_stat_activity where backend_type = %s),"
                    " current_setting('max_connections')::int",
                    ("client backend",),
                )
            ).fetchone()
            took_ms = (loop.time() - asked) * 1000
            if row is None:
                return Finding.failed(part, "it answers nothing", "Look into its log.")
            number, version, recovering, has_schema, fsync, clients, room = row
            seen = f"{version}, {took_ms:.1f} ms, {clients} of {room} connections"
            if number < _OLDEST_POSTGRES:
                return Finding.failed(part, seen, "Flint needs PostgreSQL 15 or newer.")
            if recovering:
                return Finding.failed(part, f"{seen}; a read-only standby", "Name the primary in postgres.dsn.")
            if not has_schema:
                return Finding.failed(
                    part, f"{seen}; without Flint's schema", "Run `python -m flint_store.migrate --config FILE`."
                )
            revision = await _revision(connection)
            if not fsync:
                return Finding.warning(part, f"{seen}, {revision}; fsync is off", "A power cut may lose accepted runs.")
            if clients > room * 0.9:
                return Finding.warning(
                    part, f"{seen}, {revision}", "Raise max_connections or lower postgres.pool_size."
                )
            return Finding.ok(part, f"{seen}, {revision}")
    except TimeoutError:
        return Finding.failed(part, f"no answer within {_DEADLINE_S:g} s", _look("postgres"))
    except psycopg.Error as error:
        return Finding.failed(part, " ".join(str(error).split()), _look("postgres"))


async def _revision(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> str:
    row = await (
        await connection.execute("select r.version_num, c.shard_groups from schema_revision r, cluster c")
    ).fetchone()
    return "schema incomplete" if row is None else f"schema {row[0]}, {row[1]} groups"


async def check_nats(settings: Settings) -> list[Finding]:
    """Logs in at each server as this configuration's user; says whether JetStream is on."""
    return list(await asyncio.gather(*(_check_nats_server(settings, url) for url in settings.nats.urls)))


async def _check_nats_server(settings: Settings, url: str) -> Finding:
    split = urlsplit(url if "://" in url else f"nats://{url}")
    host, port = split.hostname or "127.0.0.1", split.port or 4222
    part = f"NATS {host}:{port}"
    user = settings.nats.user or split.username or ""
    password = settings.nats.password.get_secret_value() or split.password or ""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            info, said = await _nats_login(host, port, user, password, encrypted=split.scheme == "tls")
    except TimeoutError:
        return Finding.failed(part, f"no answer within {_DEADLINE_S:g} s", _look("nats"))
    except (OSError, ValueError) as error:
        return Finding.failed(part, _reason(error), _look("nats"))
    version = str(info.get("version", "?"))
    if said.startswith("-ERR"):
        return Finding.failed(part, f"{version}, refuses user «{user}»: {said[4:].strip()}", "Look at nats.user.")
    if not info.get("jetstream"):
        return Finding.failed(part, f"{version}, without JetStream", "Start the server with JetStream.")
    if _version(version) < _OLDEST_NATS:
        return Finding.warning(part, f"{version} is old", "Flint is tried with 2.11 and newer.")
    limit_mib = int(str(info.get("max_payload", 0))) / 2**20
    if limit_mib < 4:  # what the schedulers insist on
        return Finding.failed(part, f"{version}, max_payload {limit_mib:.2f} MiB", "Set max_payload to 8MB.")
    return Finding.ok(part, f"{version}, JetStream, user «{user}», max payload {limit_mib:.0f} MiB")


async def _nats_login(
    host: str, port: int, user: str, password: str, *, encrypted: bool
) -> tuple[dict[str, object], str]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        greeting = await reader.readline()
        if not greeting.startswith(b"INFO "):
            raise ValueError("what listens there is not a NATS server")
        info = json.loads(greeting[5:])
        if encrypted or info.get("tls_required"):
            await writer.start_tls(ssl.create_default_context(), server_hostname=host)
        options = {"verbose": False, "pedantic": False, "user": user, "pass": password, "name": "doctor", "lang": "py"}
        writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        await writer.drain()
        answer = (await reader.readline()).decode(errors="replace").strip()
        if not answer.startswith(("PONG", "-ERR", "INFO")):
            raise ValueError("it closed the connection at the login")
        return info, answer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def check_etcd(settings: Settings) -> list[Finding]:
    """Asks each endpoint for its health (it has a leader and serves reads) and its version."""
    return list(await asyncio.gather(*(_check_etcd_endpoint(endpoint) for endpoint in settings.etcd.endpoints)))


async def _check_etcd_endpoint(endpoint: str) -> Finding:
    address = endpoint.split("://")[-1].rstrip("/")
    part = f"etcd {address}"
    try:
        status, health = await http_get(address, "/health", timeout_s=_DEADLINE_S)
        _, version = await http_get(address, "/version", timeout_s=_DEADLINE_S)
        answer = json.loads(health)
        name = str(json.loads(version).get("etcdserver", "?"))
    except (ProbeFailed, ValueError) as error:
        return Finding.failed(part, str(error), _look("etcd"))
    if status != 200 or str(answer.get("health")).lower() != "true":
        return Finding.failed(part, f"{name}, not healthy: {answer.get('reason') or 'no leader'}", _look("etcd"))
    return Finding.ok(part, name)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _look(name: str) -> str:
    return f"Does it run? Under `flint up` its log is logs/{name}.log in the data directory."
