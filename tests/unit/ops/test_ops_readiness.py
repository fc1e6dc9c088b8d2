from __future__ import annotations

import pytest

from flint_ops.clock import boottime, now_ms
from flint_ops.ops_server import Readiness, split_address


def test_all_checks_must_hold() -> None:
    readiness = Readiness()
    readiness.require("record")
    problem: str | None = "away"
    readiness.require("nats", lambda: problem)
    assert readiness.failing() == {"record": "starting", "nats": "away"}
    readiness.set("record")
    problem = None
    assert readiness.failing() == {}
    readiness.set("record", "lost")
    assert readiness.failing() == {"record": "lost"}


@pytest.mark.parametrize(("text", "pair"), [("1.2.3.4:5", ("1.2.3.4", 5)), ("[::1]:80", ("::1", 80))])
def test_addresses(text: str, pair: tuple[str, int]) -> None:
    assert split_address(text) == pair


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "host:70000"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(text)


def test_clocks_go_forward() -> None:
    first = boottime()
    assert boottime() >= first
    assert now_ms() > 1_700_000_000_000
