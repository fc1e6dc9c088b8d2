"""Request ids that clients make up: never the same twice, and those of later come behind those of earlier."""

from types import SimpleNamespace

import pytest

from flint_sdk import StartRequest
from flint_sdk._starting import start_request, start_requests


def test_made_up_request_ids_are_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1_800_000_000.0
    monkeypatch.setattr("flint_sdk._starting.time", SimpleNamespace(time=lambda: moment))
    start = StartRequest("greet", {})
    earlier = {start_request(start, "namespaces/default").request_id for _ in range(100)}
    moment += 0.001
    later = {start_request(start, "namespaces/default").request_id for _ in range(100)}
    assert len(earlier | later) == 200
    assert max(earlier) < min(later)
    assert start_request(StartRequest("greet", {}, request_id="mine"), "namespaces/default").request_id == "mine"


def test_each_of_many_gets_one_of_its_own_or_keeps_what_it_was_given() -> None:
    starts = [StartRequest("greet", {"n": n}, "mine" if n == 3 else None) for n in range(1000)]
    requests = start_requests(starts, "namespaces/default")
    assert [request.input for request in requests] == [b'{"n":%d}' % n for n in range(1000)]
    assert requests[3].request_id == "mine"
    made = {request.request_id for request in requests}
    assert len(made) == 1000
    assert {len(request_id) for request_id in made - {"mine"}} == {36}
