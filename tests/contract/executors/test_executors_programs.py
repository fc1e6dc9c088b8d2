"""The executors script and shell with real programs, well behaved and hostile."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.eventually import eventually

from flint_core.problems import ProblemType
from flint_ops.config import ScriptSettings, Settings, WorkerSettings
from flint_worker.executors import ExecutionFailed, Executor, ResolvedCall
from flint_worker.executors.package_folders import WorkersFolder, taken_over
from flint_worker.executors.running import program_executors
from flint_worker.processes import ProcessRunner, Program, ProgramLimits

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="NODE.JS IS NOT ON THIS MACHINE: JavaScript is not tested")


WITHOUT_NAMESPACES: dict[str, Any] = {"isolation": "none"}
if os.geteuid() == 0:
    # Root's programs are not counted by the kernel, so they need another user, and Python where that user finds it.
    WITHOUT_NAMESPACES |= {"user": "nobody", "python": shutil.which("python3", path="/usr/bin:/usr/local/bin") or ""}


class Web:
    """Stands where the executor `http` does; gives one script."""

    unfinished = 0

    def __init__(self) -> None:
        self.asked: list[ResolvedCall] = []

    async def execute(self, call: ResolvedCall) -> Any:
        self.asked.append(call)
        return "cHJpbnQoImZldGNoZWQiKQ=="

    async def close(self) -> None:
        return None


def settings(folder: Path, **scripts: Any) -> Settings:
    few = {
        "folder": str(folder),
        "timeout_s": 20,
        "grace_s": 0.3,
        "memory_bytes": 256 * 2**20,
        "processes": 40,
        "output_bytes": 100_000,
        "file_bytes": 2**20,
    }
    return Settings(worker=WorkerSettings(scripts=ScriptSettings(**(few | scripts))))


@pytest.fixture
def work() -> Iterator[Path]:
    """Programs may run as another user, who cannot enter the test's own folder."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def mark() -> Iterator[Path]:
    """A file that programs may write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "mark"
        file.touch()
        file.chmod(0o666)
        yield file


@pytest.fixture(params=["auto", "none"])
async def executors(request: pytest.FixtureRequest, work: Path) -> AsyncIterator[dict[str, Executor]]:
    built = program_executors(settings(work, **(WITHOUT_NAMESPACES if request.param == "none" else {})), Web())
    yield built
    for executor in built.values():
        await executor.close()
    assert left(work) == []


def call(function: str, deadline_s: float | None = 30, **arguments: Any) -> ResolvedCall:
    return ResolvedCall(function, arguments, "key-1", "/do/0/x", "run-1", "", deadline_s)


async def shell(executors: dict[str, Executor], command: str, **more: Any) -> Any:
    return await executors["shell"].execute(call("shell", command=command, **more))


async def python(executors: dict[str, Executor], code: str, **more: Any) -> Any:
    return await executors["script"].execute(call("script", language="python", code=code, **more))


async def failed(work: Any) -> ExecutionFailed:
    with pytest.raises(ExecutionFailed) as raised:
        await work
    return raised.value


def alive(mark: str) -> list[int]:
    """Processes whose command line holds the mark. One that ends while they are listed counts as gone."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if mark in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def left(folder: Path) -> list[str]:
    """What programs left in the folder of work folders."""
    return [path.name for path in folder.iterdir()]


async def test_shell_gives_what_it_wrote(executors: dict[str, Executor]) -> None:
    assert await shell(executors, "echo hello") == "hello\n"
    assert await shell(executors, "echo hello", **{"return": "stderr"}) == ""
    assert await shell(executors, "exit 7", **{"return": "code"}) == 7
    assert await shell(executors, "echo hello", **{"return": "none"}) is None
    everything = await shell(executors, "echo out; echo err >&2; exit 3", **{"return": "all"})
    assert everything == {"code": 3, "stdout": "out\n", "stderr": "err\n"}


async def test_shell_arguments_are_words_and_never_code(executors: dict[str, Executor]) -> None:
    evil = "$(touch pwned); `id` \" ' && x"
    assert await shell(executors, 'printf "%s|" "$@"; ls', arguments=[evil, 5, True, None]) == f"{evil}|5|true||"
    assert await shell(executors, "echo", arguments={"Hello": None, "World": None}) == "Hello World\n"
    assert await shell(executors, 'printf "%s\\n"\n', arguments={"--user": evil}) == f"--user={evil}\n"


async def test_shell_stdin_and_environment(executors: dict[str, Executor]) -> None:
    assert await shell(executors, "cat", stdin="größe") == "größe"
    assert json.loads(await shell(executors, "cat", stdin={"a": [1]})) == {"a": [1]}
    assert await shell(executors, "cat") == ""
    large = "x" * 90_000
    assert await shell(executors, "cat", stdin=large) == large
    said = await shell(executors, "env", environment={"NAME": "a\nb", "N": 5, "OFF": False})
    assert "NAME=a\nb\n" in said
    assert "N=5\n" in said
    assert "OFF=false\n" in said
    assert "FLINT_IDEMPOTENCY_KEY=key-1\n" in said


async def test_nothing_of_the_worker_is_inherited(
    executors: dict[str, Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLINT_CLUSTER__INTERNAL_TOKEN", "hush")
    with Path("/dev/null").open() as kept:  # noqa: ASYNC230
        os.set_inheritable(kept.fileno(), True)
        said = await shell(executors, "env; ls /proc/self/fd; pwd; echo home=$HOME; ulimit -c")
    lines = said.splitlines()
    names = {line.split("=")[0] for line in lines if "=" in line}
    assert names <= {"PATH", "LANG", "HOME", "TMPDIR", "PWD", "FLINT_IDEMPOTENCY_KEY", "FLINT_RUN_ID", "home"}
    assert [line for line in lines if line.isdigit()] == ["0", "1", "2", "3", "0"]  # 3 is ls's own
    assert "NoNewPrivs:\t1" in await shell(executors, "cat /proc/self/status")


async def test_an_exit_code_is_a_problem(executors: dict[str, Executor]) -> None:
    error = await failed(shell(executors, "echo why >&2; exit 3"))
    assert error.problem.type == ProblemType.RUNTIME
    assert (error.problem.title, error.problem.detail) == ("The command ended with exit code 3", "why")
    error = await failed(shell(executors, "kill -SEGV $$"))
    assert error.problem.title == "The command was ended by SIGSEGV"


async def test_bad_arguments(executors: dict[str, Executor]) -> None:
    for bad in ({"arguments": ["a\0b"]}, {"environment": {"A": "a\0b"}}, {"command": "a\0"}, {"return": "x"}):
        error = await failed(executors["shell"].execute(call("shell", **({"command": "true"} | bad))))
        assert error.problem.type == ProblemType.VALIDATION
    error = await failed(shell(executors, "true", arguments=["x" * 200_000]))
    assert error.problem.status == 413


async def test_python_arguments_as_argv_and_as_variables(executors: dict[str, Executor]) -> None:
    assert await python(executors, "import sys\nprint(sys.argv[1:])", arguments=["a b", 1]) == "['a b', '1']\n"
    values = {"order": {"id": 5, "lines": [1, None, True]}, "name": "ü"}
    code = "print(order['lines'], name, __name__)"
    assert await python(executors, code, arguments=values) == "[1, None, True] ü __main__\n"
    large = {"text": "x" * 3_000_000}
    assert await python(executors, "print(len(text))", arguments=large) == "3000000\n"
    error = await failed(python(executors, "1", arguments={"__name__": "x"}))
    assert error.problem.type == ProblemType.VALIDATION


async def test_python_has_its_standard_library_and_nothing_of_flint(executors: dict[str, Executor]) -> None:
    code = """
import json, os, sys
try:
    import flint_core
    print("flint")
except ImportError:
    print("none", sys.flags.isolated, sys.dont_write_bytecode, sorted(os.listdir(".")))
"""
    assert await python(executors, code) == "none 1 True ['script.py']\n"


async def test_a_python_error_shows_its_own_lines_only(executors: dict[str, Executor]) -> None:
    error = await failed(python(executors, "def f():\n    raise ValueError('no')\nf()"))
    assert error.problem.detail.endswith("ValueError: no")
    assert 'File "script.py", line 2' in error.problem.detail
    assert "_order" not in error.problem.detail
    assert await python(executors, "import sys; sys.exit(4)", **{"return": "code"}) == 4
    error = await failed(python(executors, "def"))
    assert "SyntaxError" in error.problem.detail


async def test_a_script_from_a_source(work: Path) -> None:
    web = Web()
    built = program_executors(settings(work), web)
    arguments = {"language": "python", "source": {"endpoint": "https://example.com/a.py"}}
    assert await built["script"].execute(call("script", **arguments)) == "fetched\n"
    assert web.asked[0].arguments["endpoint"] == "https://example.com/a.py"
    for executor in built.values():
        await executor.close()


@needs_node
async def test_js_arguments_as_argv_and_as_variables(executors: dict[str, Executor]) -> None:
    async def js(code: str, **more: Any) -> Any:
        return await executors["script"].execute(call("script", language="js", code=code, **more))

    assert await js("console.log(greeting.en, n + 1)", arguments={"greeting": {"en": "hi"}, "n": 1}) == "hi 2\n"
    assert await js("console.log(process.argv.slice(2).join('|'))", arguments=["a b", 2]) == "a b|2\n"
    module = (
        "import fs from 'node:fs';\nconst s = await Promise.resolve(fs.readFileSync(0, 'utf8'));\nconsole.log(s + n);"
    )
    assert await js(module, arguments={"n": 3}, stdin="in") == "in3\n"
    assert await js("console.log(require('node:path').sep)") == "/\n"
    error = await failed(js("throw new Error('no')"))
    assert "Error: no" in error.problem.detail


async def test_languages_that_are_not_there(work: Path) -> None:
    built = program_executors(settings(work, node="/nowhere/node", offered=["js"]), Web())
    assert set(built) <= {"script", "container"}
    for language in ("js", "python"):
        error = await failed(built["script"].execute(call("script", language=language, code="1")))
        assert (error.problem.type, error.problem.title) == (ProblemType.CONFIGURATION, "Language not available")
    assert "shell" not in built
    await built["script"].close()
    assert set(program_executors(settings(work, offered=[]), Web())) <= {"container"}


async def test_packages_need_the_operators_leave_and_a_pin(work: Path, tmp_path: Path) -> None:
    built = program_executors(settings(work), Web())
    error = await failed(python(built, "1", packages=["six==1.17.0"]))
    assert (error.problem.type, error.problem.title) == (ProblemType.CONFIGURATION, "Packages are not allowed")
    await built["script"].close()
    kept = str(tmp_path / "packages")
    built = program_executors(settings(work, packages=["Some.Thing"], packages_folder=kept), Web())
    error = await failed(python(built, "1", packages=["six==1.17.0"]))
    assert error.problem.title == "Package not allowed"
    for unpinned in ("some-thing", "some_thing>=1", "some-thing==1.*", "--index-url=x", "some-thing @ file:///x"):
        error = await failed(python(built, "1", packages=[unpinned]))
        assert error.problem.type == ProblemType.VALIDATION
    await built["script"].close()


async def test_packages_are_installed_once_and_imported(work: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "index" / "flint-sample"
    wheels.mkdir(parents=True)
    make_wheel(wheels)
    index = (tmp_path / "index").as_uri()
    kept = tmp_path / "packages"
    scripts = {"packages": ["flint-sample"], "packages_folder": str(kept), "packages_index": index}
    built = program_executors(settings(work, **scripts), Web())
    code = "import flint_sample; print(flint_sample.VALUE)"
    wanted = ["flint-sample==1.0"]
    said = await asyncio.gather(*(python(built, code, packages=wanted) for _ in range(3)))
    assert said == ["42\n"] * 3
    (own,) = kept.iterdir()
    assert len([path for path in own.iterdir() if path.name[0] != "."]) == 1
    shutil.rmtree(wheels)
    assert await python(built, code, packages=wanted) == "42\n"
    error = await failed(python(built, "1", packages=["flint-sample==2.0"]))
    assert error.problem.title == "The packages cannot be installed"
    await built["script"].close()
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        "file.write_text('VALUE = 666')",
        "stat = file.stat(); file.write_text('VALUE = 13'); os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))",
        "(file.parent / 'json.py').write_text('')",
        "file.unlink()",
    ],
)
async def test_a_set_that_a_script_changed_is_installed_anew(work: Path, tmp_path: Path, change: str) -> None:
    wheels = tmp_path / "index" / "flint-sample"
    wheels.mkdir(parents=True)
    make_wheel(wheels)
    kept = tmp_path / "packages"
    index = (tmp_path / "index").as_uri()
    scripts = {"packages": ["flint-sample"], "packages_folder": str(kept), "packages_index": index}
    built = program_executors(settings(work, user="", **scripts), Web())
    wanted = ["flint-sample==1.0"]
    hostile = f"import os, pathlib, flint_sample; file = pathlib.Path(flint_sample.__file__); {change}; print('done')"
    assert await python(built, hostile, packages=wanted) == "done\n"
    code = "import flint_sample, json; print(flint_sample.VALUE, bool(json.loads))"
    assert await python(built, code, packages=wanted) == "42 True\n"
    await built["script"].close()
    assert list(kept.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as another user")
async def test_a_set_cannot_be_changed_by_another_user(
    work: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = WITHOUT_NAMESPACES["python"]
    asked = [system or "false", "-m", "pip", "--version"]
    if (await asyncio.to_thread(subprocess.run, asked, capture_output=True, check=False)).returncode:
        pytest.skip("no Python with pip that other users can reach")
    monkeypatch.setattr(sys, "executable", system)
    wheels = mark.parent / "index" / "flint-sample"
    wheels.mkdir(parents=True)
    make_wheel(wheels)
    kept = mark.parent / "packages"
    scripts = {"packages": ["flint-sample"], "packages_folder": str(kept), "python": system, "user": "nobody"}
    built = program_executors(settings(work, packages_index=(mark.parent / "index").as_uri(), **scripts), Web())
    wanted = ["flint-sample==1.0"]
    hostile = """
import os, pathlib, flint_sample
file = pathlib.Path(flint_sample.__file__)
for change in (
    lambda: file.write_text("VALUE = 666"),
    lambda: file.chmod(0o777),
    lambda: (file.parent / "json.py").write_text(""),
    lambda: file.parent.rename(str(file.parent) + "-old"),
    lambda: file.unlink(),
):
    try:
        change()
    except PermissionError:
        continue
    print("changed")
print(flint_sample.VALUE)
"""
    assert await python(built, hostile, packages=wanted) == "42\n"
    assert await python(built, hostile, packages=wanted) == "42\n"
    (place,) = kept.iterdir()
    assert {path.stat().st_uid for path in [kept, place, *place.rglob("*")]} == {0}
    kept.chmod(0o777)
    shutil.rmtree(place)
    error = await failed(python(built, "1", packages=wanted))
    assert error.problem.title == "The packages cannot be kept"
    await built["script"].close()


def test_what_is_taken_over_holds_no_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "tool").write_text("x")
    (source / "deep" / "tool").chmod(0o777)
    taken_over(source, tmp_path / "one", os.geteuid())
    assert (tmp_path / "one" / "deep" / "tool").stat().st_mode & 0o777 == 0o755
    with pytest.raises(OSError, match="no file of its own"):
        taken_over(source, tmp_path / "two", os.geteuid() + 1)
    (source / "deep" / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError):
        taken_over(source, tmp_path / "three", os.geteuid())
    (source / "deep" / "link").unlink()
    (source / "folder").symlink_to("/etc")
    with pytest.raises(OSError, match="holds a link"):
        taken_over(source, tmp_path / "four", os.geteuid())


def test_folders_of_workers_that_died_are_removed(tmp_path: Path) -> None:
    alive = WorkersFolder(tmp_path)
    left = tmp_path / "worker-left"
    (left / "set").mkdir(parents=True)
    os.utime(alive.path, (0, 0))
    os.utime(left, (0, 0))
    another = WorkersFolder(tmp_path)
    assert set(tmp_path.iterdir()) == {alive.path, another.path}
    alive.close()
    another.close()
    assert list(tmp_path.iterdir()) == []


def make_wheel(folder: Path) -> None:
    import base64
    import hashlib
    import zipfile

    name = "flint_sample-1.0"
    files = {
        "flint_sample.py": b"VALUE = 42\n",
        f"{name}.dist-info/METADATA": b"Metadata-Version: 2.1\nName: flint-sample\nVersion: 1.0\n",
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(content)}\n"
        archive.writestr(f"{name}.dist-info/RECORD", record + f"{name}.dist-info/RECORD,,\n")
    link = f"{name}-py3-none-any.whl"
    (folder / "index.html").write_text(f'<a href="{link}">{link}</a>')


async def test_a_late_program_is_ended(executors: dict[str, Executor]) -> None:
    arguments = {"command": "echo partly >&2; sleep 91.25"}
    # Long enough for the program to have begun on a busy machine.
    error = await failed(executors["shell"].execute(call("shell", 4.0, **arguments)))
    assert (error.problem.type, error.problem.detail) == (ProblemType.TIMEOUT, "partly")
    assert alive("sleep 91.25") == []


async def test_a_program_that_ignores_sigterm_is_killed(executors: dict[str, Executor]) -> None:
    arguments = {"command": "trap '' TERM INT HUP; sleep 92.25 & while :; do wait; done"}
    error = await failed(executors["shell"].execute(call("shell", 0.5, **arguments)))
    assert error.problem.type == ProblemType.TIMEOUT
    assert alive("sleep 92.25") == []


@pytest.mark.parametrize("isolation", ["auto", "none"])
async def test_sigterm_gives_time_to_clean_up(isolation: str, work: Path, mark: Path) -> None:
    chosen = WITHOUT_NAMESPACES if isolation == "none" else {}
    built = program_executors(settings(work, **(chosen | {"grace_s": 30})), Web())
    command = f"trap 'echo bye > {mark}; exit' TERM; echo ready > {mark}; while :; do sleep 0.05; done"
    task = asyncio.create_task(shell(built, command))
    await eventually(lambda: mark.read_text() == "ready\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: mark.read_text() == "bye\n")
    for executor in built.values():
        await executor.close()
    assert left(work) == []


async def test_a_cancelled_call_ends_its_program(executors: dict[str, Executor], work: Path) -> None:
    task = asyncio.create_task(shell(executors, "sleep 93.25 & setsid sleep 93.25 & sleep 93.25"))
    await eventually(lambda: len(alive("sleep 93.25")) >= 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: executors["script"].unfinished == 0)
    assert alive("sleep 93.25") == []
    assert left(work) == []


async def test_children_that_stay_behind_are_ended(executors: dict[str, Executor]) -> None:
    daemon = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        os.execv("/bin/sleep", ["sleep", "94.25"])
    os._exit(0)
os.wait()
print("started")
"""
    assert await python(executors, daemon) == "started\n"
    assert await shell(executors, "sleep 94.25 & setsid nohup sleep 94.25 >/dev/null 2>&1 & echo x") == "x\n"
    assert alive("sleep 94.25") == []


async def test_closing_its_output_is_not_its_end(executors: dict[str, Executor]) -> None:
    assert await shell(executors, "exec >&- 2>&- <&-; sleep 0.3; exit 5", **{"return": "code"}) == 5


async def test_without_a_work_folder_a_step_fails_and_says_why(tmp_path: Path) -> None:
    built = program_executors(settings(tmp_path / "gone"), Web())
    problem = (await failed(shell(built, "true"))).problem
    assert (problem.type, problem.status) == (ProblemType.RUNTIME, 503)
    assert problem.detail == "No such file or directory"
    for executor in built.values():
        await executor.close()


async def test_endless_output_is_cut_off(executors: dict[str, Executor]) -> None:
    for command in ("yes", "yes >&2", "cat /dev/zero"):
        error = await failed(shell(executors, command))
        assert error.problem.type == ProblemType.PAYLOAD_TOO_LARGE
    assert len(await shell(executors, "head -c 100000 /dev/zero | tr '\\0' x")) == 100_000


async def test_a_fork_bomb_ends_itself_only(executors: dict[str, Executor]) -> None:
    # It doubles nine times and stops there: a bomb that the worker fails to stop must not take the machine with it.
    bomb = 'f(){ if [ "$1" -gt 0 ]; then f $(($1 - 1)) & f $(($1 - 1)) & fi; exec sleep 95.25; }; f 9'
    error = await failed(shell(executors, bomb))
    assert error.problem.status in (408, 429, 500)  # 408: it could not fork any more, and sat there
    await eventually(lambda: alive("sleep 95.25") == [])
    assert await shell(executors, "echo fine") == "fine\n"


async def test_many_processes_at_once_are_too_many(executors: dict[str, Executor]) -> None:
    error = await failed(shell(executors, "for i in $(seq 60); do sleep 96.25 & done; wait"))
    assert error.problem.status in (429, 500)
    assert alive("sleep 96.25") == []


async def test_memory_is_bounded(executors: dict[str, Executor]) -> None:
    error = await failed(python(executors, "a = [bytes(10**7) for _ in range(10**6)]"))
    assert "MemoryError" in error.problem.detail or error.problem.status == 429
    several = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(os.urandom(1)) * (90 * 2**20)
        time.sleep(60)
        os._exit(0)
os.wait()
"""
    error = await failed(python(executors, several))
    assert error.problem.title == "The script used too much memory"


SHARED = {
    "mapped": "import mmap\nheld = mmap.mmap(-1, SIZE)\nfor at in range(0, SIZE, 4096): held[at] = 1\n",
    "memfd": """
import os
files = [os.memfd_create(str(n)) for n in range(SIZE // 2**20)]
for file in files: os.write(file, bytes(2**20 - 1))
""",
    "among children": """
import mmap, os
for _ in range(4):
    if os.fork() == 0:
        held = mmap.mmap(-1, SIZE // 4)
        for at in range(0, SIZE // 4, 4096): held[at] = 1
        __import__("time").sleep(20)
        os._exit(0)
os.wait()
""",
}


@pytest.mark.parametrize("how", SHARED)
async def test_shared_memory_is_bounded(work: Path, how: str) -> None:
    built = program_executors(settings(work, memory_bytes=128 * 2**20), Web())
    code = SHARED[how].replace("SIZE", str(200 * 2**20)) + "\nimport time\ntime.sleep(20)\n"
    error = await failed(python(built, code))
    assert (error.problem.type, error.problem.title) == (
        ProblemType.LIMIT_EXCEEDED,
        "The script used too much memory",
    )
    for executor in built.values():
        await executor.close()


async def test_memory_that_processes_share_counts_once(work: Path) -> None:
    built = program_executors(settings(work, memory_bytes=128 * 2**20), Web())
    code = """
import mmap, os, time
held = mmap.mmap(-1, 60 * 2**20)
for at in range(0, len(held), 4096): held[at] = 1
for _ in range(3):
    if os.fork() == 0:
        for at in range(0, len(held), 4096): held[at]
        time.sleep(0.5)
        os._exit(0)
for _ in range(3): os.wait()
print("shared")
"""
    assert await python(built, code) == "shared\n"
    error = await failed(python(built, "import mmap; mmap.mmap(-1, 6 * 2**30)"))
    assert "Cannot allocate memory" in error.problem.detail
    for executor in built.values():
        await executor.close()


@needs_node
async def test_memory_of_js_is_bounded(executors: dict[str, Executor]) -> None:
    code = "const a = []; for (;;) a.push(new Array(100000).fill(1.5));"
    error = await failed(executors["script"].execute(call("script", language="js", code=code)))
    assert error.problem.status in (429, 500)
    code = "const a = []; for (;;) a.push(Buffer.alloc(10 ** 7, 1));"
    error = await failed(executors["script"].execute(call("script", language="js", code=code)))
    assert error.problem.status in (429, 500)


async def test_files_and_processor_time_are_bounded(work: Path) -> None:
    built = program_executors(settings(work, cpu_s=1), Web())
    error = await failed(python(built, "while True: pass"))
    assert (error.problem.type, error.problem.title) == (ProblemType.LIMIT_EXCEEDED, "The script computed too long")
    error = await failed(shell(built, "exec head -c 3000000 /dev/zero > f"))
    assert error.problem.title == "The command wrote too large a file"
    for executor in built.values():
        await executor.close()


async def test_a_stubborn_work_folder_is_removed(executors: dict[str, Executor], work: Path) -> None:
    deep = "import os\nfor _ in range(1500):\n    os.mkdir('d' * 40); os.chdir('d' * 40)\n"
    await python(executors, deep)
    assert left(work) == []
    await shell(executors, "mkdir -p a/b; touch a/b/c; ln -s / a/root; chmod 0 a/b a")
    assert left(work) == []
    assert os.access("/bin/sh", os.X_OK)


async def test_programs_wait_for_a_place(work: Path) -> None:
    built = program_executors(settings(work, concurrency=2), Web())
    code = "import os, time\nprint(time.monotonic())\ntime.sleep(0.3)\nprint(time.monotonic())"
    said = await asyncio.gather(*(python(built, code) for _ in range(5)))
    spans = [tuple(map(float, text.split())) for text in said]
    busy = [sum(begin <= start < end for begin, end in spans) for start, _ in spans]
    assert max(busy) <= 2
    for executor in built.values():
        await executor.close()


async def test_a_program_that_is_not_awaited_goes_on_and_ends_with_the_worker(work: Path, mark: Path) -> None:
    built = program_executors(settings(work), Web())
    assert await shell(built, f"sleep 0.1; echo done > {mark}", **{"await": False}) is None
    await eventually(lambda: mark.read_text() == "done\n")
    assert await shell(built, "trap '' TERM; sleep 97.25; sleep 97.25", **{"await": False}) is None
    await eventually(lambda: alive("sleep 97.25") != [])
    assert built["script"].unfinished >= 1
    for executor in built.values():
        await executor.close()
    assert alive("sleep 97.25") == []


@pytest.mark.parametrize("isolation", ["auto", "none"])
async def test_programs_die_with_a_worker_that_is_killed(isolation: str, work: Path) -> None:
    chosen = WITHOUT_NAMESPACES if isolation == "none" else {}
    worker = f"""
import asyncio
from flint_ops.config import ScriptSettings
from flint_worker.processes import ProcessRunner, Program, ProgramLimits
limits = ProgramLimits(60, 60, 2**28, 2**20, 64, 40, 1000)
async def main():
    runner = ProcessRunner(ScriptSettings(**{chosen!r}, folder={str(work)!r}))
    await runner.run(Program(("/bin/sh", "-c", "sleep 98.25 & setsid sleep 98.25 & sleep 98.25"), limits))
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", worker])  # noqa: ASYNC220
    try:
        await eventually(lambda: len(alive("sleep 98.25")) >= 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    await eventually(lambda: alive("sleep 98.25") == [])


async def test_under_uvloop(work: Path) -> None:
    program = f"""
import asyncio, uvloop
from flint_ops.config import ScriptSettings
from flint_worker.processes import ProcessRunner, Program, ProgramLimits
limits = ProgramLimits(20, 60, 2**28, 2**20, 64, 40, 100_000)
async def main():
    runner = ProcessRunner(ScriptSettings(folder={str(work)!r}, concurrency=4))
    endings = await asyncio.gather(*(runner.run(Program(("/bin/sh", "-c", f"echo {{n}}"), limits)) for n in range(20)))
    print([int(ending.stdout) for ending in endings] == list(range(20)), runner.unfinished)
uvloop.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert said.endswith(b"True 0\n")


async def test_a_program_that_is_not_there(work: Path) -> None:
    runner = ProcessRunner(settings(work).worker.scripts)
    ending = await runner.run(Program(("/nowhere/x",), ProgramLimits(5, 5, 2**28, 2**20, 64, 40, 1000)))
    assert ending.by == "start"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as another user")
async def test_programs_run_as_the_configured_user(work: Path) -> None:
    for isolation in ("auto", "none"):
        built = program_executors(settings(work, isolation=isolation, user="nobody"), Web())
        assert await shell(built, "id -un; touch x; cat /etc/shadow 2>/dev/null | head -c 1; true") == "nobody\n"
        for executor in built.values():
            await executor.close()
    assert left(work) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could run programs as root")
async def test_root_without_namespaces_is_refused(work: Path) -> None:
    for user in ("", "auto"):
        # `auto` finds that nobody cannot reach this interpreter.
        closed = work / "closed"
        closed.mkdir(mode=0o700, exist_ok=True)
        more = {"user": user, "isolation": "none", "python": str(closed / "python")}
        built = program_executors(settings(work, **more), Web())
        error = await failed(shell(built, "true"))
        assert (error.problem.type, error.problem.title) == (
            ProblemType.CONFIGURATION,
            "The command cannot be isolated",
        )
        assert "worker.scripts.user" in error.problem.detail
        for executor in built.values():
            await executor.close()
    built = program_executors(settings(work, user="root", isolation="none"), Web())
    assert await shell(built, "id -un") == "root\n"
    for executor in built.values():
        await executor.close()
