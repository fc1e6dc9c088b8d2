"""A long history: ended runs as rows of the record, written by COPY.

Each generated run is a copy of a run that this Flint has executed: what differs is its identity (run id and with it
the group, request id, trace id) and its moments, which are moved together, also those within its steps and events. Runs
come in bursts of the same millisecond, as batches of starts do, spread evenly over a span of time.

The tables are those of the schema, with all their indexes; COPY in binary format, one commit for each chunk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_core.events import CallSucceeded, Event, decode_events, encode_events
from flint_core.ids import SHARDS, created_ms, group_of_run, make_run_id

__all__ = ["BURST", "Recipe", "Sample", "Template", "Writer"]

BURST = 200
"""Runs of the same millisecond."""
CHUNK_BURSTS = 100
_SAMPLED_BURSTS = 20
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_OWN, _GROUP, _REQUEST, _TRACE = range(4)
_MOMENTS = frozenset({"created_at", "started_at", "ended_at", "recorded_at"})

Row = tuple[bytes | None, ...]
Pieces = list[bytes | int]


@dataclass(frozen=True)
class Template:
    """A run that was executed, as its rows hold it."""

    run_id: bytes
    run: Row
    entries: tuple[Row, ...]


@dataclass(frozen=True)
class Recipe:
    """Of which runs a burst consists: (template, how many of `BURST`), and one that is only in every `rare_every`th."""

    parts: Sequence[tuple[Template, int]]
    rare: Template
    rare_every: int = 100


@dataclass(frozen=True)
class Sample:
    """A generated run and the one it was made of."""

    run_id: bytes
    template: bytes
    at_ms: int


class Writer:
    """Writes runs. For one thread at a time; `close` when done."""

    def __init__(self, dsn: str, groups: int) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, connect_timeout=10)
        self._groups = groups
        self._columns = {table: _columns(self._connection, table) for table in ("run", "run_entry")}
        self._sampled: set[int] = set()
        self.samples: list[Sample] = []

    def close(self) -> None:
        """Give up the connection."""
        self._connection.close()

    def read_template(self, run_id: str) -> Template:
        """The rows of a run that has ended."""
        return _read_template(self._connection, self._columns, UUID(run_id).bytes)

    def write(
        self,
        recipe: Recipe,
        runs: int,
        first_ms: int,
        last_ms: int,
        going_on: Callable[[int], bool],
    ) -> int:
        """Write so many runs (rounded up to whole bursts), the oldest first; answers how many.

        `going_on` hears how many there are after each chunk, and ends it by answering False.
        """
        bursts = -(-runs // BURST)
        self._sampled = {number * (bursts - 1) // _SAMPLED_BURSTS for number in range(_SAMPLED_BURSTS + 1)}
        for at in range(0, bursts, CHUNK_BURSTS):
            chunk = range(at, min(at + CHUNK_BURSTS, bursts))
            moments = [first_ms + (last_ms - first_ms) * number // max(1, bursts - 1) for number in chunk]
            self._write_chunk(recipe, list(zip(chunk, moments, strict=True)))
            if not going_on(BURST * (chunk[-1] + 1)):
                return BURST * (chunk[-1] + 1)
        return BURST * bursts

    def settle(self) -> None:
        """What autovacuum would come to by itself."""
        self._connection.execute("VACUUM (ANALYZE) run")
        self._connection.execute("VACUUM (ANALYZE) run_entry")

    def _write_chunk(self, recipe: Recipe, bursts: Sequence[tuple[int, int]]) -> None:
        runs, entries = [_HEADER], [_HEADER]
        for number, at_ms in bursts:
            self._burst(recipe, number, at_ms, runs, entries)
        with self._connection.transaction():
            for table, parts in (("run", runs), ("run_entry", entries)):
                names = sql.SQL(", ").join(map(sql.Identifier, self._columns[table]))
                copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(table), names)
                with self._connection.cursor().copy(copy) as stream:
                    stream.write(b"".join([*parts, _TRAILER]))

    def _burst(self, recipe: Recipe, number: int, at_ms: int, runs: list[bytes], entries: list[bytes]) -> None:
        parts = list(recipe.parts)
        if number % recipe.rare_every == 0:
            parts = [(recipe.rare, 1), (parts[0][0], parts[0][1] - 1), *parts[1:]]
        for template, count in parts:
            shift_ms = at_ms - created_ms(template.run_id)
            run_pieces = _pieces(self._columns["run"], template.run, shift_ms, at_ms)
            entry_pieces = [_pieces(self._columns["run_entry"], row, shift_ms, at_ms) for row in template.entries]
            random = os.urandom(48 * count)
            for each in range(0, 48 * count, 48):
                run_id = make_run_id(
                    int.from_bytes(random[each : each + 2], "big") % SHARDS, at_ms, random[each + 2 : each + 11]
                )
                own = (
                    run_id,
                    group_of_run(run_id, self._groups).to_bytes(2, "big"),
                    random[each + 11 : each + 21].hex().encode(),
                    random[each + 21 : each + 37],
                )
                runs += [own[piece] if isinstance(piece, int) else piece for piece in run_pieces]
                for pieces in entry_pieces:
                    entries += [own[piece] if isinstance(piece, int) else piece for piece in pieces]
            if number in self._sampled:
                self.samples.append(Sample(run_id, template.run_id, at_ms))


def _read_template(connection: psycopg.Connection[Any], columns: dict[str, list[str]], run_id: bytes) -> Template:
    """A run that has ended, and its entries."""

    def rows(table: str, order: str) -> tuple[Row, ...]:
        names = sql.SQL(", ").join(map(sql.Identifier, columns[table]))
        query = sql.SQL("COPY (SELECT {} FROM {} WHERE run_id = {} ORDER BY {}) TO STDOUT (FORMAT binary)").format(
            names, sql.Identifier(table), sql.Literal(str(UUID(bytes=run_id))), sql.Identifier(order)
        )
        with connection.cursor().copy(query) as stream:
            return tuple(_parse(b"".join(bytes(part) for part in stream)))

    (run,) = rows("run", "run_id")
    return Template(run_id, run, rows("run_entry", "index"))


def _columns(connection: psycopg.Connection[Any], table: str) -> list[str]:
    found = connection.execute(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = %s ORDER BY ordinal_position",
        (table,),
    )
    return [name for (name,) in found]


def _parse(data: bytes) -> list[Row]:
    """The rows of a binary COPY."""
    at = len(_HEADER)
    rows = []
    while (count := struct.unpack_from("!h", data, at)[0]) >= 0:
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", data, at)
            at += 4
            row.append(None if size < 0 else data[at : at + size])
            at += max(0, size)
        rows.append(tuple(row))
    return rows


def _pieces(names: Sequence[str], row: Row, shift_ms: int, at_ms: int) -> Pieces:
    """The row in binary, what is each run's own left open: a number stands for it."""
    pieces: Pieces = []
    fixed = struct.pack("!h", len(row))
    for name, value in zip(names, row, strict=True):
        if value is None:
            fixed += struct.pack("!i", -1)
            continue
        own: int | None = None
        if name == "run_id":
            own = _OWN
        elif name == "group_id":
            own = _GROUP
        elif name == "trace_id" and len(value) == 16:
            own = _TRACE
        elif name == "request_id":
            # As clients make them: a word, then hexadecimal digits that begin with the time.
            word = value[: len(value) - 32]
            fixed += struct.pack("!i", len(value)) + word + f"{at_ms:012x}".encode()
            pieces += [fixed, _REQUEST]
            fixed = b""
            continue
        elif name in _MOMENTS:
            value = struct.pack("!q", struct.unpack("!q", value)[0] + shift_ms * 1000)
        elif name == "steps":
            value = _moved_steps(value, shift_ms)
        elif name == "events" and value:
            value = encode_events([_moved(event, shift_ms) for event in decode_events(value)])
        fixed += struct.pack("!i", len(value))
        if own is None:
            fixed += value
        else:
            pieces += [fixed, own]
            fixed = b""
    if fixed:
        pieces.append(fixed)
    return pieces


def _moved_steps(steps: bytes, shift_ms: int) -> bytes:
    entry = journal_pb2.JournalEntry.FromString(steps)
    for step in entry.steps:
        for moment in (step.start_time, step.end_time):
            if moment.seconds:
                moment.FromMilliseconds(moment.ToMilliseconds() + shift_ms)
    return entry.SerializeToString()


def _moved(event: Event, shift_ms: int) -> Event:
    if isinstance(event, CallSucceeded):
        return event._replace(started_ms=event.started_ms + shift_ms, at_ms=event.at_ms + shift_ms)
    moments = {field.name for field in fields(event)} & {"started_ms", "at_ms"}
    return replace(event, **{name: getattr(event, name) + shift_ms for name in moments})
