"""A real nats-server with JetStream, as a child process in a temporary folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class NatsServer:
    """Start, kill, restart with or without its store. Ports stay the same over restarts."""

    def __init__(self, folder: Path, max_payload: int = 1_048_576) -> None:
        self.folder = folder
        self.port = free_port()
        self.max_payload = max_payload
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "nats.conf"
        config.write_text(
            f"host: 127.0.0.1\nport: {self.port}\nmax_payload: {self.max_payload}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self.store))}, max_file_store: 100GB }}\n"
        )
        binary = Path(sys.executable).parent / "nats-server"
        with (self.folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen([str(binary), "-c", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    if probe.recv(4) == b"INFO":
                        return
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)  # waiting for another process to bind: there is no signal to wait for

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _stopped(self) -> bool:
        """Whether no thread of it runs, as far as /proc tells."""
        assert self._process is not None
        states = []
        for thread in Path(f"/proc/{self._process.pid}/task").glob("*/stat"):
            try:
                states.append(thread.read_text().rpartition(")")[2].split()[0])
            except FileNotFoundError:
                continue  # that thread has ended
        return all(state in "TZ" for state in states)

    def pause(self) -> None:
        """SIGSTOP: alive, but silent."""
        import signal

        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 2
        while not self._stopped() and time.monotonic() < deadline:
            time.sleep(0.001)  # the signal reaches the threads one after the other

    def resume(self) -> None:
        import signal

        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Deletes the store; only while it is down."""
        assert self._process is None
        shutil.rmtree(self.store, ignore_errors=True)
