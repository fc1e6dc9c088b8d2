"""`http`: one HTTP exchange per call, over connections that all calls of the worker share."""

from __future__ import annotations

from typing import Any

import httpx

from flint_ops.config import Settings
from flint_worker.executors import RawJson, ResolvedCall
from flint_worker.executors.answers import output_of
from flint_worker.executors.arguments import check_arguments
from flint_worker.executors.bodies import add_standard_headers, body_of, headers_of, text_of
from flint_worker.executors.client import http_url
from flint_worker.executors.faults import Fault
from flint_worker.executors.outbound import Outbound
from flint_worker.executors.templates import expand

__all__ = ["HttpExecutor", "endpoint_of"]


class HttpExecutor:
    """The function `http`. Closes the connections that it shares with the other executors of HTTP."""

    unfinished = 0  # nothing outlives its call
    raw_arguments = frozenset({"body"})

    def __init__(self, settings: Settings, outbound: Outbound | None = None) -> None:
        self._outbound = Outbound(settings) if outbound is None else outbound

    async def close(self) -> None:
        """Closes the connections."""
        await self._outbound.close()

    async def execute(self, call: ResolvedCall) -> Any:
        """The answer as `output` asks for it. Raises ExecutionFailed."""
        body = call.arguments.get("body")
        if isinstance(body, RawJson):
            call = call._replace(arguments={**call.arguments, "body": None})
        arguments = {**check_arguments(call), "body": body}
        try:
            return await self._exchange(call, arguments)
        except Fault as fault:
            raise fault.of(call) from None

    async def _exchange(self, call: ResolvedCall, arguments: dict[str, Any]) -> Any:
        url, policy = endpoint_of(arguments["endpoint"])
        pairs = [
            (name, text_of(item))
            for name, value in arguments.get("query", {}).items()
            for item in (value if isinstance(value, list) else [value])
            if item is not None
        ]
        if pairs:
            url = url.copy_with(params=[*url.params.multi_items(), *pairs])
        headers = headers_of(arguments.get("headers", {}))
        content = body_of(arguments.get("body"), headers)
        add_standard_headers(headers, call)
        auth = self._outbound.auth(policy)
        redirect = bool(arguments.get("redirect", False))
        answer = await self._outbound.client.exchange(
            arguments["method"].upper(),
            url,
            headers=headers,
            content=content,
            auth=auth,
            redirect=redirect,
            deadline_s=call.deadline_s,
        )
        return output_of(answer, arguments.get("output", "content"), redirect, auth.used if auth else ())


def endpoint_of(endpoint: str | dict[str, Any], place: str = "/endpoint") -> tuple[httpx.URL, dict[str, Any] | None]:
    """The address and the authentication policy of an endpoint. Raises Fault (validation)."""
    if isinstance(endpoint, str):
        return http_url(endpoint, place), None
    uri = endpoint["uri"]
    if "variables" in endpoint:
        uri = expand(uri, endpoint["variables"], f"{place}/uri")
    return http_url(uri, f"{place}/uri"), endpoint.get("authentication")
