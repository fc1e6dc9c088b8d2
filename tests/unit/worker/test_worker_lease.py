from __future__ import annotations

import pytest

from flint_worker import lease as module
from flint_worker.lease import Lease


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module, "boottime", lambda: now[0])
    return now


async def test_valid_from_before_the_renewal_was_sent(clock: list[float]) -> None:
    lease = Lease("inc", 7, sent_at=998.0, ttl_s=5.0)
    assert lease.valid()
    assert lease.remaining_s == 3.0
    clock[0] = 1002.9
    assert lease.valid()
    lease.renewed(sent_at=1001.0)
    clock[0] = 1005.9
    assert lease.valid()
    clock[0] = 1006.0
    assert not lease.valid()
    assert lease.ended.is_set()


async def test_once_over_it_stays_over(clock: list[float]) -> None:
    lease = Lease("inc", 7, sent_at=1000.0, ttl_s=5.0)
    clock[0] = 1010.0
    lease.renewed(sent_at=1009.0)  # the answer of a renewal that came too late
    assert not lease.valid()
    assert lease.remaining_s == 0.0


async def test_an_answer_out_of_order_does_not_shorten_it(clock: list[float]) -> None:
    lease = Lease("inc", 7, sent_at=1000.0, ttl_s=5.0)
    lease.renewed(sent_at=1000.0)
    lease.renewed(sent_at=999.0)
    assert lease.remaining_s == 5.0
