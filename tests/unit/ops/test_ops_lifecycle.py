from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

PROGRAM = """
import sys
from flint_ops.lifecycle import run_service
from flint_ops.logging import get_logger

log = get_logger("program")

async def main(settings, lifecycle):
    log.info("up", api_key="hunter2", run="r1")
    lifecycle.readiness.require("nats", lambda: None)
    await lifecycle.stopping.wait()
    log.info("drained")
    if sys.argv[-1] == "fail":
        raise RuntimeError("broken on the way out")

sys.exit(run_service("gateway", main, [*sys.argv[1:-1]], require=["cluster.internal_token"]))
"""


def start(folder: Path, *flags: str, mode: str = "end") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--set", "gateway.ops_listen=127.0.0.1:0", *flags, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("FLINT_")},
    )


def read_until(process: subprocess.Popen[str], event: str) -> dict[str, object]:
    assert process.stderr is not None
    for line in process.stderr:
        entry: dict[str, object] = json.loads(line)
        if entry["event"] == event:
            return entry
    raise AssertionError(f"ended without «{event}»")


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_serves_health_then_drains_on_sigterm(tmp_path: Path) -> None:
    process = start(tmp_path, "--set", "cluster.internal_token=t")
    with process:
        address = read_until(process, "started")["ops"]
        up = read_until(process, "up")
        assert up["service"] == "gateway"
        assert up["run"] == "r1"
        assert up["api_key"] == "[redacted]"
        assert get(f"http://{address}/livez")[0] == 200
        status, body = get(f"http://{address}/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "failing": {}})
        assert b"process_cpu_seconds_total" in get(f"http://{address}/metrics")[1]
        assert get(f"http://{address}/other")[0] == 404
        process.send_signal(signal.SIGTERM)
        read_until(process, "drained")
        read_until(process, "ended")
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_a_failure_exits_with_1(tmp_path: Path) -> None:
    with start(tmp_path, "--set", "cluster.internal_token=t", mode="fail") as process:
        read_until(process, "up")
        process.send_signal(signal.SIGTERM)
        failed = read_until(process, "failed")
        assert "broken on the way out" in str(failed["exception"])
        assert process.wait(10) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "cluster.internal_token: must be set (from default)"),
        (("--set", "gateway.port=1"), "gateway.port: is not a key"),
        (("--set", "cluster.internal_token=t", "--set", "gateway.ops_listen=nonsense"), "gateway.ops_listen"),
    ],
)
def test_a_wrong_configuration_is_one_paragraph_and_code_2(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    process = start(tmp_path, *flags)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert message in errors
    assert "Traceback" not in errors
