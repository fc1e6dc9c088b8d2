"""The words of the engine's `create`: what a definition asks for, within what the worker allows."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any, Final

from flint_core.durations import DurationError, parse_duration
from flint_core.problems import ProblemType
from flint_ops.config import ContainerSettings
from flint_worker.executors import ExecutionFailed, ResolvedCall
from flint_worker.executors.arguments import failure
from flint_worker.executors.programs import environment_of, stdin_of, words_of

__all__ = ["AFTER_LABEL", "KEY_LABEL", "UNTIL_LABEL", "Order", "order_of"]

KEY_LABEL: Final = "dev.flint.key"
AFTER_LABEL: Final = "dev.flint.remove-after"
"""Seconds after its end when it is to be removed."""
UNTIL_LABEL: Final = "dev.flint.until"
"""Unix time after which no worker wants it any more."""
_RUN_LABEL: Final = "dev.flint.run"
_MARGIN_S: Final = 3600
_HIGHEST_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Order:
    """A container to create. `words` come after `create`; `{file}` among them is the environment's file."""

    name: str
    key: str
    image: str
    words: tuple[str, ...]
    environment: bytes
    stdin: bytes
    pull: str
    cleanup: str


def order_of(call: ResolvedCall, settings: ContainerSettings) -> Order:
    """The order for a call whose arguments fit the schema. Raises ExecutionFailed."""
    arguments = call.arguments
    digest = hashlib.sha256(call.idempotency_key.encode()).hexdigest()
    name = arguments.get("name") or f"flint-{digest[:32]}"
    lifetime = arguments.get("lifetime", {"cleanup": "always"})
    waits = arguments.get("await", True)
    stdin = stdin_of(call)
    options = [
        *("--name", name, "--label", f"{KEY_LABEL}={digest}", "--label", f"{_RUN_LABEL}={call.run_id}"),
        *("--memory", str(settings.memory_bytes), "--cpus", str(settings.cpus)),
        *("--pids-limit", str(settings.processes), "--network", settings.network),
        *("--security-opt", "no-new-privileges", "--ulimit", "core=0", "--pull", "never"),
        *_lifetime(call, lifetime, settings, waits),
        *_ports(call, arguments.get("ports", {}), settings),
        *_volumes(call, arguments.get("volumes", {}), settings),
    ]
    environment = _environment_file(call)
    if environment:
        options += ["--env-file", "{file}"]
    if stdin:
        options.append("--interactive")
    command = arguments.get("command")
    words = words_of(call)
    if isinstance(command, str):
        options += ["--entrypoint", "/bin/sh"]
        words = ["-c", command, "sh", *words]
    elif command is not None:
        options += ["--entrypoint", command[0]]
        words = [*command[1:], *words]
    image = arguments["image"]
    pull = arguments.get("pullPolicy", "ifNotPresent")
    return Order(name, digest, image, (*options, image, *words), environment, stdin, pull, lifetime["cleanup"])


def _lifetime(
    call: ResolvedCall, lifetime: dict[str, Any], settings: ContainerSettings, waits: bool
) -> tuple[str, ...]:
    if lifetime["cleanup"] == "eventually":
        try:
            seconds = parse_duration(lifetime.get("after", {})).length_ms(int(time.time() * 1000)) / 1000
        except DurationError as error:
            detail = f"/lifetime/after: {error}"
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail) from None
        return ("--label", f"{AFTER_LABEL}={seconds}")
    if lifetime["cleanup"] == "never":
        return ()
    until = int(time.time() + settings.timeout_s + settings.pull_s + _MARGIN_S)
    return ("--label", f"{UNTIL_LABEL}={until}", *(() if waits else ("--rm",)))


def _environment_file(call: ResolvedCall) -> bytes:
    variables = environment_of(call)
    for name, value in variables.items():
        if "\n" in value or "\r" in value:
            detail = f"/environment/{name}: holds a line break; pass such a value through stdin"
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail)
    return "".join(f"{name}={value}\n" for name, value in variables.items()).encode()


def _ports(call: ResolvedCall, ports: dict[str, Any], settings: ContainerSettings) -> list[str]:
    if ports and not settings.publish_ports:
        detail = "this worker publishes no ports; its operator allows it with worker.containers.publish_ports"
        raise failure(call, ProblemType.CONFIGURATION, 400, "Ports are not allowed", detail)
    words: list[str] = []
    for outer, inner in ports.items():
        port, _, protocol = str(inner).partition("/")
        sane = port.isdecimal() and 0 < int(port) <= _HIGHEST_PORT and int(outer) <= _HIGHEST_PORT
        if not sane or protocol not in ("", "tcp", "udp"):
            detail = f"/ports/{outer}: a port of the machine to a port of the container, such as 8080: 80"
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail)
        words += ["--publish", f"{outer}:{port}/{protocol or 'tcp'}"]
    return words


def _volumes(call: ResolvedCall, volumes: dict[str, str], settings: ContainerSettings) -> list[str]:
    words: list[str] = []
    for outer, inner in volumes.items():
        path, _, mode = inner.partition(":")
        if not path.startswith("/") or "," in path or mode not in ("", "ro", "rw"):
            detail = f"/volumes/{outer}: an absolute path in the container, with :ro or not"
            raise failure(call, ProblemType.VALIDATION, 400, "Invalid arguments", detail)
        source, read_only = _allowed(call, outer, settings)
        suffix = ",readonly" if read_only or mode == "ro" else ""
        words += ["--mount", f"type=bind,source={source},target={path}{suffix}"]
    return words


def _allowed(call: ResolvedCall, outer: str, settings: ContainerSettings) -> tuple[str, bool]:
    """The real path of a folder that may be mounted, and whether only for reading. Raises ExecutionFailed."""
    source = os.path.realpath(outer) if outer.startswith("/") and "\0" not in outer else ""
    for entry in settings.volumes:
        folder, read_only = (entry[:-3], True) if entry.endswith(":ro") else (entry, False)
        root = os.path.realpath(folder)
        if source and "," not in source and (source == root or source.startswith(root.rstrip("/") + "/")):
            return source, read_only
    raise _refused(call, outer)


def _refused(call: ResolvedCall, outer: str) -> ExecutionFailed:
    detail = f"/volumes: {outer[:200]} is not below a folder of worker.containers.volumes on this worker"
    return failure(call, ProblemType.CONFIGURATION, 400, "Volume not allowed", detail)
