"""Diagnosis of Flint's services: health over gRPC, readiness with its reasons, owners of the groups, the fleet."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import grpc
from grpc_health.v1 import health_pb2

from flint_contracts.gen.flint.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from flint_contracts.gen.flint.scheduling.v1 import scheduling_pb2, scheduling_pb2_grpc
from flint_ops.config import Settings
from flint_stack.errors import ProbeFailed
from flint_stack.findings import Finding
from flint_stack.probes import http_get

__all__ = ["check_fleet", "check_health", "check_ownership", "check_readiness"]

_DEADLINE_S = 5.0


async def check_health(part: str, address: str) -> Finding:
    """The standard health service says SERVING."""
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = await check(health_pb2.HealthCheckRequest(), timeout=_DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        return Finding.failed(f"{part} {address}", _reason(error), _look(part))
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return Finding.failed(f"{part} {address}", f"its health is {state}", _look(part))
    return Finding.ok(f"{part} {address}", "serving")


async def check_readiness(name: str, ops_address: str) -> Finding:
    """The operator's port says ready; else the checks that do not hold."""
    part = f"{name} readiness"
    try:
        status, body = await http_get(ops_address, "/readyz", timeout_s=_DEADLINE_S)
    except ProbeFailed as error:
        return Finding.failed(part, str(error), _look(name))
    if status == 200:
        return Finding.ok(part, "ready")
    return Finding.failed(part, f"not ready: {_failing(body)}", _look(name))


def _failing(body: bytes) -> str:
    try:
        failing = json.loads(body)["failing"]
        return "; ".join(f"{check}: {reason}" for check, reason in failing.items())
    except (ValueError, KeyError, AttributeError):
        return body.decode(errors="replace").strip()[:300]


async def check_ownership(settings: Settings) -> Finding:
    """Every shard group has exactly one owner among the schedulers that answer."""
    part = "shard groups"
    token = settings.cluster.internal_token.get_secret_value()
    answers = await asyncio.gather(*(_describe(address, token) for address in settings.gateway.schedulers))
    owners = [answer for answer in answers if isinstance(answer, scheduling_pb2.DescribeOwnerResponse)]
    if not owners:
        reasons = "; ".join(f"{a}: {r}" for a, r in zip(settings.gateway.schedulers, answers, strict=True))
        return Finding.failed(part, f"no scheduler says what it owns ({reasons})", _look("scheduler-1"))
    held = Counter(group.group for owner in owners for group in owner.groups)
    free = [group for group in range(settings.cluster.shard_groups) if group not in held]
    double = [group for group, owners_of in held.items() if owners_of > 1]
    shares = ", ".join(f"{o.scheduler_id} owns {len(o.groups)} ({o.queued} queued, {o.legs} legs)" for o in owners)
    if free:
        return Finding.failed(
            part,
            f"nobody owns {_numbers(free)}; {shares}",
            "A takeover takes some seconds; then look at etcd's health.",
        )
    if double:
        return Finding.warning(
            part, f"two schedulers name {_numbers(double)} theirs; {shares}", "True for a moment only, in a takeover."
        )
    return Finding.ok(part, f"{shares}, journal generation {max(o.journal_generation for o in owners)}")


async def _describe(address: str, token: str) -> scheduling_pb2.DescribeOwnerResponse | str:
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            answer: scheduling_pb2.DescribeOwnerResponse = await scheduling_pb2_grpc.SchedulingServiceStub(
                channel
            ).DescribeOwner(
                scheduling_pb2.DescribeOwnerRequest(),
                timeout=_DEADLINE_S,
                metadata=(("authorization", f"Bearer {token}"),),
            )
            return answer
    except grpc.aio.AioRpcError as error:
        return _reason(error)


async def check_fleet(gateway: str, key: str) -> Finding:
    """The key is accepted by the gateway, and there are workers that take legs, or that would be started."""
    part = "fleet"
    try:
        async with grpc.aio.insecure_channel(gateway) as channel:
            fleet = fleet_pb2_grpc.FleetServiceStub(channel)
            who = (("authorization", f"Bearer {key}"),)
            request = fleet_pb2.ListWorkersRequest(page_size=1000)
            answer = await fleet.ListWorkers(request, timeout=_DEADLINE_S, metadata=who)
            listed = await fleet.ListPools(fleet_pb2.ListPoolsRequest(), timeout=_DEADLINE_S, metadata=who)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return Finding.failed(part, "the gateway refuses the local key", "Restart `flint up`: it makes a new one.")
        return Finding.failed(part, _reason(error), _look("registry-1"))
    ready = [worker for worker in answer.workers if worker.state == fleet_pb2.Worker.STATE_READY]
    if not ready:
        scaled = [pool.pool for pool in listed.pools if pool.settings.mode == fleet_pb2.PoolSettings.MODE_AUTOMATIC]
        if not scaled:
            return Finding.failed(part, "no worker is ready: runs wait", _look("worker-1"))
        waiting = sum(pool.waiting_runs for pool in listed.pools)
        seen = f"no worker is ready; they are started as runs come ({', '.join(sorted(scaled))})"
        if waiting:
            advice = "`flint pools decisions` says what the autoscaler does about it."
            return Finding.warning(part, f"{seen}, and {waiting} runs wait", advice)
        return Finding.ok(part, seen)
    pools = Counter(worker.pool for worker in ready)
    legs, slots = sum(w.legs for w in ready), sum(w.slots for w in ready)
    return Finding.ok(part, f"{_pools(pools)} ready, {legs} legs in {slots} slots")


def _pools(pools: Mapping[str, int]) -> str:
    return ", ".join(f"{count} workers of pool {pool}" for pool, count in sorted(pools.items()))


def _numbers(numbers: Sequence[int]) -> str:
    return "group " + ", ".join(str(number) for number in sorted(numbers))


def _reason(error: grpc.aio.AioRpcError) -> str:
    details = " ".join((error.details() or "").split())
    if error.code() == grpc.StatusCode.UNAVAILABLE and "refused" in details:
        return "nothing listens there"
    return f"{error.code().name}: {details[:300]}"


def _look(name: str) -> str:
    return f"Does it run? Under `flint up` its log is logs/{name}.log in the data directory."
