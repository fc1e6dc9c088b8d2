from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def test_the_program_waits_for_its_upstreams_and_ends_on_sigterm(tmp_path: Path, nats: Any) -> None:
    flags = [
        "cluster.internal_token=t",
        "gateway.listen=127.0.0.1:0",
        "gateway.ops_listen=127.0.0.1:0",
        "gateway.schedulers=127.0.0.1:1",
        f"nats.urls={nats.url}",
    ]
    command = [sys.executable, "-m", "flint_gateway"]
    for flag in flags:
        command += ["--set", flag]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FLINT_")}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: dict[str, dict[str, Any]] = {}
        while "serving" not in lines:
            line = json.loads(process.stderr.readline())
            lines[line["event"]] = line
        try:
            urllib.request.urlopen(f"http://{lines['started']['ops']}/readyz", timeout=5)
            raise AssertionError("ready without a scheduler")
        except urllib.error.HTTPError as error:
            with error:
                assert set(json.loads(error.read())["failing"]) == {"scheduler"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
