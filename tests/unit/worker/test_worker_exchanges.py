"""When a request may be sent once more: only while nothing of it can have reached the server's side."""

from __future__ import annotations

from flint_worker.executors.connections import Exchange, watched


async def test_a_request_that_met_a_closed_connection_may_be_repeated() -> None:
    with watched() as exchange:
        assert exchange.met_a_closed_connection
        exchange.answered = True
        assert not exchange.met_a_closed_connection


async def test_an_http2_request_that_has_a_stream_is_not_repeated() -> None:
    """Others that share its connection may have written it, and read what came for it."""
    exchange = Exchange()
    await exchange.trace("http2.send_connection_init.started", {})
    assert exchange.met_a_closed_connection
    await exchange.trace("http2.send_request_headers.started", {"stream_id": 3})
    assert not exchange.met_a_closed_connection
