"""Request ids that clients make up: never the same twice, and those of later come behind those of earlier."""

from types import SimpleNamespace

import pytest

from flint_sdk import StartRequest
from flint_sdk._starting import start_request


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
