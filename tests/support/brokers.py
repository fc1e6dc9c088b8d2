"""Message brokers as child processes in temporary folders, for tests: mosquitto and RabbitMQ of the distribution.

Neither needs root or a fixed port. Where a broker is not installed, `start` skips the test and names its package.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from support.nats_server import free_port

__all__ = ["Mosquitto", "RabbitMq"]

_RABBIT: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_S: Final = 150.0


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the broker did not start:\n{log.read_text(errors='replace')[-2000:]}") from None
        time.sleep(0.05)  # waiting for another process to bind: there is no signal to wait for


class _Broker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "broker.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


class Mosquitto(_Broker):
    """MQTT 3.1.1 and 5. With `user` and `password` nobody else may connect; with `certificate` (PEM files), by TLS."""

    def start(self, user: str = "", password: str = "", certificate: tuple[Path, Path] | None = None) -> None:
        binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if binary is None:
            pytest.skip("mosquitto is not installed (Debian: apt-get install mosquitto)")
        self.folder.mkdir(parents=True, exist_ok=True)
        # Started by root it would become a user that cannot read this folder.
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", f"user {getpass.getuser()}"]
        if user:
            passwords = self.folder / "passwords"
            hasher = shutil.which("mosquitto_passwd") or "mosquitto_passwd"
            subprocess.run([hasher, "-c", "-b", str(passwords), user, password], check=True, capture_output=True)
            passwords.chmod(0o644)
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        else:
            lines.append("allow_anonymous true")
        if certificate is not None:
            lines += [f"certfile {certificate[0]}", f"keyfile {certificate[1]}"]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        _wait_for(self.port, self._run([binary, "-c", str(config)], dict(os.environ)), self.log)


class RabbitMq(_Broker):
    """AMQP 0-9-1: user `guest` with the password `guest`."""

    def start(self) -> None:
        epmd = shutil.which("epmd")
        if not _RABBIT.exists() or epmd is None:
            pytest.skip("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.file = false\nlog.console = true\n"
        )
        names = free_port()
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"flint{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            # One scheduler: it would take every core of the machine while it starts.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        _wait_for(names, self._run([epmd, "-port", str(names)], environment), self.log)
        _wait_for(self.port, self._run([str(_RABBIT)], environment), self.log)
