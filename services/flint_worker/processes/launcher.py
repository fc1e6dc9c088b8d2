"""Starts one program within limits and makes sure that nothing of it stays. Run as a script of its own, stdlib only.

Three processes: this one (the watcher), a keeper that it forks, and the program, which the keeper forks. Where the
kernel lets it, the keeper is the first process of a PID namespace inside a user namespace: the program can then neither
signal nor trace anything outside, and when the keeper ends the kernel ends whatever the program left behind. Elsewhere
the keeper is a subreaper: what the program leaves behind becomes its child and is killed before it ends.

The worker holds the other end of a socket (the file descriptor that argv names): it writes the order as one JSON
document after its length (4 bytes, big endian); later `T` asks for SIGTERM and, after the grace, SIGKILL. When the
socket closes (the worker died) everything is killed at once. The answer is one JSON document: `{"code", "signal",
"reason", "detail"}`. No thread runs in any of the three, so forking is safe; limits are set after the fork of the
program and before its exec.
"""
# Every import delays every program, and os is here already:
# ruff: noqa: PTH115, PTH116, PTH123, PTH208

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_INNER_ID = 65534
_PAGE = os.sysconf("SC_PAGE_SIZE")
_IN_MEMORY = ("/memfd:", "/dev/shm/")  # noqa: S108  (looked for, never written)
_POLL_S = (0.02, 0.1)
_SWEEPS = 200
_NICE = 5  # whoever watches a program gets the processor before it

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _read_order(control: socket.socket) -> dict[str, Any]:
    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = control.recv(min(65536, size - len(data)))
            if not part:
                sys.exit(0)  # the worker is gone before it asked for anything
            data += part
        return bytes(data)

    order: dict[str, Any] = json.loads(exactly(int.from_bytes(exactly(4), "big")))
    return order


def _unshare() -> bool:
    """Own user and PID namespace for what is forked from now on; False where the kernel or a policy forbids it."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        return False
    try:
        with open("/proc/self/setgroups", "w") as file:
            file.write("deny")
        for name, outer in (("uid_map", uid), ("gid_map", gid)):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(f"{outer or _INNER_ID} {outer} 1")
    except OSError:
        return False
    return bool(_libc.unshare(_CLONE_NEWPID) == 0)


def _can_unshare() -> bool:
    """Tried in a process that may be thrown away: half a namespace would be worse than none."""
    child = os.fork()
    if child == 0:
        done = 1
        try:
            if _unshare():
                grandchild = os.fork()
                if grandchild == 0:
                    os._exit(0)
                done = 0 if os.waitpid(grandchild, 0)[1] == 0 else 1
        finally:
            os._exit(done)
    return os.waitpid(child, 0)[1] == 0


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            found = [int(word) for word in file.read().split()]
        for task in os.listdir(f"/proc/{pid}/task"):
            if int(task) != pid:
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    found += [int(word) for word in file.read().split()]
    except OSError:
        return []
    return found


def _descendants(pid: int, most: int = 100_000) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < most:
        born = _children(todo.pop())
        found += born
        todo += born
    return found


def _fields(path: str, names: tuple[str, ...]) -> dict[str, int]:
    """Sizes in bytes that a file of /proc names in kB; what is not there is left out."""
    found: dict[str, int] = {}
    try:
        with open(path) as file:
            for line in file:
                name, _, size = line.partition(":")
                if name in names:
                    found[name] = int(size.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return found
    return found


def _given(files: list[int]) -> dict[tuple[int, int], int]:
    """The files in memory that the program begins with, and how large they are."""
    found = [os.stat(file) for file in files]
    return {(status.st_dev, status.st_ino): status.st_blocks * 512 for status in found}


def _held_files(pids: list[int], given: dict[tuple[int, int], int]) -> int:
    """Bytes of open files that live in memory, without those given: what is written and not mapped, no process has."""
    sizes: dict[tuple[int, int], int] = {}
    for pid in pids:
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for number in numbers:
            path = f"/proc/{pid}/fd/{number}"
            try:
                if os.readlink(path).startswith(_IN_MEMORY):
                    status = os.stat(path)
                    key = status.st_dev, status.st_ino
                    sizes[key] = max(0, status.st_blocks * 512 - given.get(key, 0))
            except OSError:
                continue
    return sum(sizes.values())


def _memory(pids: list[int], limit: int, given: dict[tuple[int, int], int]) -> int:
    """Bytes that only these processes have, shared memory included (what they map of files on disk is not theirs)."""
    own = 0
    shared: dict[int, int] = {}
    for pid in pids:
        found = _fields(f"/proc/{pid}/status", ("RssAnon", "RssShmem"))
        own += found.get("RssAnon", 0)
        if found.get("RssShmem"):
            shared[pid] = found["RssShmem"]
    mapped = sum(shared.values())
    if len(shared) > 1 and own + mapped > limit:
        # The same pages may have been counted for each process. The exact share takes long to find, so only now.
        mapped = sum(_share(pid) for pid in shared)
    # Files in memory are mostly mapped as well: the sum would count them twice.
    return own + max(mapped, _held_files(pids, given))


def _share(pid: int) -> int:
    """Bytes of shared memory that count as this process's; nothing of one that has ended meanwhile."""
    exact = _fields(f"/proc/{pid}/smaps_rollup", ("Pss_Shmem",))
    if exact:
        return exact["Pss_Shmem"]
    return _fields(f"/proc/{pid}/status", ("RssShmem",)).get("RssShmem", 0)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue


def _own_processes() -> int:
    """How many threads this user has already: RLIMIT_NPROC counts them too."""
    count, uid = 0, os.getuid()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue
    return count


def _limit(kind: int, value: int, more: int = 0) -> None:
    """Sets a limit; `more` of it is between the warning (SIGXCPU) and the end."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value, more = min(value, hard), 0
    resource.setrlimit(kind, (value, value + more))


def _program(order: dict[str, Any], extra: int | None, alone: bool) -> None:
    """Becomes the program. Never returns; an OSError is the reason why it could not be started."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    limits = order["limits"]
    os.nice(_NICE)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, limits["cpu_s"], more=1)
    _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _limit(resource.RLIMIT_NOFILE, limits["files"])
    _limit(resource.RLIMIT_DATA, limits["memory_bytes"])
    if limits["address_bytes"] is not None:
        _limit(resource.RLIMIT_AS, limits["address_bytes"])
    _limit(resource.RLIMIT_NPROC, limits["processes"] + (0 if alone else _own_processes()))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue  # reserved by the C library
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o077)
    if extra is not None:
        if extra != 3:
            os.dup2(extra, 3)
        os.set_inheritable(3, True)
    os.execve(order["argv"][0], order["argv"], order["environment"])  # noqa: S606  (what a definition asks for)


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    if nothing > 2:
        os.close(nothing)


def _keep(order: dict[str, Any], status: int, extra: int | None, alone: bool) -> None:
    """The keeper: forks the program, says how it ended, and leaves nothing behind. Never returns."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not alone:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        try:
            _program(order, extra, alone)
        except BaseException as error:
            os.write(status, f"E{getattr(error, 'errno', None) or 0} {type(error).__name__};".encode())
        finally:
            os._exit(127)
    os.write(status, f"P{child};".encode())
    _silence()
    while True:
        pid, ended = os.wait()
        if pid == child:
            break
    os.write(status, f"S{ended};".encode())
    if not alone:
        for _ in range(_SWEEPS):
            left = _descendants(os.getpid())
            if not left:
                break
            _signal(left, signal.SIGSTOP)  # what is stopped cannot fork while the rest is being killed
            _signal(left, signal.SIGKILL)
            _reap()
            time.sleep(0.005)
    os._exit(0)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


class _Watch:
    """What the watcher knows while the keeper lives."""

    def __init__(self, order: dict[str, Any], control: socket.socket, keeper: int, status: int, alone: bool) -> None:
        self.order, self.control, self.keeper, self.status, self.alone = order, control, keeper, status, alone
        self.given: dict[tuple[int, int], int] = {}
        self.reason = ""
        self.kill_at: float | None = None
        self.killed = False
        self.said = b""

    def run(self) -> None:
        """Until the keeper has ended: kills when there is a reason to."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.status, select.POLLIN)
        pause_s, listening = _POLL_S[0], True
        while True:
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.kill()
            for number, _ in poll.poll(pause_s * 1000):
                if number == self.status:
                    part = os.read(self.status, 4096)
                    if not part:
                        return
                    self.said += part
                elif listening:
                    word = self.control.recv(1)
                    if word == b"T":
                        self.ask()
                    else:
                        listening = False
                        poll.unregister(self.control)
                        self.kill()
            pause_s = min(pause_s * 1.5, _POLL_S[1])
            self.look()

    def ask(self) -> None:
        """SIGTERM to all of it, once; SIGKILL follows after the grace."""
        if self.kill_at is None:
            _signal(_descendants(self.keeper), signal.SIGTERM)
            self.kill_at = time.monotonic() + self.order["grace_s"]

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self.killed = True
        if self.alone:
            _signal([self.keeper], signal.SIGKILL)
            return
        for word in self.said.split(b";"):
            if word.startswith(b"P"):
                # Its group dies at one stroke: no fork gets between, as it could when they are killed one by one.
                _signal([-int(word[1:])], signal.SIGKILL)
        left = _descendants(self.keeper)
        _signal(left, signal.SIGSTOP)
        _signal(left, signal.SIGKILL)

    def look(self) -> None:
        """Whether it is within the limits that hold for all of its processes together."""
        if self.killed:
            if not self.alone:
                self.kill()
            return
        limits, living = self.order["limits"], _descendants(self.keeper)
        if len(living) > limits["processes"]:
            self.reason = "processes"
        elif _memory(living, limits["memory_bytes"], self.given) > limits["memory_bytes"]:
            self.reason = "memory"
        if self.reason:
            self.kill()


def main() -> None:
    """Reads the order, runs it, answers."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    order = _read_order(control)
    if order["uid"] is not None:
        os.setgroups([])
        os.setgid(order["gid"])
        os.setuid(order["uid"])
        _prctl(_PR_SET_DUMPABLE, 1)
    os.chdir(order["folder"])
    answer: dict[str, Any] = {"code": None, "signal": None, "reason": "", "detail": ""}
    alone = order["isolation"] != "none" and _can_unshare() and _unshare()
    if not alone and (order["isolation"] == "namespaces" or (os.getuid() == 0 and not order["as_root"])):
        # Without a namespace nothing would keep root from anything, and the kernel does not count root's processes.
        control.sendall(json.dumps({**answer, "reason": "isolation"}).encode())
        return
    extra = None
    if order["extra"] is not None:
        extra = os.memfd_create("order")
        with os.fdopen(os.dup(extra), "wb") as file:
            file.write(order["extra"].encode())
        os.lseek(extra, 0, os.SEEK_SET)
    reading, writing = os.pipe()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    keeper = os.fork()
    if keeper == 0:
        try:
            control.close()
            os.close(reading)
            _keep(order, writing, extra, alone)
        finally:
            os._exit(1)
    os.close(writing)
    given = _given([0] if extra is None else [0, extra])
    if extra is not None:
        os.close(extra)
    _silence()
    watch = _Watch(order, control, keeper, reading, alone)
    watch.given = given
    watch.run()
    os.waitpid(keeper, 0)
    answer["reason"] = watch.reason
    answer["signal"] = int(signal.SIGKILL)  # nothing said: the keeper was killed, and the program with it
    for word in watch.said.decode().split(";"):
        if word.startswith("E"):
            answer.update(reason="start", detail=word[1:], signal=None)
        elif word.startswith("S"):
            ended = int(word[1:])
            killed = os.WIFSIGNALED(ended)
            answer["signal"] = os.WTERMSIG(ended) if killed else None
            answer["code"] = None if killed else os.WEXITSTATUS(ended)
    try:
        control.sendall(json.dumps(answer).encode())
    except OSError:
        return  # the worker is gone: nobody asks any more


if __name__ == "__main__":
    main()
