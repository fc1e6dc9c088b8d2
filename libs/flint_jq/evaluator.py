"""One evaluator process: reads an expression and its data, answers with a result, and can be killed at any moment.

Started by the pool with an empty environment, in a session of its own, as `python -I -m flint_jq.evaluator`. States:
starting → ready → (compiling → evaluating → answering)* → ended. What ends it: the end of its input, a signal from the
pool, its parent's death (Linux), the timer of processor time that it sets before each evaluation (SIGPROF: the
expression's limit, however busy the machine is), the alarm it sets with it (so that one that stands still ends even
when the pool is gone), or memory beyond its limit, when libjq aborts. It holds nothing that cannot be lost.

Once the imports are done it cannot open a file or a socket (no descriptor is left to it) nor start a process.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import signal
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import jq
import orjson

from flint_jq.frames import CHECK, HEADER, LARGE, LARGEST, frame
from flint_jq.wrapping import check_programs, wrap

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1
_PROGRAMS: Final = 256
"""Compiled programs that one evaluator keeps; each has some 100 KiB."""
_DETAIL: Final = 500
_MUCH_S: Final = 0.01
"""An expression that took so much processor time may have taken much memory."""
_MUCH_BYTES: Final = 2**17
"""So may one that read or gave so much, however quickly."""
_CALLSITE: Final = re.compile(r" at <top-level>, line \d+(?:, column \d+)?:?")


class _Programs:
    """Compiled programs, the least recently used leave first."""

    def __init__(self) -> None:
        self._programs: OrderedDict[tuple[str, tuple[str, ...]], Any] = OrderedDict()

    def get(self, source: str, variables: tuple[str, ...]) -> Any:
        """The program of an expression. Raises ValueError with jq's message when it does not compile."""
        key = (source, variables)
        program = self._programs.get(key)
        if program is None:
            program = jq.compile(wrap(source, variables))
            self._programs[key] = program
            if len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(key)
        return program


def _message(error: ValueError) -> str:
    """jq's own words, without the place in the surrounding program, which means nothing to the reader."""
    first = str(error).splitlines()[0] if str(error) else "the expression failed"
    return _CALLSITE.sub("", first.removeprefix("jq: error: ").removeprefix("jq: error (at <unknown>): "))[:_DETAIL]


def _evaluate(programs: _Programs, source: str, variables: tuple[str, ...], body: str, output_bytes: int) -> bytes:
    try:
        program = programs.get(source, variables)
    except ValueError as error:
        return b"S" + _message(error).encode()
    try:
        text: str = program.input_text(body).first()
    except ValueError as error:
        return b"E" + _message(error).encode()
    except StopIteration:
        return b"Ethe expression ended without a result"
    answer = text.encode("utf-8", "replace")
    if len(answer) > output_bytes:
        return f"Othe result has {len(answer)} bytes, the limit is {output_bytes}".encode()
    return b"V" + answer


def _large(programs: _Programs, source: str, variables: tuple[str, ...], options: Any, body: bytes) -> bytes:
    from flint_jq.large import divided, evaluated, first_mismatch, outlined, taken_apart  # noqa: PLC0415 - loaded before the doors close, if at all

    try:
        value = orjson.loads(body) if not source else None
    except orjson.JSONDecodeError as error:
        return b"E" + f"not JSON: {error}"[:_DETAIL].encode()
    if "schema" in options:
        return b"V" + orjson.dumps(first_mismatch(value, options["schema"]))
    if "outline" in options:
        return b"V" + outlined(value, options["outline"])
    if source:
        plain = evaluated(source, variables, body)
        if plain is not None:
            (value,) = plain
        else:
            answer = _evaluate(programs, source, variables, body.decode(), LARGEST)
            if answer[:1] != b"V":
                return answer
            results = orjson.loads(answer[1:])
            if len(results) > 1:
                return b"Ethe expression has more than one result"
            value = results[0] if results else None
            del answer, results
    packed = divided(value, options) if "spread" in options else taken_apart(value, options)
    if len(packed) > options["output_bytes"]:
        return f"Othe result has {len(packed)} bytes, the limit is {options['output_bytes']}".encode()
    return b"L" + packed


def _check(source: str, variables: tuple[str, ...]) -> bytes:
    for program in check_programs(source, variables):
        try:
            jq.compile(program)
        except ValueError as error:
            return b"S" + _message(error).encode()
    return b"V[]"


def _answer(programs: _Programs, question: list[Any], body: bytes, output_bytes: int) -> bytes:
    operation, source, names, *options = question
    variables = tuple(names)
    try:
        if operation == LARGE:
            return _large(programs, source, variables, options[0], body)
        if operation == CHECK:
            return _check(source, variables)
        return _evaluate(programs, source, variables, body.decode(), output_bytes)
    except MemoryError:
        return b"Mthe expression needs too much memory"


def _read(descriptor: int, size: int) -> bytes | None:
    chunks: list[bytes] = []
    while size:
        chunk = os.read(descriptor, min(size, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _read_frame(descriptor: int) -> bytes | None:
    header = _read(descriptor, HEADER.size)
    if header is None:
        return None
    size = HEADER.unpack(header)[0]
    return None if size > LARGEST else _read(descriptor, size)


def _write(descriptor: int, payload: bytes) -> None:
    view = memoryview(frame(payload))
    while view:
        view = view[os.write(descriptor, view) :]


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(0)  # it died before the call


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        allowed = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _serve(output_bytes: int, alarm_s: float) -> None:
    programs = _Programs()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: others give back by themselves
    _write(1, b"R")
    while (head := _read_frame(0)) is not None and (body := _read_frame(0)) is not None:
        within_s, *question = orjson.loads(head)
        signal.setitimer(signal.ITIMER_REAL, alarm_s)
        signal.setitimer(signal.ITIMER_PROF, within_s)
        answer = _answer(programs, question, body, output_bytes)
        left_s, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(1, answer)
        much = within_s - left_s > _MUCH_S or len(body) + len(answer) > _MUCH_BYTES
        del head, body, answer
        if give_back is not None and much:
            give_back(0)  # what a large value took would stay with this process, for all the time that it idles


def main() -> None:
    """Serves until its input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--output-bytes", type=int, required=True)
    parser.add_argument("--alarm-s", type=float, required=True)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    _die_with_parent(options.parent)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C in a terminal is for the service, which then ends this process
    if options.large:
        import flint_jq.large  # noqa: F401, PLC0415 - later it could not open the file
    jq.compile(wrap(".", ())).input_text("[null, {}, 0]").first()  # jq's own library is loaded before the doors close
    _limit(options.memory_bytes)
    _serve(options.output_bytes, options.alarm_s)


if __name__ == "__main__":
    main()
