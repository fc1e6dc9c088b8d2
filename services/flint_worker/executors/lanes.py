"""The transport of all HTTP that a worker sends: many small connection pools, one set for each way out.

httpcore looks at every connection and every waiting request of a pool whenever one begins or ends: with some hundred
exchanges at once that took all of a worker's time, its heartbeats with it. A pool that is not full is used before the
next one, so connections are reused as in one pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httpcore
import httpx

from flint_worker.executors.addresses import refuse_private
from flint_worker.executors.connections import Exchange, WatchedStream, watched
from flint_worker.executors.routes import LANE_CONNECTIONS, Route, Routes, host_of

__all__ = ["Transport"]

_LANES: Final = 64


class _Lane(httpx.AsyncHTTPTransport):
    """httpx's transport on a connection pool of ours.

    httpx takes no network backend itself, so the pool it made is replaced by one that checks addresses.
    """

    def __init__(self, pool: httpcore.AsyncConnectionPool) -> None:
        super().__init__(verify=_NO_CONTEXT)
        self.busy = 0
        self.worn = False
        """Whether it takes no more requests: an HTTP/2 answer was abandoned on it.

        What of that answer was on its way is lost to the connection's flow control, and httpcore lets a server send
        16 MiB unasked, for a stream as for the whole connection: the next requests would wait for ever.
        """
        self._pool = pool


_NO_CONTEXT: Final = httpx.create_ssl_context(verify=False)
"""For the pool that is thrown away: making a context that trusts somebody takes 20 ms."""


class Transport(httpx.AsyncBaseTransport):
    """One for all clients of a worker. Belongs to one event loop."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._lanes: dict[Route, list[_Lane]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it over the first pool with room on its way.

        A request that meets a connection which the server had closed meanwhile is sent once more.
        """
        route = self._routes.choose(request.url)
        if route.proxied and self._routes.checks_behind_proxy:
            await refuse_private(*host_of(request.url))
        with watched() as exchange:
            try:
                return await self._send(request, route, exchange)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if not exchange.met_a_closed_connection or not isinstance(request.stream, httpx.ByteStream):
                    raise
        with watched() as exchange:
            return await self._send(request, route, exchange)

    async def _send(self, request: httpx.Request, route: Route, exchange: Exchange) -> httpx.Response:
        lane = self._lane(route)
        lane.busy += 1
        request.extensions = {**request.extensions, "trace": exchange.trace}
        try:
            response = await lane.handle_async_request(request)
            if not isinstance(response.stream, httpx.AsyncByteStream):
                raise TypeError("the transport answered without a stream")
        except BaseException as error:
            if exchange.stream_id is not None:
                lane.worn = True
            try:
                if isinstance(error, asyncio.CancelledError):
                    await exchange.end_stream()
            finally:
                await self._leave(route, lane)
            raise
        response.stream = _Body(self, response, response.stream, route, lane)
        return response

    def _lane(self, route: Route) -> _Lane:
        lanes = self._lanes.setdefault(route, [])
        fresh = [lane for lane in lanes if not lane.worn]
        for lane in fresh:
            if lane.busy < LANE_CONNECTIONS:
                return lane
        if len(lanes) < _LANES or not fresh:
            lanes.append(_Lane(self._routes.pool(route)))
            return lanes[-1]
        return min(fresh, key=lambda lane: lane.busy)

    async def _leave(self, route: Route, lane: _Lane) -> None:
        lane.busy -= 1
        if lane.worn and not lane.busy and lane in self._lanes[route]:
            self._lanes[route].remove(lane)
            await lane.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        for lanes in self._lanes.values():
            for lane in lanes:
                await lane.aclose()


class _Body(httpx.AsyncByteStream):
    """An answer's body. When it is closed before its end, so is its HTTP/1 connection or its HTTP/2 stream."""

    def __init__(
        self,
        transport: Transport,
        response: httpx.Response,
        stream: httpx.AsyncByteStream,
        route: Route,
        lane: _Lane,
    ) -> None:
        self._transport = transport
        self._stream = stream
        self._route = route
        self._lane: _Lane | None = lane
        self._connection = response.extensions.get("network_stream")
        self._stream_id = response.extensions.get("stream_id")
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk
        self._ended = True

    async def aclose(self) -> None:
        """Closes it; more than once is harmless."""
        lane, self._lane = self._lane, None
        if lane is None:
            return
        try:
            await self._stream.aclose()
            if self._stream_id is not None and not self._ended:
                lane.worn = True
                if isinstance(self._connection, WatchedStream):
                    await self._connection.end_stream(self._stream_id)
        finally:
            await self._transport._leave(self._route, lane)
