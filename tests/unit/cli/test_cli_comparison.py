"""`flint apply --dry-run`, `flint schema` and `flint config show`, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_core.definition.json_schema import workflow_schema
from support.scripted_gateway import ScriptedGateway

OLD = """\
document: {dsl: 1.0.3, namespace: default, name: greet, version: 1.0.0}
do:
  - ask:
      call: http
      with: {method: get, endpoint: http://old.example.com}
      timeout: {after: PT5S}
  - tell: {set: {x: 1}}
"""
NEW = (
    OLD.replace("old.example.com", "new.example.com")
    .replace("PT5S", "PT9S")
    .replace("version: 1.0.0", "version: 1.1.0")
)


class Outcome(NamedTuple):
    code: int | None
    out: str
    err: str


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as gateway:
        gateway.script.applied_version = "1.1.0"
        yield gateway


async def flint(folder: Path, *arguments: str, more: Mapping[str, str] | None = None, stdin: str = "") -> Outcome:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLINT_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from flint_cli.main import main; main()",
        *arguments,
        cwd=folder,
        env={**environ, **(more or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin.encode())
    assert b"Traceback" not in err
    return Outcome(process.returncode, out.decode(), err.decode())


async def dry_run(gateway: ScriptedGateway, folder: Path, *options: str, source: str = NEW) -> Outcome:
    at = {"FLINT_ADDRESS": gateway.address, "FLINT_KEY": "flint_1_secret"}
    return await flint(folder, "apply", "-f", "-", "--dry-run", *options, more=at, stdin=source)


async def test_a_dry_run_shows_what_changes_in_steps_and_in_text(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script.stored = {"1.0.0": OLD}
    gateway.script.findings = [workflows_pb2.Finding(severity=2, message="careful", line=3, column=5, rule="some-rule")]
    outcome = await dry_run(gateway, tmp_path)
    assert outcome.code == 0
    assert "-:3:5: warning: careful [some-rule]" in outcome.err
    assert [request.validate_only for request in gateway.script.applied] == [True]
    lines = outcome.out.splitlines()
    assert lines[0] == "greet 1.1.0 would be stored"
    assert "  changed step ask" in lines
    assert "      with.endpoint: http://old.example.com → http://new.example.com" in lines
    assert "      timeout.after: PT5S → PT9S" in lines
    assert "+      timeout: {after: PT9S}" in lines


async def test_a_dry_run_as_json(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script.stored = {"0.9.0": OLD, "1.0.0": NEW}
    told = json.loads((await dry_run(gateway, tmp_path, "-o", "json", "--against", "0.9.0")).out)
    assert (told["compared_with"], told["unchanged"], told["refused"]) == ("0.9.0", False, None)
    assert [(change["kind"], change["what"], change["name"]) for change in told["changes"]] == [
        ("changed", "document", ""),
        ("changed", "step", "ask"),
    ]
    assert told["diff"][0].startswith("--- greet 0.9.0")


async def test_a_dry_run_of_what_is_new_or_stored_or_taken(gateway: ScriptedGateway, tmp_path: Path) -> None:
    assert (await dry_run(gateway, tmp_path)).out == "greet 1.1.0 would be stored, a new workflow\n"
    gateway.script.stored = {"1.1.0": NEW}
    assert (await dry_run(gateway, tmp_path)).out.startswith("greet 1.1.0 would change nothing")
    gateway.script.stored = {"1.1.0": OLD, "1.2.0": OLD}
    outcome = await dry_run(gateway, tmp_path)
    assert outcome.code == 2
    assert "would be refused: version 1.1.0 is stored with other content" in outcome.out
    missing = await dry_run(gateway, tmp_path, "--against", "7.0.0")
    assert (missing.code, "no version 7.0.0" in missing.err) == (2, True)


async def test_against_belongs_to_a_dry_run(tmp_path: Path) -> None:
    outcome = await flint(tmp_path, "apply", "-f", "-", "--against", "1.0.0", stdin=OLD)
    assert (outcome.code, outcome.err) == (2, "Error: --against belongs to --dry-run\n")


async def test_the_schema_is_printed_or_written(tmp_path: Path) -> None:
    printed = await flint(tmp_path, "schema")
    assert json.loads(printed.out) == workflow_schema()
    assert (await flint(tmp_path, "schema", "--output", "s.json")).out == ""
    assert (tmp_path / "s.json").read_text() == printed.out


CONFIG = """\
[cluster]
internal_token = "hush"
[nats]
urls = ["nats://me:hush@n:1"]
[connections.orders]
kind = "sql"
url = "postgresql://me:hush@db/orders"
[secrets]
shop = "hush"
"""


async def test_config_shows_values_with_their_sources_and_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "flint.toml").write_text(CONFIG)
    environ = {"FLINT_LIMITS__WATCHES": "7", "FLINT_WORKER__LABELS": '{"zone": "a"}'}
    outcome = await flint(
        tmp_path, "config", "show", "-o", "json", "--config", "flint.toml", "--set", "log.level=debug", more=environ
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert "hush" not in outcome.out
    told = {entry["key"]: (entry["value"], entry["source"]) for entry in json.loads(outcome.out)}
    assert told["cluster.internal_token"] == ("********", "file flint.toml")
    assert told["cluster.name"] == ("flint", "default")
    assert told["nats.urls"] == (["nats://********@n:1"], "file flint.toml")
    assert told["connections.orders.url"] == ("********", "file flint.toml")
    assert told["connections.orders.pool_size"] == (5, "default")
    assert told["secrets.shop"] == ("********", "file flint.toml")
    assert told["limits.watches"] == (7, "environment variable FLINT_LIMITS__WATCHES")
    assert told["worker.labels.zone"] == ("a", "environment variable FLINT_WORKER__LABELS")
    assert told["log.level"] == ("debug", "flag --set log.level")
    assert told["postgres.dsn"] == ("", "default")


async def test_config_of_one_section_as_a_table(tmp_path: Path) -> None:
    plain = await flint(tmp_path, "config", "show", "log")
    assert [line.split() for line in plain.out.splitlines()] == [["KEY", "VALUE"], ["log.level", "info"]]
    changed = await flint(tmp_path, "config", "show", "--sources", "--changed", more={"FLINT_LOG__LEVEL": "error"})
    assert changed.out.splitlines()[1].split() == [
        "log.level",
        "error",
        "environment",
        "variable",
        "FLINT_LOG__LEVEL",
    ]
    unknown = await flint(tmp_path, "config", "show", "limit")
    assert (unknown.code, "did you mean 'limits'?" in unknown.err) == (2, True)


async def test_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    outcome = await flint(tmp_path, "config", "show", more={"FLINT_LOG__LEVEL": "loud", "FLINT_LOG__COLOUR": "x"})
    assert outcome.code == 2
    assert "log.level: " in outcome.err
    assert (
        "log.colour: is not a key of Flint's configuration (from environment variable FLINT_LOG__COLOUR)" in outcome.err
    )
