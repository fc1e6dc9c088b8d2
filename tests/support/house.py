"""A running Flint and its clients, for tests that come in by the public door.

`House` holds the stack, a client library's client with the local admin key, plain stubs for what a well-behaved client
would never send, and readers of the record and of the processes' own figures.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc

from flint_bus import Bus, journal_stream
from flint_bus.subjects import journal_filter
from flint_contracts.gen.flint.approvals.v1.approvals_pb2_grpc import ApprovalServiceStub
from flint_contracts.gen.flint.events.v1.events_pb2_grpc import EventServiceStub
from flint_contracts.gen.flint.fleet.v1.fleet_pb2_grpc import FleetServiceStub
from flint_contracts.gen.flint.identity.v1.identity_pb2_grpc import IdentityServiceStub
from flint_contracts.gen.flint.journal.v1 import journal_pb2
from flint_contracts.gen.flint.payloads.v1.payloads_pb2_grpc import PayloadServiceStub
from flint_contracts.gen.flint.runs.v1.runs_pb2_grpc import RunServiceStub
from flint_contracts.gen.flint.workflows.v1.workflows_pb2_grpc import WorkflowServiceStub
from flint_sdk import AsyncFlint, FlintError, Run
from flint_sdk._errors import error_from_rpc
from support.metrics import Figures, read_metrics
from support.record_reader import Record
from support.stack import RunningStack, running_stack

__all__ = ["House", "Stubs", "open_house", "refusal"]

PARENT = "namespaces/default"


class Stubs:
    """Every public service through one channel, with one key or none."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.runs: Any = RunServiceStub(channel)
        self.workflows: Any = WorkflowServiceStub(channel)
        self.identity: Any = IdentityServiceStub(channel)
        self.fleet: Any = FleetServiceStub(channel)
        self.events: Any = EventServiceStub(channel)
        self.approvals: Any = ApprovalServiceStub(channel)
        self.payloads: Any = PayloadServiceStub(channel)


class House:
    """See the module."""

    def __init__(self, stack: RunningStack, flint: AsyncFlint, record: Record, bus: Bus) -> None:
        self.stack = stack
        self.flint = flint
        self.record = record
        self.bus = bus
        self._channel = grpc.aio.insecure_channel(stack.gateway)
        self.raw = self.as_key(stack.admin_key)
        self._names = itertools.count(1)
        self.kept: dict[str, Any] = {}
        """What modules keep for when their fixtures are set up once more."""

    async def close(self) -> None:
        await self.flint.close()
        await self.record.close()
        await self.bus.close()
        await self._channel.close()

    def as_key(self, key: str) -> Stubs:
        """Plain stubs with this key; with an empty one, anonymous."""
        return Stubs(self._channel, key)

    def name(self, stem: str = "w") -> str:
        """A workflow's name that no other test has."""
        return f"{stem}-{next(self._names)}"

    async def apply(self, body: str, name: str = "", version: str = "1.0.0") -> str:
        """Applies a definition without its `document`; answers its name."""
        name = name or self.name()
        await self.flint.apply(definition(body, name, version))
        return name

    async def run(self, body: str, input: Any = None, timeout_s: float = 60.0) -> Run:
        """One run of a definition, ended."""
        handle = await self.flint.start(await self.apply(body), input)
        return await self.flint.wait(handle.id, timeout_s)

    async def figures(self, name: str) -> Figures:
        """A process's own figures."""
        return await read_metrics(self.stack.addresses[f"{name}/ops"])

    async def journal_entries(self, run: str) -> int:
        """How many entries of a run JetStream holds."""
        generation = await self.record.generation()
        group = await self.record.number("SELECT group_id FROM run WHERE run_id = CAST(:r AS uuid)", r=run)
        stream, subjects = journal_stream(generation), journal_filter(generation, group)
        last = await self.bus.last_message(stream, subjects)
        read = found = 0
        consumer = self.bus.consume(stream, subjects)
        try:
            async with asyncio.timeout(60):
                while last is not None and read < last.sequence:
                    for message in await consumer.next_batch(500):
                        entry = journal_pb2.JournalEntry.FromString(message.data)
                        found += sum(each.run_id == UUID(run).bytes for each in entry.together or [entry])
                        read = message.sequence
        finally:
            await consumer.close()
        return found


def definition(body: str, name: str, version: str = "1.0.0") -> str:
    """A definition with its `document`."""
    head = f"document: {{dsl: 1.0.3, namespace: default, name: {name}, version: {version}}}"
    return f"{head}\n{body}"


async def refusal(call: Awaitable[Any]) -> FlintError:
    """The typed error that a plain stub's call ended with."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    raise AssertionError(f"was not refused: {answer}")


@asynccontextmanager
async def open_house(folder: Path, **overrides: Any) -> AsyncIterator[House]:
    """A whole stack in a folder; `overrides` are sections of its settings."""
    async with running_stack(folder, overrides=overrides) as stack:
        flint = AsyncFlint(address=stack.gateway, key=stack.admin_key)
        bus = await Bus.connect(stack.settings.nats, name="test")
        house = House(stack, flint, Record(stack.settings.postgres), bus)
        try:
            yield house
        finally:
            await house.close()
