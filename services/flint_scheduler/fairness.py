"""Fair order within one level: namespaces take turns by weight, the fairness keys of a namespace take turns evenly.

Start-time fair queueing. Each namespace has a virtual time that grows by 1/weight with every run it is served; the one
whose time is lowest is next. One that comes back after it had nothing to do begins at the time of those that are being
served: it neither makes up for what it did not use nor waits for others to do so. So over any stretch in which two
namespaces both have runs waiting, what they are served differs from their weights by at most one run each. Inside a
namespace the same holds for keys, with equal weights. A push or a pop costs O(log n).

Within a key: the earliest deadline; a run without one counts as if it had to end a while (`patience`) after it was
accepted, so runs with deadlines do not starve those without. Runs without deadlines are in order of arrival.

An entry is valid while the card is READY and its token is the entry's; others are skipped when they surface.
"""

from __future__ import annotations

import heapq
from collections.abc import Container
from typing import TypeAlias

from flint_scheduler.cards import Phase, RunCard

_READY = Phase.READY
__all__ = ["DEFAULT_WEIGHT", "FairQueue", "Others"]

DEFAULT_WEIGHT = 100
_IDLE_TENANTS = 1000

Entry: TypeAlias = tuple[int, int, int, RunCard]  # due, arrival, token, card


class Others:
    """Every namespace but one, and those of `full`: what may not be served where a place is dedicated."""

    __slots__ = ("_full", "_only")

    def __init__(self, only: str, full: Container[str]) -> None:
        self._only = only
        self._full = full

    def __contains__(self, namespace: object) -> bool:
        return namespace != self._only or namespace in self._full


class _Flow:
    """The runs of one fairness key."""

    __slots__ = ("active", "credit", "heap", "key", "passed")

    def __init__(self, key: str) -> None:
        self.key = key
        self.heap: list[Entry] = []
        self.passed = 0.0
        self.active = False
        self.credit = False  # the last run was served nothing: the next one is free


class _Tenant:
    """The runs of one namespace."""

    __slots__ = (
        "active",
        "clock",
        "count",
        "credit",
        "flows",
        "namespace",
        "order",
        "parked",
        "passed",
        "serial",
        "stride",
    )

    def __init__(self, namespace: str, stride: float) -> None:
        self.namespace = namespace
        self.stride = stride
        self.passed = 0.0
        self.active = False
        self.parked = False  # the namespace may begin no more runs now
        self.credit = False
        self.count = 0  # entries, stale ones included
        self.flows: dict[str, _Flow] = {}
        self.order: list[tuple[float, int, _Flow]] = []
        self.clock = 0.0
        self.serial = 0

    def push(self, key: str, entry: Entry) -> None:
        flow = self.flows.get(key)
        if flow is None:
            flow = self.flows[key] = _Flow(key)
        heapq.heappush(flow.heap, entry)
        self.count += 1
        if not flow.active:
            flow.active = True
            flow.passed = max(flow.passed, self.clock)
            self.serial += 1
            heapq.heappush(self.order, (flow.passed, self.serial, flow))

    def pop(self) -> RunCard | None:
        order = self.order
        while order:
            passed, serial, flow = order[0]
            heap = flow.heap
            while heap:
                _, _, token, card = heapq.heappop(heap)
                self.count -= 1
                if card.token == token and card.phase is _READY:
                    self.clock = passed
                    flow.passed = passed if flow.credit else passed + 1.0
                    flow.credit = False
                    heapq.heapreplace(order, (flow.passed, serial, flow))
                    return card
            heapq.heappop(order)
            flow.active = False
            if flow.passed <= self.clock + 1.0 or len(self.flows) > _IDLE_TENANTS:
                del self.flows[flow.key]
        return None


class FairQueue:
    """The runs of one level. `count`: entries of namespaces that may be served, stale ones included."""

    __slots__ = ("_clock", "_order", "_parked", "_serial", "_tenants", "_weights", "count")

    def __init__(self, weights: dict[str, int]) -> None:
        """`weights`: of namespaces that have one; read when a namespace begins to wait, and by `reweigh`."""
        self._weights = weights
        self._tenants: dict[str, _Tenant] = {}
        self._parked: dict[str, _Tenant] = {}
        self._order: list[tuple[float, int, _Tenant]] = []
        self._clock = 0.0
        self._serial = 0
        self.count = 0

    def push(self, card: RunCard, due: int, key: str) -> None:
        """Queue a card under its present token."""
        tenant = self._tenants.get(card.namespace)
        if tenant is None:
            tenant = self._tenants[card.namespace] = self._tenant(card.namespace)
        tenant.push(key, (due, card.arrival, card.token, card))
        if tenant.parked:
            return
        self.count += 1
        if not tenant.active:
            self._activate(tenant)

    def refund(self, namespace: str, key: str) -> None:
        """The run served last could not begin: the next one of its namespace and key is served for nothing."""
        tenant = self._tenants.get(namespace)
        if tenant is not None:
            tenant.credit = True
            flow = tenant.flows.get(key)
            if flow is not None:
                flow.credit = True

    def pop(self, full: Container[str]) -> RunCard | None:
        """The next card, or None. Namespaces in `full` are parked until `unpark`."""
        order = self._order
        while order:
            passed, serial, tenant = order[0]
            if full and tenant.namespace in full:
                heapq.heappop(order)
                tenant.active = False
                if tenant.count:
                    tenant.parked = True
                    self._parked[tenant.namespace] = tenant
                    self.count -= tenant.count
                continue
            before = tenant.count
            card = tenant.pop()
            self.count -= before - tenant.count
            if card is not None:
                self._clock = passed
                tenant.passed = passed if tenant.credit else passed + tenant.stride
                tenant.credit = False
                heapq.heapreplace(order, (tenant.passed, serial, tenant))
                return card
            heapq.heappop(order)
            tenant.active = False
            if len(self._tenants) > _IDLE_TENANTS:
                self._forget_idle()
        return None

    def unpark(self, namespace: str) -> None:
        """The namespace may begin runs again."""
        tenant = self._parked.pop(namespace, None)
        if tenant is not None:
            tenant.parked = False
            self.count += tenant.count
            self._activate(tenant)

    def unpark_all(self) -> None:
        """Every namespace may begin runs again."""
        for namespace in [*self._parked]:
            self.unpark(namespace)

    def foreign(self, only: str) -> int:
        """Entries of all namespaces but one, stale ones included."""
        return sum(tenant.count for namespace, tenant in self._tenants.items() if namespace != only)

    def reweigh(self) -> None:
        """Weights have changed."""
        for tenant in self._tenants.values():
            tenant.stride = 1.0 / self._weights.get(tenant.namespace, DEFAULT_WEIGHT)

    def cards(self) -> list[RunCard]:
        """The cards whose entries are valid, in no order."""
        return [
            card
            for tenant in self._tenants.values()
            for flow in tenant.flows.values()
            for _, _, token, card in flow.heap
            if card.token == token and card.phase is _READY
        ]

    def compact(self) -> list[RunCard]:
        """Drop stale entries; answers the cards that stay."""
        for tenant in self._tenants.values():
            before = tenant.count
            for flow in tenant.flows.values():
                flow.heap = [e for e in flow.heap if e[3].token == e[2] and e[3].phase is _READY]
                heapq.heapify(flow.heap)
            tenant.count = sum(len(flow.heap) for flow in tenant.flows.values())
            if not tenant.parked:
                self.count -= before - tenant.count
        return self.cards()

    def _tenant(self, namespace: str) -> _Tenant:
        return _Tenant(namespace, 1.0 / self._weights.get(namespace, DEFAULT_WEIGHT))

    def _activate(self, tenant: _Tenant) -> None:
        tenant.active = True
        tenant.passed = max(tenant.passed, self._clock)
        self._serial += 1
        heapq.heappush(self._order, (tenant.passed, self._serial, tenant))

    def _forget_idle(self) -> None:
        """What a namespace is ahead by is kept for as long as it is ahead."""
        idle = [n for n, t in self._tenants.items() if not t.active and not t.parked and t.passed <= self._clock]
        for namespace in idle:
            del self._tenants[namespace]
