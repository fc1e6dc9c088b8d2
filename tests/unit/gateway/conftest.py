"""A gateway in process, between a real nats-server and small schedulers and a registry on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from flint_bus.bus import Bus
from flint_contracts.gen.flint.dispatch.v1 import dispatch_pb2
from flint_contracts.gen.flint.fleet.v1 import fleet_pb2
from flint_contracts.gen.flint.fleet.v1.fleet_pb2_grpc import FleetServiceStub
from flint_contracts.gen.flint.identity.v1 import identity_pb2
from flint_contracts.gen.flint.identity.v1.identity_pb2_grpc import IdentityServiceStub
from flint_contracts.gen.flint.registry.v1 import registry_pb2, registry_pb2_grpc
from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_contracts.gen.flint.runs.v1.runs_pb2_grpc import RunServiceStub
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2 as pb
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2_grpc as pb_grpc
from flint_contracts.gen.flint.workflows.v1 import workflows_pb2
from flint_contracts.gen.flint.workflows.v1.workflows_pb2_grpc import WorkflowServiceStub
from flint_core.ids import make_run_id
from flint_gateway.app import Gateway
from flint_ops.config import Arguments, Settings, load
from flint_ops.lifecycle import Lifecycle
from flint_rpc import api_keys
from flint_rpc.errors import ErrorReason, Refused, status_proto
from flint_rpc.names import format_key, format_run, format_version
from flint_rpc.server import RpcServer, Service, TokenInterceptor, create_server
from support.nats_server import NatsServer

Run = runs_pb2.Run


class Record:
    """What the small schedulers share: the truth that a PostgreSQL holds elsewhere."""

    def __init__(self) -> None:
        self.runs: dict[bytes, Run] = {}
        self.steps: dict[bytes, list[runs_pb2.StepRecord]] = {}
        self.requests: dict[tuple[str, str], bytes] = {}
        self.keys: dict[str, tuple[bytes, identity_pb2.Key]] = {}
        self.workflows: dict[str, workflows_pb2.Workflow] = {}
        self.watchers: dict[bytes, str] = {}
        self.batches: list[int] = []
        self.reads = 0
        self.lookups = 0

    def key(self, namespace: str, role: identity_pb2.Role.ValueType) -> str:
        """A working key's token."""
        key = api_keys.generate()
        name = format_key(namespace, key.key_id)
        self.keys[key.key_id] = (key.secret_hash, identity_pb2.Key(name=name, role=role, display_name="test"))
        return key.token

    def add(self, namespace: str = "default", state: Run.State.ValueType = Run.STATE_QUEUED) -> Run:
        """A run that was started elsewhere."""
        run_id = make_run_id(len(self.runs) % 1024, 1_700_000_000_000 + len(self.runs), bytes(9))
        run = Run(name=format_run(namespace, run_id), state=state, change=1, input=b"{}", level=5)
        self.runs[run_id] = run
        return run

    def change(self, run: Run, state: Run.State.ValueType, **fields: Any) -> runs_pb2.RunChange:
        """Commits the next change of a run, and answers what its owner would publish."""
        run.state = state
        run.change += 1
        for field, value in fields.items():
            setattr(run, field, value)
        step = runs_pb2.StepRecord(step=f"/do/{run.change}", state=runs_pb2.StepRecord.STATE_SUCCEEDED, attempt=1)
        self.steps.setdefault(run_id_of(run), []).append(step)
        change = runs_pb2.RunChange(steps=[step])
        change.run.CopyFrom(run)
        change.run.ClearField("input")
        return change


def run_id_of(run: Run) -> bytes:
    return bytes.fromhex(run.name.rpartition("/")[2].replace("-", ""))


class Scheduler(pb_grpc.SchedulingServiceServicer, pb_grpc.PrincipalServiceServicer):
    """Answers from the record. `gate` holds accepts back while it is not set, `reading` reads of runs."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.gate = asyncio.Event()
        self.gate.set()
        self.reading = asyncio.Event()
        self.reading.set()
        self.accepts = self.streamed = 0
        self.lose_answers = False
        self.full = False

    async def AcceptRuns(self, request: pb.AcceptRunsRequest, context: Any) -> pb.AcceptRunsResponse:
        self.accepts += 1
        if self.full:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ErrorReason.ERROR_REASON_QUEUE_FULL,
                "too many starts wait",
                retry_after_s=1.0,
            )
        self.record.batches.append(len(request.starts))
        await self.gate.wait()
        response = pb.AcceptRunsResponse()
        if any(start.workflow_id == "poison" for start in request.starts):
            raise RuntimeError("this batch cannot be stored")
        for start in request.starts:
            result = response.results.add()
            if start.workflow_id == "missing":
                missing = Refused(
                    grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND, "there is no such workflow"
                )
                result.error.CopyFrom(status_proto(missing))
                continue
            run_id = self.record.requests.get((start.namespace, start.request_id))
            result.created = run_id is None
            if run_id is None:
                run_id = make_run_id(len(self.record.runs) % 1024, 1_700_000_000_000, bytes(9))
                run_id = run_id[:8] + b"\x80" + len(self.record.runs).to_bytes(7, "big")
                self.record.requests[start.namespace, start.request_id] = run_id
                self.record.watchers[run_id] = request.watcher
                self.record.runs[run_id] = Run(
                    name=format_run(start.namespace, run_id),
                    workflow=format_version(start.namespace, start.workflow_id, start.version or "1.0.0"),
                    state=Run.STATE_QUEUED,
                    input=start.input,
                    level=start.level if start.HasField("level") else 5,
                    change=1,
                    trace_id=start.trace_id.hex(),
                )
            result.run_id = run_id
            result.version = start.version or "1.0.0"
            result.state = self.record.runs[run_id].state
            result.level = self.record.runs[run_id].level
        if self.lose_answers:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost after the commit")
        return response

    async def AcceptRunsStream(self, requests: Any, context: Any) -> AsyncIterator[pb.AcceptRunsStreamResponse]:
        async for request in requests:
            self.streamed += 1
            yield pb.AcceptRunsStreamResponse(answer=await self.AcceptRuns(request.batch, context))

    async def ReadRuns(self, request: pb.ReadRunsRequest, context: Any) -> pb.ReadRunsResponse:
        self.record.reads += 1
        await self.reading.wait()
        response = pb.ReadRunsResponse()
        for run_id in request.run_ids:
            if run_id in self.record.runs:
                response.runs.add().CopyFrom(self.record.runs[run_id])
                if request.without_input:
                    response.runs[-1].ClearField("input")
        if request.with_steps:
            response.steps.extend(self.record.steps.get(request.run_ids[0], []))
        return response

    async def CancelRuns(self, request: pb.CancelRunsRequest, context: Any) -> pb.CancelRunsResponse:
        response = pb.CancelRunsResponse()
        for run_id in request.run_ids:
            result = response.results.add()
            run = self.record.runs.get(run_id)
            if run is not None:
                result.run.CopyFrom(run)
                result.stored = run.state < Run.STATE_SUCCEEDED
        return response

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        prefix = f"namespaces/{request.namespace}/"
        found = [
            run
            for run_id, run in sorted(self.record.runs.items(), reverse=True)
            if run.name.startswith(prefix) and (not request.before_id or run_id < request.before_id)
        ]
        return pb.ListRunsResponse(runs=found[: request.limit])

    async def ReadHistory(self, request: pb.ReadHistoryRequest, context: Any) -> pb.ReadHistoryResponse:
        run = self.record.runs.get(request.run_id)
        if run is None:
            return pb.ReadHistoryResponse()
        entries = [runs_pb2.HistoryEntry(index=index, leg=1) for index in range(1, 6) if index > request.after_index]
        return pb.ReadHistoryResponse(namespace=run.name.split("/")[1], entries=entries[: request.limit])

    async def PutWorkflow(self, request: pb.PutWorkflowRequest, context: Any) -> pb.PutWorkflowResponse:
        name = format_version(request.namespace, request.workflow_id, request.version)
        created = name not in self.record.workflows
        workflow = workflows_pb2.Workflow(
            name=name,
            workflow_id=request.workflow_id,
            version=request.version,
            source=request.source,
            definition_hash=request.definition_hash.hex(),
        )
        self.record.workflows[name] = workflow
        return pb.PutWorkflowResponse(workflow=workflow, created=created)

    async def ReadWorkflows(self, request: pb.ReadWorkflowsRequest, context: Any) -> pb.ReadWorkflowsResponse:
        found = [
            workflow
            for name, workflow in sorted(self.record.workflows.items())
            if name.startswith(f"namespaces/{request.namespace}/")
            and request.workflow_id in ("", workflow.workflow_id)
            and workflow.workflow_id > request.after
        ]
        return pb.ReadWorkflowsResponse(workflows=found[: request.limit])

    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest, context: Any) -> pb.DeleteWorkflowResponse:
        self.record.workflows.pop(format_version(request.namespace, request.workflow_id, request.version))
        return pb.DeleteWorkflowResponse()

    async def DescribeOwner(self, request: pb.DescribeOwnerRequest, context: Any) -> pb.DescribeOwnerResponse:
        return pb.DescribeOwnerResponse()

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Any) -> pb.AuthenticateResponse:
        self.record.lookups += 1
        entry = self.record.keys.get(request.key_id)
        if entry is None or entry[0] != request.secret_hash or entry[1].HasField("revoke_time"):
            raise Refused(
                grpc.StatusCode.UNAUTHENTICATED, ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, "no such key works"
            )
        return pb.AuthenticateResponse(key=entry[1])

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        key = identity_pb2.Key(
            name=format_key(request.namespace, request.key_id), role=request.role, display_name=request.display_name
        )
        self.record.keys[request.key_id] = (request.secret_hash, key)
        return pb.CreateKeyResponse(key=key)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        prefix = f"namespaces/{request.namespace}/"
        keys = [key for _, key in self.record.keys.values() if key.name.startswith(prefix)]
        ids = [key.name.rpartition("/")[2] for key in keys]
        begin = ids.index(request.after_key_id) + 1 if request.after_key_id else 0
        return pb.ListKeysResponse(keys=keys[begin : begin + request.limit])

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Any) -> pb.RevokeKeyResponse:
        key = self.record.keys[request.key_id][1]
        key.revoke_time.GetCurrentTime()
        return pb.RevokeKeyResponse(key=key)


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Knows three workers."""

    def __init__(self) -> None:
        self.drained: list[str] = []

    async def ListWorkers(self, request: Any, context: Any) -> registry_pb2.ListWorkersResponse:
        live = fleet_pb2.Worker.STATE_READY
        rows = [("b", "w3", "3", live), ("a", "w1", "1", live), ("a", "w2", "2", fleet_pb2.Worker.STATE_DRAINING)]
        return registry_pb2.ListWorkersResponse(
            workers=[
                fleet_pb2.Worker(
                    name=f"workers/{n * 32}", worker_id=w, pool=p, region="local", slots=4, legs=1, state=s
                )
                for p, w, n, s in rows
            ]
        )

    async def ListPools(self, request: Any, context: Any) -> registry_pb2.ListPoolsResponse:
        rows = [("b", 1), ("a", 2)]
        return registry_pb2.ListPoolsResponse(
            pools=[fleet_pb2.Pool(pool=p, region="local", workers=n, slots=4 * n, legs=n) for p, n in rows]
        )

    async def DrainWorker(
        self, request: registry_pb2.DrainWorkerRequest, context: Any
    ) -> registry_pb2.DrainWorkerResponse:
        self.drained.append(request.incarnation)
        return registry_pb2.DrainWorkerResponse(worker=fleet_pb2.Worker(name=f"workers/{request.incarnation}"))

    async def ReleaseWorker(
        self, request: registry_pb2.ReleaseWorkerRequest, context: Any
    ) -> registry_pb2.ReleaseWorkerResponse:
        worker = fleet_pb2.Worker(name=f"workers/{request.incarnation}")
        return registry_pb2.ReleaseWorkerResponse(worker=worker, released=request.incarnation in self.drained)

    async def Register(self, request: Any, context: Any) -> Any:
        raise AssertionError("not for gateways")

    async def Heartbeat(self, request: Any, context: Any) -> Any:
        raise AssertionError("not for gateways")

    async def Deregister(self, request: Any, context: Any) -> Any:
        raise AssertionError("not for gateways")


class Client:
    """The public services on one channel, as one key's holder."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.runs = RunServiceStub(channel)
        self.workflows = WorkflowServiceStub(channel)
        self.fleet = FleetServiceStub(channel)
        self.identity = IdentityServiceStub(channel)

    async def call(self, method: Any, request: Any, timeout_s: float = 20.0) -> Any:
        """A unary call as this key's holder."""
        return await method(request, metadata=self.metadata, timeout=timeout_s)

    async def start(self, workflow_id: str = "flow", **fields: Any) -> Run:
        """Starts a run."""
        request = runs_pb2.StartRunRequest(parent="namespaces/default", workflow_id=workflow_id, **fields)
        response: runs_pb2.StartRunResponse = await self.call(self.runs.StartRun, request)
        return response.run


class House:
    """Everything around one gateway."""

    def __init__(self, stack: AsyncExitStack, nats: NatsServer) -> None:
        self.stack = stack
        self.nats = nats
        self.record = Record()
        self.registry = Registry()
        self.schedulers: list[Scheduler] = []
        self.servers: list[RpcServer] = []
        self.gateway: Gateway
        self.lifecycle: Lifecycle
        self.bus: Bus
        self.admin: Client

    async def open(self, *assignments: str) -> None:
        for _ in range(2):
            scheduler = Scheduler(self.record)
            self.schedulers.append(scheduler)
            descriptors = pb.DESCRIPTOR.services_by_name
            self.servers.append(
                await self.serve(
                    Service(
                        descriptors["SchedulingService"],
                        pb_grpc.add_SchedulingServiceServicer_to_server,
                        scheduler,
                    ),
                    Service(descriptors["PrincipalService"], pb_grpc.add_PrincipalServiceServicer_to_server, scheduler),
                )
            )
        registry = await self.serve(
            Service(
                registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
                registry_pb2_grpc.add_RegistryServiceServicer_to_server,
                self.registry,
            )
        )
        settings = self.settings(
            "cluster.internal_token=token",
            "gateway.listen=127.0.0.1:0",
            f"gateway.schedulers={','.join(server.address for server in self.servers)}",
            f"gateway.registries={registry.address}",
            f"nats.urls={self.nats.url}",
            *assignments,
        )
        self.bus = await Bus.connect(settings.nats, name="test")
        self.stack.push_async_callback(self.bus.close)
        own = await Bus.connect(settings.nats, name="gateway")
        self.stack.push_async_callback(own.close)
        self.lifecycle = Lifecycle("gateway", "test")
        self.gateway = Gateway(settings, self.lifecycle, own)
        self.stack.push_async_callback(self.gateway.close)
        await self.gateway.open()
        self.admin = self.client(self.record.key("-", identity_pb2.ROLE_ADMIN))

    def settings(self, *assignments: str) -> Settings:
        return load(Arguments(config=None, assignments=assignments), environ={})

    async def serve(self, *services: Service) -> RpcServer:
        server = create_server("127.0.0.1:0", services, interceptors=[TokenInterceptor("token")])
        await server.start()
        self.stack.push_async_callback(server.stop, 0)
        return server

    def client(self, token: str) -> Client:
        channel = grpc.aio.insecure_channel(self.gateway.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stack.push_async_callback(channel.close)
        return Client(channel, token)

    async def publish(self, watcher: str, *changes: runs_pb2.RunChange) -> None:
        """What the owner does after a commit."""
        await self.bus.publish(watcher, dispatch_pb2.ChangeBatch(changes=changes).SerializeToString())

    async def finish(self, run: Run, output: bytes = b"1") -> None:
        """Commits the end of a run that was started here, and publishes it to its watcher."""
        run_id = run_id_of(run)
        change = self.record.change(self.record.runs[run_id], Run.STATE_SUCCEEDED, output=output)
        await self.publish(self.record.watchers[run_id], change)


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(Path(tmp_path_factory.mktemp("nats")))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def empty_house(nats: NatsServer) -> AsyncIterator[House]:
    """Not open yet: for tests with settings of their own."""
    async with AsyncExitStack() as stack:
        yield House(stack, nats)


@pytest.fixture
async def house(empty_house: House) -> House:
    await empty_house.open()
    return empty_house


def reason_of(error: grpc.aio.AioRpcError) -> str:
    from flint_rpc.errors import from_rpc_error

    return from_rpc_error(error).reason_name


@pytest.fixture
def refused() -> Any:
    """Expects a refusal with this code and reason; gives what was refused."""
    from contextlib import contextmanager

    from flint_rpc.errors import from_rpc_error

    @contextmanager
    def expect(code: grpc.StatusCode, reason: str) -> Iterator[dict[str, Any]]:
        caught: dict[str, Any] = {}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            yield caught
        found = from_rpc_error(error.value)
        assert (found.code, found.reason_name) == (code, reason), found
        caught["error"] = found

    return expect
