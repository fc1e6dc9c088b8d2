from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from flint_ops.clock import boottime, now_ms
from flint_ops.ops_server import OpsServer, Readiness, split_address


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


def test_the_port_answers_one_after_another_until_it_is_closed() -> None:
    server = OpsServer("127.0.0.1:0", Readiness(), CollectorRegistry())
    server.start()
    try:
        for path in ("livez", "readyz", "livez"):
            with urllib.request.urlopen(f"http://{server.address}/{path}", timeout=60) as answer:
                assert answer.status == 200
        silent = socket.create_connection(split_address(server.address), timeout=60)
        silent.close()  # it must not end the one thread
        with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=60) as answer:
            assert answer.status == 200
    finally:
        server.close()


def test_a_port_that_never_served_closes() -> None:
    OpsServer("127.0.0.1:0", Readiness(), CollectorRegistry()).close()
