"""A container engine's command for tests: keeps its containers as files, runs what they would run in /bin/sh.

Usage: fake_engine.py STATE_FOLDER WORD… Understands the words that Flint uses. The image `alpine` is there;
`remote` can be pulled, others not.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FLAGS = {"--interactive", "--rm"}


def main(state: Path, words: list[str]) -> int:
    # Who sees the call in the log knows that `wait` and `logs` have their container, whoever removes it then.
    held = words[0] not in ("wait", "logs") or load(state, words[-1]) is not None
    with (state / "calls").open("a") as log:
        log.write(json.dumps(words) + "\n")
    images = state / "images"
    if not images.exists():
        images.write_text("alpine\n")
    command, rest = words[0], words[1:]
    if command == "version":
        print("1.0-fake")
    elif command == "image":
        return 0 if rest[1] in images.read_text().split() else fail("no such image")
    elif command == "pull":
        if rest[-1] != "remote":
            return fail(f"pull access denied for {rest[-1]}")
        images.write_text(images.read_text() + "remote\n")
    elif command == "create":
        return create(state, rest)
    elif command == "start":
        return start(state, rest)
    elif command == "container":
        return inspect(state, rest[1])
    elif not held:
        return fail("no such container")
    elif command == "logs":
        return logs(state, rest[-1])
    elif command == "wait":
        return wait(state, rest[-1])
    elif command == "ps":
        label = next(word for word in rest if word.startswith("label=")).removeprefix("label=")
        names = [path.stem for path in state.glob("*.json") if label in json.loads(path.read_text())["labels"]]
        print("\n".join(names))
    elif command in ("stop", "rm"):
        return end(state, rest[-1], remove=command == "rm")
    return 0


def fail(text: str, code: int = 1) -> int:
    print(f"Error: {text}", file=sys.stderr)
    return code


def create(state: Path, words: list[str]) -> int:
    options: dict[str, list[str]] = {}
    while words and words[0].startswith("--"):
        name = words.pop(0)
        options.setdefault(name, []).append("" if name in FLAGS else words.pop(0))
    image, *argv = words
    path = state / f"{options['--name'][0]}.json"
    if path.exists():
        return fail("the container name is already in use", 125)
    environment = {}
    for file in options.get("--env-file", []):
        environment = dict(line.split("=", 1) for line in Path(file).read_text().splitlines())
    container = {
        "image": image,
        "argv": [*options.get("--entrypoint", []), *argv] or ["/bin/echo", f"default of {image}"],
        "options": options,
        "labels": dict(label.split("=", 1) for label in options["--label"]),
        "environment": environment,
        "status": "created",
        "code": 0,
        "finished": "0001-01-01T00:00:00Z",
    }
    path.with_suffix(".code").unlink(missing_ok=True)
    write(path, json.dumps(container))
    return 0


def load(state: Path, name: str) -> dict[str, Any] | None:
    try:
        loaded: dict[str, Any] = json.loads((state / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return loaded


def start(state: Path, words: list[str]) -> int:
    name = words[-1]
    container = load(state, name)
    if container is None:
        return fail("no such container")
    attached = "--attach" in words
    with (state / f"{name}.out").open("wb") as out, (state / f"{name}.err").open("wb") as err:
        try:
            process = subprocess.Popen(
                container["argv"],
                stdin=None if "--interactive" in words else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={"PATH": "/usr/bin:/bin", **container["environment"]},
                start_new_session=True,
            )
        except OSError as error:
            return fail(f"exec: {error.strerror}", 127)
    save(state, name, container | {"status": "running", "pid": process.pid})
    if not attached:
        if os.fork() == 0:
            os.close(1)
            os.close(2)
            finish(state, name, process.wait())
            os._exit(0)
        return 0
    code = finish(state, name, process.wait())
    logs(state, name)
    return code


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """No other command changes a container meanwhile."""
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(path: Path, text: str) -> None:
    """Whole or not at all, for whoever reads."""
    new = path.with_name(f"{path.name}-{os.getpid()}")
    new.write_text(text)
    new.rename(path)


def save(state: Path, name: str, container: dict[str, Any]) -> None:
    """Unless somebody removed it meanwhile."""
    with alone(state):
        if (state / f"{name}.json").exists():
            write(state / f"{name}.json", json.dumps(container))


def finish(state: Path, name: str, code: int) -> int:
    container = load(state, name)
    code = 128 - code if code < 0 else code
    keep(state, name, code)
    if container is not None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime())
        save(state, name, container | {"status": "exited", "code": code, "finished": now})
        if "--rm" in container["options"]:
            (state / f"{name}.json").unlink(missing_ok=True)
    return code


def keep(state: Path, name: str, code: int) -> None:
    """For those who wait: the code, which outlives the container."""
    write(state / f"{name}.code", f"{code}\n")


def wait(state: Path, name: str) -> int:
    path = state / f"{name}.code"
    while not path.exists():
        time.sleep(0.01)
    print(path.read_text(), end="")
    return 0


def inspect(state: Path, name: str) -> int:
    container = load(state, name)
    if container is None:
        return fail("no such container")
    described = {
        "Config": {"Labels": container["labels"]},
        "State": {
            "Status": container["status"],
            "Running": container["status"] == "running",
            "ExitCode": container["code"],
            "OOMKilled": container["image"] == "greedy",
            "FinishedAt": container["finished"],
        },
    }
    print(json.dumps([described]))
    return 0


def logs(state: Path, name: str) -> int:
    while (container := load(state, name)) is not None and container["status"] == "running":
        time.sleep(0.01)
    sys.stdout.buffer.write((state / f"{name}.out").read_bytes())
    sys.stderr.buffer.write((state / f"{name}.err").read_bytes())
    return 0


def end(state: Path, name: str, *, remove: bool) -> int:
    container = load(state, name)
    if container is None:
        return fail("no such container")
    if container["status"] == "running":
        with suppress(ProcessLookupError):
            os.killpg(container["pid"], signal.SIGKILL)
        keep(state, name, 128 + signal.SIGKILL)
    if remove:
        with alone(state):
            (state / f"{name}.json").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
