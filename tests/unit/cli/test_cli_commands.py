"""The commands against a scripted gateway, as processes of their own: streams, exit codes, words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from support.eventually import eventually
from support.scripted_gateway import RUN, ScriptedGateway, change, refusal, run

RUN_ID = RUN.rpartition("/")[2]


@dataclass(frozen=True)
class Outcome:
    code: int | None
    out: str
    err: str


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as gateway:
        yield gateway


async def begin(folder: Path, gateway: ScriptedGateway | None, *arguments: str) -> asyncio.subprocess.Process:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLINT_")}
    if gateway is not None:
        environ |= {"FLINT_ADDRESS": gateway.address, "FLINT_KEY": "flint_1_secret"}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from flint_cli.main import main; main()",
        *arguments,
        cwd=folder,
        env=environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def flint(folder: Path, gateway: ScriptedGateway | None, *arguments: str, stdin: bytes = b"") -> Outcome:
    process = await begin(folder, gateway, *arguments)
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin)
    outcome = Outcome(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in outcome.err
    return outcome


async def test_run_waits_and_prints_the_output(gateway: ScriptedGateway, tmp_path: Path) -> None:
    await gateway.script.end(RUN)
    (tmp_path / "in.json").write_text('{"name": "Ada"}')
    outcome = await flint(tmp_path, gateway, "run", "greet", "--input", "@in.json", "--level", "1")
    assert (outcome.code, json.loads(outcome.out), outcome.err) == (0, {"ok": True}, "")
    assert json.loads(gateway.script.starts[0].input) == {"name": "Ada"}


async def test_run_reads_its_input_from_standard_input(gateway: ScriptedGateway, tmp_path: Path) -> None:
    await flint(tmp_path, gateway, "run", "greet", "--input", "-", "--no-wait", stdin=b"[1]")
    assert gateway.script.starts[0].input == b"[1]"


async def test_no_wait_prints_the_name(gateway: ScriptedGateway, tmp_path: Path) -> None:
    outcome = await flint(tmp_path, gateway, "run", "greet", "--no-wait", "--request-id", "once")
    assert (outcome.code, outcome.out.strip()) == (0, RUN)
    assert gateway.script.starts[0].request_id == "once"


async def test_watch_tells_progress_on_stderr_and_the_result_on_stdout(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    snapshot = runs_pb2.WatchRunResponse(snapshot=runs_pb2.RunSnapshot(run=run(change=1)), cursor=1)
    gateway.script.watch_scripts = [[snapshot, change(2, runs_pb2.Run.STATE_SUCCEEDED)]]
    outcome = await flint(tmp_path, gateway, "run", "greet", "--watch", "--output", "json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["state"] == "SUCCEEDED"
    assert json.loads(outcome.out)["id"] == RUN_ID
    assert "run succeeded" in outcome.err


@pytest.mark.parametrize(
    ("state", "code"), [(runs_pb2.Run.STATE_FAILED, 1), (runs_pb2.Run.STATE_CANCELLED, 3)], ids=["failed", "cancelled"]
)
async def test_the_exit_code_tells_the_outcome(
    gateway: ScriptedGateway, tmp_path: Path, state: runs_pb2.Run.State.ValueType, code: int
) -> None:
    problem = runs_pb2.Problem(title="Timeout", detail="took 5 s", instance="/do/0/slow", status=408)
    await gateway.script.answer(runs_pb2.AwaitedRun(name=RUN, run=run(state=state, error=problem)))
    outcome = await flint(tmp_path, gateway, "run", "greet")
    assert (outcome.code, outcome.out) == (code, "")
    if code == 1:
        assert "Timeout: took 5 s (status 408), at /do/0/slow" in outcome.err


async def test_a_run_that_takes_too_long_is_code_4(gateway: ScriptedGateway, tmp_path: Path) -> None:
    outcome = await flint(tmp_path, gateway, "run", "greet", "--timeout", "0.2")
    assert outcome.code == 4
    assert "0.2 s" in outcome.err


async def test_refusals_are_a_paragraph_and_code_2(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script.refusals = [refusal(grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND", "There is no workflow greet.")]
    outcome = await flint(tmp_path, gateway, "run", "greet")
    assert (outcome.code, outcome.err) == (2, "Error: There is no workflow greet.\n")


async def test_a_refused_definition_names_the_places(gateway: ScriptedGateway, tmp_path: Path) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="source:3:5", description="/do/0: unknown task")
    details = error_details_pb2.BadRequest(field_violations=[violation])
    gateway.script.refusals = [refusal(grpc.StatusCode.INVALID_ARGUMENT, "DEFINITION_INVALID", "1 error", details)]
    (tmp_path / "w.yaml").write_text("document: {}")
    outcome = await flint(tmp_path, gateway, "apply", "-f", "w.yaml")
    assert outcome.code == 2
    assert "w.yaml was refused" in outcome.err
    assert "w.yaml:3:5: error: /do/0: unknown task" in outcome.err


async def test_apply_says_what_it_did(gateway: ScriptedGateway, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("document: {}")
    assert (await flint(tmp_path, gateway, "apply", "-f", "w.yaml")).out == "greet 1.0.0 applied\n"
    outcome = await flint(tmp_path, gateway, "apply", "-f", "-", "-o", "json", stdin=b"document: {}")
    assert json.loads(outcome.out)["workflow"]["source"] == "document: {}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "greet", "--input", "{"), "--input is not JSON"),
        (("run", "greet", "--input", "@missing.json"), "missing.json: No such file"),
        (("run", "greet", "--watch", "--no-wait"), "exclude each other"),
        (("run",), "Missing argument"),
        (("runs", "list", "--state", "happy"), "expected one of queued"),
        (("runs", "list", "--since", "yesterday"), "90s, 15m, 2h or 7d"),
        (("nonsense",), "No such command"),
    ],
)
async def test_wrong_usage_is_code_2(
    gateway: ScriptedGateway, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = await flint(tmp_path, gateway, *arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.out == ""


async def test_without_a_flint_it_says_how_to_get_one(tmp_path: Path) -> None:
    outcome = await flint(tmp_path, None, "runs", "list")
    assert outcome.code == 2
    assert "flint up" in outcome.err


async def test_lists_as_table_and_as_json(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script.pages = {"": runs_pb2.ListRunsResponse(runs=[run()])}
    table = await flint(tmp_path, gateway, "runs", "list")
    assert table.out.splitlines()[1].split()[:4] == [RUN_ID, "greet", "1.0.0", "RUNNING"]
    document = json.loads((await flint(tmp_path, gateway, "runs", "list", "-o", "json")).out)
    assert document[0]["id"] == RUN_ID


async def test_ctrl_c_is_code_130_and_tells_how_to_come_back(gateway: ScriptedGateway, tmp_path: Path) -> None:
    process = await begin(tmp_path, gateway, "run", "greet")
    await eventually(lambda: gateway.script.awaited == [RUN], timeout_s=20)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 130
    assert out == b""
    assert f"The run goes on: flint runs watch {RUN_ID}" in err.decode()
    assert "Traceback" not in err.decode()


async def test_version(tmp_path: Path) -> None:
    assert (await flint(tmp_path, None, "version")).out.startswith("flint ")


DEFINITION = """
document: {dsl: 1.0.3, namespace: default, name: greet, version: 1.0.0}
timeout: {after: {seconds: 5}}
do:
  - greet:
      set: {text: "${ EXPRESSION }"}
"""


async def test_lint_finds_nothing_in_a_good_definition(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(DEFINITION.replace("EXPRESSION", "[.name | ascii_downcase] | join($workflow.id)"))
    outcome = await flint(tmp_path, None, "lint", "w.yaml")
    assert (outcome.code, outcome.out, outcome.err) == (0, "w.yaml: nothing found\n", "")


@pytest.mark.parametrize(
    ("expression", "place"),
    [(". + $nobody", "w.yaml:6:"), ("[.[] | nonsense(1)]", "w.yaml:6:23: ")],
    ids=["plain", "guarded"],
)
async def test_lint_names_line_column_and_rule(tmp_path: Path, expression: str, place: str) -> None:
    (tmp_path / "w.yaml").write_text(DEFINITION.replace("EXPRESSION", expression))
    outcome = await flint(tmp_path, None, "lint", "w.yaml")
    assert outcome.code == 1
    assert outcome.out.startswith(place)
    assert outcome.out.rstrip().endswith("[expression]")
    found = json.loads((await flint(tmp_path, None, "lint", "w.yaml", "-o", "json")).out)
    assert found[0]["severity"] == "error"


async def test_the_example_is_without_findings(tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "examples" / "order-intake" / "workflow.yaml"
    outcome = await flint(tmp_path, None, "lint", str(example))
    assert (outcome.code, outcome.out) == (0, f"{example}: nothing found\n")
