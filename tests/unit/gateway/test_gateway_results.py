from __future__ import annotations

from flint_contracts.gen.flint.runs.v1 import runs_pb2
from flint_gateway.results import ResultCache


def ended(number: int, size: int) -> runs_pb2.Run:
    return runs_pb2.Run(
        name=f"namespaces/default/runs/{number}", state=runs_pb2.Run.STATE_SUCCEEDED, output=b"x" * size
    )


def test_oldest_leave_first_and_bytes_are_bounded() -> None:
    cache = ResultCache(20_000)
    for number in range(100):
        cache.put(ended(number, 1000))
    assert cache.get(ended(99, 0).name) is not None
    assert cache.get(ended(0, 0).name) is None
    assert 3 <= len(cache) <= 10
    assert cache._bytes <= 20_000


def test_what_was_said_before_a_reset_is_kept_no_more() -> None:
    cache = ResultCache(20_000)
    first, again = ended(1, 10), ended(1, 10)
    first.change, again.change = 4, 9
    cache.put(first)
    cache.outdate(first.name, 5)
    cache.put(first)  # it was on its way
    assert cache.get(first.name) is None
    assert cache._bytes == 0
    cache.put(again)
    assert cache.get(first.name) == again
    for number in range(20_000):
        cache.outdate(str(number), 1)
    assert len(cache._outdated) == 10_000
    cache.clear()
    assert (len(cache), cache._bytes) == (0, 0)


def test_one_that_can_never_fit_is_not_kept() -> None:
    cache = ResultCache(4000)
    cache.put(ended(1, 10))
    cache.put(ended(2, 100_000))
    assert cache.get(ended(2, 0).name) is None
    assert cache.get(ended(1, 0).name) is not None
    assert ResultCache(0).get("x") is None
